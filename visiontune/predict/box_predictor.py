"""What gives boxes, whatever runs the network: pictures fitted, boxes in their own pixels out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from visiontune.boxes import Boxes, Letterbox
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection import place
from visiontune.data.parallel import available_cores
from visiontune.data.read import read_file
from visiontune.errors import UserError
from visiontune.predict.ahead import read_ahead
from visiontune.predict.boxes import BoxPrediction
from visiontune.predict.sources import Paths, Source, Sources
from visiontune.predict.tiles import predict_tiles

Out = TypeVar("Out")

BATCH_SIZE = 16
SHOWN_FROM = 0.3  # lowest score of a box for people, where no validation has chosen one


class BoxPredictor:
    """What a detector in PyTorch and one in ONNX share. Subclasses are called with pictures and give boxes.

    Args:
        config: the `config.json` of exported weights.

    Attributes:
        class_names: in the order of the labels.
        image_size: `(height, width)` in pixels that pictures are fitted into.
        max_detections: of a picture, or a tile of one.
        shown_from: the score from which boxes are given: the best F1 on the validation pictures chose it.
        config: all of `config.json`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        cfg = config["pretrained_cfg"]
        self.config = config
        self.class_names: tuple[str, ...] = tuple(config.get("label_names", ())) or tuple(map(str, range(config["num_classes"])))
        self.image_size: tuple[int, int] = tuple(cfg["input_size"][1:])
        unusual = {k: tuple(v) for k, v in config.get("reading", {}).items()}
        self.reading = Reading(channels=cfg["input_size"][0], **unusual)
        self.max_detections = int(config["detector"].get("max_detections", 100))
        self.shown_from = float(config.get("shown_from", SHOWN_FROM))

    def __call__(self, images: Tensor) -> list[Boxes]:
        raise NotImplementedError

    def read(self, picture: str | Path | np.ndarray) -> tuple[Tensor, Letterbox]:
        """A picture file, or pixels `(H, W, C)` uint8, as `(C, H, W)` uint8 fitted into `image_size`, and how. Raises BrokenPicture."""
        return self._fit(picture if isinstance(picture, np.ndarray) else read_file(str(picture)))

    def predict(
        self,
        paths: Paths,
        *,
        score: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
    ) -> Iterator[BoxPrediction]:
        """Boxes of any number of pictures, in their order; a broken one is reported in its place.

        Args:
            paths: files, folders, shards; a list of them, or whatever gives them one by one.
            score: lowest of a box; None takes `shown_from`.
            tile: cut pictures into tiles with sides of so many of their pixels, for small things in large pictures; the whole picture is
                looked at, too. See `predict_tiles`.
            overlap: the least share of a tile that the next one sees too: about the length of the largest things.
            batch_size: pictures, or tiles of one, that go through the network at once.
            workers: threads that decode; None takes as many as there are cores, 0 decodes in turn with the network.

        Raises:
            UserError: for a score, tile or overlap that is none.
        """
        least = self.shown_from if score is None else score
        if not 0 <= least <= 1:
            raise UserError(f"predict: got score={least:g}; expected a number from 0 to 1")
        if tile is not None and tile < 32:
            raise UserError(f"predict: got tile={tile}; expected 32 pixels or more")
        if not 0 <= overlap < 0.5:
            raise UserError(f"predict: got overlap={overlap:g}; expected a share of a tile from 0 to below 0.5")
        sources = paths if isinstance(paths, Sources) else Sources(paths, key="predict")
        threads = available_cores() if workers is None else workers
        if tile is None:
            found = self._whole(sources, batch_size, threads)
        else:
            found = self._tiled(sources, least, tile, overlap, batch_size, threads)
        return (p if p.broken else replace(p, boxes=p.boxes.take(_scores(p.boxes) >= least)) for p in found)

    def _whole(self, sources: Sources, batch_size: int, threads: int) -> Iterator[BoxPrediction]:
        self._ready()
        reading = read_ahead(partial(_try, self._fit), sources, threads=threads, ahead=2 * batch_size + threads)
        while items := list(islice(reading, batch_size)):
            found = iter(self._boxes([x for _, x in items if not isinstance(x, str)]))
            for path, x in items:
                yield BoxPrediction(path, broken=x) if isinstance(x, str) else BoxPrediction(path, next(found))

    def _tiled(self, sources: Sources, least: float, tile: int, overlap: float, batch_size: int, threads: int) -> Iterator[BoxPrediction]:
        self._ready()

        def sure(tiles: Sequence[np.ndarray]) -> list[Boxes]:
            # Before tiles are joined: a whole box that nobody would be shown must not stand for pieces that are certain.
            return [boxes.take(_scores(boxes) >= least) for boxes in self._boxes([self._fit(t) for t in tiles])]

        # Such pictures are large, and all that are read ahead are in memory.
        for path, pixels in read_ahead(partial(_try, self._pixels), sources, threads=min(threads, 2), ahead=2):
            if isinstance(pixels, str):
                yield BoxPrediction(path, broken=pixels)
                continue
            boxes = predict_tiles(
                pixels,
                sure,
                size=(tile, tile),
                overlap=overlap,
                whole=True,
                batch_size=batch_size,
                max_detections=self.max_detections * max(1, pixels.shape[0] * pixels.shape[1] // tile**2),
            )
            yield BoxPrediction(path, boxes)

    def _boxes(self, fitted: Sequence[tuple[Tensor, Letterbox]]) -> list[Boxes]:
        """In pixels of the originals."""
        found = self(torch.stack([x for x, _ in fitted])) if fitted else []
        # what lies where the picture was filled up has no area in it
        return [box.outside(boxes.to("cpu")).with_area() for (_, box), boxes in zip(fitted, found, strict=True)]

    def _fit(self, source: bytes | np.ndarray) -> tuple[Tensor, Letterbox]:
        pixels, box = place.fit(place.Source(Picture(source, self.reading), Boxes.none()), self.image_size)
        return torch.from_numpy(pixels).permute(2, 0, 1), box

    def _pixels(self, source: bytes) -> np.ndarray:
        picture = Picture(source, self.reading)
        return place.fit(place.Source(picture, Boxes.none()), (picture.height, picture.width))[0]

    def _ready(self) -> None:
        """Before the first batch."""


def _try(read: Callable[[bytes], Out], source: Source) -> tuple[str, Out | str]:
    try:
        return source.name, read(source.read())
    except BrokenPicture as error:
        return source.name, str(error)


def _scores(boxes: Boxes) -> Tensor:
    return torch.zeros(0) if boxes.scores is None else boxes.scores
