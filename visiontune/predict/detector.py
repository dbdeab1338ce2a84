"""A detector with its own preprocessing: pictures in, boxes in their own pixels out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.boxes import Boxes, Letterbox
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection import place
from visiontune.data.parallel import available_cores
from visiontune.data.read import read_file
from visiontune.errors import UserError
from visiontune.finetune.detect import Detector
from visiontune.predict.ahead import read_ahead
from visiontune.predict.boxes import BoxPrediction
from visiontune.predict.sources import Paths, Source, Sources
from visiontune.predict.tiles import predict_tiles

Out = TypeVar("Out")

BATCH_SIZE = 16
SHOWN_FROM = 0.3  # lowest score of a box for people, where no validation has chosen one


class DetectorModel(nn.Module):
    """What `visiontune.load` gives of a run that detects. A plain module: it moves by `to("cuda")`.

    Args:
        detector: with its weights.
        config: as in the `config.json` of exported weights.

    Attributes:
        class_names: in the order of the labels.
        image_size: `(height, width)` in pixels that pictures are fitted into.
        shown_from: the score from which boxes are given: the best F1 on the validation pictures chose it.
        config: all of `config.json`.
    """

    def __init__(self, detector: Detector, config: dict[str, Any]) -> None:
        super().__init__()
        cfg = config["pretrained_cfg"]
        self.detector, self.config = detector, config
        self.class_names = detector.class_names
        self.image_size: tuple[int, int] = tuple(cfg["input_size"][1:])
        unusual = {k: tuple(v) for k, v in config.get("reading", {}).items()}
        self.reading = Reading(channels=cfg["input_size"][0], **unusual)
        self.shown_from = float(config.get("shown_from", SHOWN_FROM))

    @classmethod
    def read_folder(cls, folder: Path, config: dict[str, Any]) -> "DetectorModel":
        """From what `save_detector_folder` wrote."""
        spec, cfg = backbones.Spec.of(config), config["pretrained_cfg"]
        detector = Detector(
            spec.name,
            image_size=spec.image_size,
            channels=spec.channels,
            backbone_args=spec.args,
            stem=spec.stem,
            mean=cfg["mean"],
            std=cfg["std"],
            num_classes=config["num_classes"],
            class_names=config["label_names"],
            freeze_batch_norms=False,
            **config["detector"],
        )
        detector.trained.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        return cls(detector, config).eval()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.detector.mean.device

    def forward(self, images: Tensor) -> list[Boxes]:
        """`(B, C, H, W)`, uint8 or normalised float -> boxes with scores, in pixels of these pictures."""
        return self.detector.predict(images.to(self.device))

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
        found = self._whole(sources, batch_size, threads) if tile is None else self._tiled(sources, tile, overlap, batch_size, threads)
        return (p if p.broken else replace(p, boxes=p.boxes.take(_scores(p.boxes) >= least)) for p in found)

    def _whole(self, sources: Sources, batch_size: int, threads: int) -> Iterator[BoxPrediction]:
        self.eval()
        reading = read_ahead(partial(_try, self._fit), sources, threads=threads, ahead=2 * batch_size + threads)
        while items := list(islice(reading, batch_size)):
            found = iter(self._boxes([x for _, x in items if not isinstance(x, str)]))
            for path, x in items:
                yield BoxPrediction(path, broken=x) if isinstance(x, str) else BoxPrediction(path, next(found))

    def _tiled(self, sources: Sources, tile: int, overlap: float, batch_size: int, threads: int) -> Iterator[BoxPrediction]:
        self.eval()
        limit = self.config["detector"].get("max_detections")
        for path, pixels in read_ahead(partial(_try, self._pixels), sources, threads=threads, ahead=2 + threads):
            if isinstance(pixels, str):
                yield BoxPrediction(path, broken=pixels)
                continue
            boxes = predict_tiles(
                pixels,
                lambda tiles: self._boxes([self._fit(t) for t in tiles]),
                size=(tile, tile),
                overlap=overlap,
                whole=True,
                batch_size=batch_size,
                max_detections=None if limit is None else limit * max(1, pixels.shape[0] * pixels.shape[1] // tile**2),
            )
            yield BoxPrediction(path, boxes)

    def _boxes(self, fitted: Sequence[tuple[Tensor, Letterbox]]) -> list[Boxes]:
        """In pixels of the originals."""
        found = self(torch.stack([x for x, _ in fitted])) if fitted else []
        return [box.outside(boxes.to("cpu")) for (_, box), boxes in zip(fitted, found, strict=True)]

    def _fit(self, source: bytes | np.ndarray) -> tuple[Tensor, Letterbox]:
        pixels, box = place.fit(place.Source(Picture(source, self.reading), Boxes.none()), self.image_size)
        return torch.from_numpy(pixels).permute(2, 0, 1), box

    def _pixels(self, source: bytes) -> np.ndarray:
        picture = Picture(source, self.reading)
        return place.fit(place.Source(picture, Boxes.none()), (picture.height, picture.width))[0]


def _try(read: Callable[[bytes], Out], source: Source) -> tuple[str, Out | str]:
    try:
        return source.name, read(source.read())
    except BrokenPicture as error:
        return source.name, str(error)


def _scores(boxes: Boxes) -> Tensor:
    return torch.zeros(0) if boxes.scores is None else boxes.scores
