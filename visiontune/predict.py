"""Load a run or an exported folder, and use it."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.folder import list_pictures
from visiontune.data.read import read_file
from visiontune.data.shards import is_shards
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError
from visiontune.run import Run


@dataclass(frozen=True)
class Prediction:
    """One picture's outcome.

    Attributes:
        path: of the picture.
        label: name of the most likely class; empty for a broken picture.
        score: its probability; nan for a broken picture.
        broken: why the picture could not be read, or empty.
    """

    path: str
    label: str
    score: float
    broken: str = ""


class Model(nn.Module):
    """A timm model with its own preprocessing.

    Attributes:
        class_names: in the order of the outputs; empty for a backbone.
        image_size: `(height, width)` in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        cfg = config["pretrained_cfg"]
        self.network = network
        self.class_names: tuple[str, ...] = tuple(config.get("label_names", ()))
        self.image_size: tuple[int, int] = tuple(cfg["input_size"][1:])
        unusual = {k: tuple(v) for k, v in config.get("reading", {}).items()}
        self.reading = Reading(channels=cfg["input_size"][0], **unusual)
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> logits `(B, K)`, or embeddings `(B, D)` of a backbone without a head."""
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        return self.network(images) if self.class_names else backbones.embed(self.network, images)

    def read(self, path: str | Path) -> Tensor:
        """A picture file as `(C, H, W)` uint8, cut and resized as in validation. Raises BrokenPicture."""
        view = CenterCrop(self.image_size)(Picture(read_file(str(path)), self.reading))[0]
        return torch.from_numpy(view).permute(2, 0, 1)

    @torch.no_grad()
    def predict(self, paths: Iterable[str | Path], *, batch_size: int = 64) -> Iterator[Prediction]:
        """Class and probability of any number of pictures, in their order; a broken one is reported in its place.

        Raises:
            UserError: for a backbone without a head.
        """
        if not self.class_names:
            raise UserError("predict: these weights have no classifier; give a fine-tuned run")
        self.eval()
        waiting: list[tuple[str, Tensor | None, str]] = []
        for path in paths:
            try:
                waiting.append((str(path), self.read(path), ""))
            except BrokenPicture as error:
                waiting.append((str(path), None, str(error)))
            if len(waiting) == batch_size:
                yield from self._flush(waiting)
                waiting = []
        yield from self._flush(waiting)

    def _flush(self, waiting: list[tuple[str, Tensor | None, str]]) -> Iterator[Prediction]:
        images = [image for _, image, _ in waiting if image is not None]
        outcome: Iterator[tuple[float, int]] = iter(())
        if images:
            scores, labels = self(torch.stack(images).to(self.mean.device)).float().softmax(dim=1).max(dim=1)
            outcome = iter(zip(scores.tolist(), labels.tolist(), strict=True))
        for path, image, cause in waiting:
            if image is None:
                yield Prediction(path, "", float("nan"), cause)
            else:
                score, label = next(outcome)
                yield Prediction(path, self.class_names[label], score)


def load(path: str | Path) -> Model:
    """A finished run, one stage of it, or an exported folder as a module with its own preprocessing, in evaluation mode.

    A fine-tuned run gives its classifier, a pretrained one its backbone; of a staged run the last stage is meant.

    Raises:
        UserError: if there are no weights.
    """
    folder = Path(path)
    if (folder / "recipe.yaml").is_file():
        run = Run(folder)
        if stages := run.stage_runs():
            run = list(stages.values())[-1]
        folder = run.model if run.model.is_dir() else run.backbone
    config = backbones.read_config(folder)
    if config is None:
        raise UserError(f"load: {path} is neither a finished run nor a folder with config.json and model.safetensors")
    return Model(backbones.rebuild(folder), config).eval()


def find_files(paths: Iterable[str]) -> Iterator[str]:
    """Picture files, and those inside folders, sorted."""
    for path in paths:
        if is_shards(path):
            raise UserError(f"predict: {path} is shards; give pictures or folders of them (tar -xf unpacks shards)")
        if Path(path).is_dir():
            table = list_pictures(path, key="predict")
            yield from map(table.path, range(len(table)))
        else:
            yield path


def write_csv(predictions: Iterable[Prediction], file: Any) -> tuple[int, list[Prediction]]:
    """`path,label,score` rows; broken pictures are left out and returned, with the number of rows."""
    writer, count, broken = csv.writer(file), 0, []
    writer.writerow(["path", "label", "score"])
    for p in predictions:
        if p.broken:
            broken.append(p)
        else:
            writer.writerow([p.path, p.label, f"{p.score:.4f}"])
            count += 1
    return count, broken
