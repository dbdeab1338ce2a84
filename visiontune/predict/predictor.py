"""Pictures in, labels or embeddings out, in their order and in bounded memory, whatever runs the network.

B pictures, C channels, D width, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.parallel import available_cores
from visiontune.data.read import read_file
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError, counted
from visiontune.predict.ahead import read_ahead
from visiontune.predict.sources import Paths, Source, Sources

BATCH_SIZE = 64
NOT_FINITE = "what the network makes of it is not finite"


@dataclass(frozen=True)
class Prediction:
    """One picture's outcome.

    Attributes:
        path: of the picture.
        labels: class names, the most likely first; none for a broken picture, and where no label of several reaches its threshold.
        scores: their probabilities.
        broken: why the picture could not be read, or has no finite scores; or empty.
    """

    path: str
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    broken: str = ""

    @property
    def label(self) -> str:
        """The most likely one, or empty."""
        return self.labels[0] if self.labels else ""

    @property
    def score(self) -> float:
        """Of `label`, or nan."""
        return self.scores[0] if self.scores else float("nan")


@dataclass(frozen=True)
class Embedding:
    """One picture's vector.

    Attributes:
        path: of the picture.
        vector: `(D,)` float32; empty for a broken picture.
        broken: why the picture could not be read, or has no finite embedding; or empty.
    """

    path: str
    vector: np.ndarray
    broken: str = ""


class Predictor:
    """What a model in PyTorch and one in ONNX share: how pictures are read, and what its logits mean.

    Subclasses are called with `(B, C, H, W)` pictures and give logits `(B, K)`, or embeddings of a backbone without a head.

    Args:
        config: the `config.json` of exported weights.

    Attributes:
        class_names: in the order of the outputs; empty for a backbone.
        image_size: `(height, width)` in pixels.
        several: a picture may have any number of labels; else it has one.
        temperature: that logits are divided by.
        thresholds: `(K,)`, the score from which a label is given, where a picture may have several.
        config: all of `config.json`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        cfg = config["pretrained_cfg"]
        count = config.get("num_classes", 0)
        self.config = config
        self.class_names: tuple[str, ...] = tuple(config.get("label_names", ())) or tuple(map(str, range(count)))
        self.image_size: tuple[int, int] = tuple(cfg["input_size"][1:])
        unusual = {k: tuple(v) for k, v in config.get("reading", {}).items()}
        self.reading = Reading(channels=cfg["input_size"][0], **unusual)
        self.view = CenterCrop(self.image_size, cfg.get("crop_pct") or 1.0)
        self.several: bool = config.get("labels", "single") == "multi"
        self.temperature = float(config.get("temperature", 1.0))
        self.thresholds = torch.tensor(config.get("thresholds", [0.5] * len(self.class_names)))

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> embeddings `(B, D)`, the same as `represent` of the module that was trained."""
        raise NotImplementedError

    # ---------------------------------------------------------------- one batch

    def read(self, picture: str | Path | np.ndarray) -> Tensor:
        """A picture file, or pixels `(H, W, C)` uint8, as `(C, H, W)` uint8, cut and resized as in validation. Raises BrokenPicture."""
        pixels = self._pixels(picture if isinstance(picture, np.ndarray) else read_file(str(picture)))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _pixels(self, source: bytes | np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.view(Picture(source, self.reading))[0])

    @torch.inference_mode()
    def scores(self, images: Tensor, *, tta: bool = False) -> Tensor:
        """`(B, C, H, W)` -> probabilities `(B, K)` float32: of the one label they add up to 1, of several each stands alone.

        Args:
            tta: the mean with those of the picture's mirror image.
        """
        if tta:  # probabilities are averaged: the temperature was fitted to logits of one view
            return (self.scores(images) + self.scores(images.flip(-1))) / 2
        logits = self(images).float() / self.temperature
        return logits.sigmoid() if self.several else logits.softmax(dim=1)

    # ---------------------------------------------------------------- any number

    def predict(
        self, paths: Paths, *, top: int | None = None, batch_size: int = BATCH_SIZE, workers: int | None = None, tta: bool = False
    ) -> Iterator[Prediction]:
        """Labels and probabilities of any number of pictures, in their order; a broken one is reported in its place.

        Args:
            paths: files, folders, shards; a list of them, or whatever gives them one by one.
            top: this many labels a picture. None: the most likely one; where a picture may have several, all that reach
                their threshold.
            batch_size: pictures that go through the network at once.
            workers: threads that decode; None takes as many as there are cores, 0 decodes in turn with the network.
            tta: see `scores`.

        Raises:
            UserError: for a backbone without a head, or more labels than there are.
        """
        K = len(self.class_names)
        if not K:
            raise UserError("predict: these weights have no classifier; give a fine-tuned run")
        if top is not None and not 1 <= top <= K:
            raise UserError(f"predict: got top={top}; expected a number from 1 to {K}, for there are {counted(K, 'class')}")
        return self._predict(Sources(paths, key="predict") if not isinstance(paths, Sources) else paths, top, batch_size, workers, tta)

    def _predict(self, sources: Sources, top: int | None, batch_size: int, workers: int | None, tta: bool) -> Iterator[Prediction]:
        for found, images in self._batches(sources, batch_size, workers):
            scores = self.scores(images, tta=tta).cpu() if len(images) else torch.empty(0, len(self.class_names))
            lost, chosen = iter(scores.isnan().any(dim=1).tolist()), self._choose(scores, top)
            for path, broken in found:
                if broken:
                    yield Prediction(path, broken=broken)
                    continue
                labels, values = next(chosen)
                yield Prediction(path, broken=NOT_FINITE) if next(lost) else Prediction(path, labels, values)

    def _choose(self, scores: Tensor, top: int | None) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Names and scores for each row of `(B, K)`, the most likely first."""
        above = self.several and top is None
        values, indices = scores.topk(scores.shape[1] if above else top or 1, dim=1)
        kept = (values >= self.thresholds[indices]).sum(dim=1).tolist() if above else [values.shape[1]] * len(values)
        if above:  # thresholds differ: those that reach theirs need not be the first
            order = (values < self.thresholds[indices]).int().argsort(dim=1, stable=True)
            values, indices = values.gather(1, order), indices.gather(1, order)
        for row, numbers, count in zip(values.tolist(), indices.tolist(), kept, strict=True):
            yield tuple(self.class_names[k] for k in numbers[:count]), tuple(row[:count])

    def embeddings(self, paths: Paths, *, batch_size: int = BATCH_SIZE, workers: int | None = None) -> Iterator[Embedding]:
        """The embedding of any number of pictures, in their order; a broken one is reported in its place. Arguments as of `predict`."""
        return self._embeddings(Sources(paths, key="embed") if not isinstance(paths, Sources) else paths, batch_size, workers)

    def _embeddings(self, sources: Sources, batch_size: int, workers: int | None) -> Iterator[Embedding]:
        nothing = np.empty(0, dtype=np.float32)
        for found, images in self._batches(sources, batch_size, workers):
            vectors = iter(self._vectors(images) if len(images) else ())
            for path, broken in found:
                vector = nothing if broken else next(vectors)
                lost = not np.isfinite(vector).all()
                yield Embedding(path, nothing, broken or NOT_FINITE) if broken or lost else Embedding(path, vector)

    @torch.inference_mode()
    def _vectors(self, images: Tensor) -> np.ndarray:
        return self.embed(images).float().cpu().numpy()

    def _batches(self, sources: Sources, batch_size: int, workers: int | None) -> Iterator[tuple[list[tuple[str, str]], Tensor]]:
        """Paths with the causes of broken ones, and the pictures of the others as `(B, C, H, W)` uint8, channels-last in memory."""
        self._ready()
        threads = available_cores() if workers is None else workers
        reading = read_ahead(self._try, sources, threads=threads, ahead=2 * batch_size + threads)
        while items := list(islice(reading, batch_size)):
            pixels = [x for _, x in items if isinstance(x, np.ndarray)]
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) if pixels else torch.empty(0)
            yield [(path, "" if isinstance(x, np.ndarray) else x) for path, x in items], images

    def _ready(self) -> None:
        """Before the first batch."""

    def _try(self, source: Source) -> tuple[str, np.ndarray | str]:
        try:
            return source.name, self._pixels(source.read())
        except BrokenPicture as error:
            return source.name, str(error)
