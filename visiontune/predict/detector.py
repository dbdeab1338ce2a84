"""A detector with its own preprocessing: pictures in, boxes in their own pixels out."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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
from visiontune.predict.sources import Paths, Source, Sources

BATCH_SIZE = 16
SHOWN_FROM = 0.3  # lowest score of a box for people, where no validation has chosen one


@dataclass(frozen=True)
class Detection:
    """One picture's outcome.

    Attributes:
        path: of the picture.
        boxes: xyxy in its own pixels, the highest score first; none of a broken picture.
        labels: the name of each box's class.
        height: of the picture, in pixels; likewise `width`.
        broken: why the picture could not be read, or empty.
    """

    path: str
    boxes: Boxes
    labels: tuple[str, ...] = ()
    height: int = 0
    width: int = 0
    broken: str = ""


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

    def _fit(self, source: bytes | np.ndarray) -> tuple[Tensor, Letterbox]:
        pixels, box = place.fit(place.Source(Picture(source, self.reading), Boxes.none()), self.image_size)
        return torch.from_numpy(pixels).permute(2, 0, 1), box

    def predict(
        self, paths: Paths, *, score: float | None = None, batch_size: int = BATCH_SIZE, workers: int | None = None
    ) -> Iterator[Detection]:
        """Boxes of any number of pictures, in their order; a broken one is reported in its place.

        Args:
            paths: files, folders, shards; a list of them, or whatever gives them one by one.
            score: lowest of a box; None takes `shown_from`.
            batch_size: pictures that go through the network at once.
            workers: threads that decode; None takes as many as there are cores, 0 decodes in turn with the network.

        Raises:
            UserError: for a score that is none.
        """
        least = self.shown_from if score is None else score
        if not 0 <= least <= 1:
            raise UserError(f"predict: got score={least:g}; expected a number from 0 to 1")
        return self._predict(paths if isinstance(paths, Sources) else Sources(paths, key="predict"), least, batch_size, workers)

    def _predict(self, sources: Sources, least: float, batch_size: int, workers: int | None) -> Iterator[Detection]:
        self.eval()
        threads = available_cores() if workers is None else workers
        reading = read_ahead(self._try, sources, threads=threads, ahead=2 * batch_size + threads)
        while items := list(islice(reading, batch_size)):
            whole = [x[0] for _, x in items if not isinstance(x, str)]
            found = iter(self(torch.stack(whole)) if whole else ())
            for path, x in items:
                if isinstance(x, str):
                    yield Detection(path, Boxes.none(), broken=x)
                    continue
                boxes = x[1].outside(next(found).to("cpu"))
                assert boxes.scores is not None
                boxes = boxes.take(boxes.scores >= least)
                yield Detection(path, boxes, tuple(self.class_names[k] for k in boxes.labels.tolist()), x[1].height, x[1].width)

    def _try(self, source: Source) -> tuple[str, tuple[Tensor, Letterbox] | str]:
        try:
            return source.name, self._fit(source.read())
        except BrokenPicture as error:
            return source.name, str(error)
