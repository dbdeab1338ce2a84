"""The two ends of a run: quiet libraries and a first look at the pictures; weights and figures to keep."""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visiontune.build import Tables
from visiontune.callbacks.checkpoints import Checkpoints
from visiontune.callbacks.embedding import EmbeddingWatch
from visiontune.callbacks.probe import Probe
from visiontune.callbacks.progress import Cost
from visiontune.data.datamodule import PictureData
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection.datamodule import BoxData
from visiontune.data.read import read_bytes
from visiontune.data.resize import resize
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError, counted
from visiontune.evaluate.classification import Answers, confusions, fitted
from visiontune.export import image_statistics, save_detector_folder, save_timm_folder
from visiontune.finetune.classify import Classifier
from visiontune.finetune.detect import Detector
from visiontune.measure import BATCH, judge, judge_boxes, write, write_boxes
from visiontune.measure.boxes import BATCH as BOX_BATCH
from visiontune.module import Module
from visiontune.recipe import DetectRecipe, PretrainRecipe, Recipe
from visiontune.report.boxes import training_pictures
from visiontune.report.figures import picture_rows
from visiontune.report.measured import pair_words
from visiontune.run import Run


def silence() -> None:
    """Lightning's tips and advice that does not apply here; its warnings of other kinds stay."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",  # the number of workers is ours, with a reason
        ".*ended before the epoch ended and your dataloader is.*",  # our order resumes by the step
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",  # pretraining has none; its data module has the method
        ".*is smaller than the logging interval.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # a frozen backbone is
        ".*Checkpoint directory .* exists.*",
        ".*`weights_only` was not set.*",
        ".*Please use the new API settings to control TF32.*",
        ".*You have overridden `on_before_batch_transfer` in both.*",  # the data module's batches need no second look
        ".*Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*",  # fp16 leaves its first steps out
        ".*isinstance\\(treespec, LeafSpec\\).*",  # torch's own deprecation inside Lightning
    ):
        warnings.filterwarnings("ignore", message=text)


def draw_views(data: PictureData, names: Sequence[str], folder: Path) -> None:
    """Training pictures as the network will see them."""
    if isinstance(data, BoxData):
        training_pictures(data.training_set(), names, folder / "training.png")
    else:
        picture_rows(first_pictures(data, 8, clean=False), folder / "views.png")


def first_pictures(data: PictureData, count: int, *, clean: bool) -> Any:
    """The first readable training pictures, spread over the folder: `(count, C, H, W)` uint8, or rows of them whole and augmented."""
    size = data.train_transform.size  # type: ignore[attr-defined]
    whole = CenterCrop(size)
    rng = np.random.default_rng(data.seed)
    kept, rows = [], []
    n = len(data.train)
    for start in range(0, n, max(1, n // count)):
        try:
            picture = Picture(read_bytes(data.train, start), data.reading)
            kept.append(whole(picture)[0])
            rows.append([] if clean else data.train_transform(picture, rng))
        except BrokenPicture:
            kept = kept[: len(rows)]
            continue
        if len(kept) == count:
            break
    if not kept:  # nothing to show; the loader will tell why, with the paths
        nothing = np.zeros((*size, data.reading.channels), dtype=np.uint8)
        kept, rows = [nothing], [[nothing]]
    pictures = _stack(kept)
    if clean:
        return pictures
    small = [f" ({view.shape[0]}x{view.shape[1]})" if view.shape[:2] != tuple(size) else "" for view in rows[0]]
    names = ["augmented"] if len(rows[0]) == 1 else [f"view {i + 1}{told}" for i, told in enumerate(small)]
    # small crops are shown at the size of the others
    views = {name: _stack([resize(v, size) for v in view]) for name, view in zip(names, zip(*rows, strict=True), strict=True)}
    return {name: x.float() / 255 for name, x in {"picture": pictures, **views}.items()}


def _stack(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def load_kept(module: Module, checkpoint: Path) -> Module:
    """A fresh module with the weights of a checkpoint: the best by the validation metric, else the last.

    Args:
        module: a fresh one; the trained one may be in parts on several devices.
        checkpoint: of the same recipe.
    """
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return module.eval()


def measure_kept(module: Module, run: Run, data: PictureData, device: torch.device) -> tuple[Answers | None, dict[str, Any]]:
    """The weights that are kept judge the validation pictures once more, and temperature or thresholds are chosen on them.

    Returns:
        The answers, and the numbers for `result.json`; nothing for a module without classes, and where no picture can be read.
    """
    if isinstance(module, Detector) and isinstance(data, BoxData):
        return None, _measure_boxes(module, run, data, device)
    if not isinstance(module, Classifier) or data.val is None:
        return None, {}
    assert isinstance(data.val_transform, CenterCrop)
    batch = min(BATCH, data.val_batch)
    module.to(device)
    try:
        found = judge(
            lambda images: module.logits(images.to(device)), data.val, module.class_names,
            view=data.val_transform, reading=data.reading, workers=data.workers, batch_size=batch,
        )  # fmt: skip
    except UserError as error:  # no validation picture can be read: the run is worth keeping all the same
        run.say(str(error))
        return None, {}
    module.cpu()
    data.broken.note(found.broken)
    found = replace(found, answers=fitted(found.answers))
    if found.answers.words_on_lost:
        run.say(f"warning: {found.answers.words_on_lost}; lower optim.lr, or take trainer.precision=32-true")
    scores = write(found, run.folder)
    scores |= {"val_loss": scores.pop("cross_entropy"), "val_pictures": found.answers.N}
    if found.answers.labels == "single" and (pairs := pair_words(confusions(found.answers), found.names)):
        run.say(f"most confused: {pairs}")
    return found.answers, scores


def _measure_boxes(module: Detector, run: Run, data: BoxData, device: torch.device) -> dict[str, Any]:
    """The same of boxes; the threshold that people are shown is chosen."""
    if data.val_boxes is None:
        return {}
    module.to(device)
    try:
        found = judge_boxes(
            lambda images: module.predict(images.to(device)), data.val_boxes, size=data.image_size, reading=data.reading,
            workers=data.workers, batch_size=min(BOX_BATCH, data.val_batch), max_detections=module.max_detections,
        )  # fmt: skip
    except UserError as error:  # no validation picture can be read: the run is worth keeping all the same
        run.say(str(error))
        return {}
    module.cpu()
    data.broken.note(found.broken)
    return write_boxes(found, run.folder) | {"val_pictures": found.answers.N}


def export_weights(module: Module, run: Run, reading: Reading, answers: Answers | None = None, *, shown_from: float | None = None) -> None:
    """`weights/backbone`, and `weights/model` where there is a head.

    Args:
        module: with the weights to keep.
        run: where they go.
        reading: how its pictures became pixels, for whoever uses the weights.
        answers: to the validation pictures, with the temperature or the thresholds that were chosen on them.
        shown_from: likewise of boxes, the score from which they are shown to people.
    """
    mean, std = image_statistics(module)
    backbone = module.release()
    heads: Any = backbone.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    save_timm_folder(backbone, run.backbone, module.spec, mean=mean, std=std, reading=reading.unusual(), without=[f"{h}." for h in heads])
    if isinstance(module, Detector):
        network: Any = module.trained if module.average is None else module.average
        save_detector_folder(
            network, run.model, module.spec, options=dict(module.hparams), mean=mean, std=std, class_names=module.class_names,
            reading=reading.unusual(), shown_from=shown_from,
        )  # fmt: skip
    if isinstance(module, Classifier):
        names = module.class_names
        temperature, thresholds = (1.0, None) if answers is None else (answers.temperature, answers.thresholds)
        save_timm_folder(
            backbone, run.model, module.spec, mean=mean, std=std, reading=reading.unusual(), num_classes=len(names), class_names=names,
            labels=module.labels, temperature=temperature, thresholds=() if thresholds is None else thresholds.tolist(),
        )  # fmt: skip


def result_of(
    recipe: Recipe,
    module: Module,
    tables: Tables,
    steps: int,
    checkpoints: Checkpoints,
    probe: Probe | None,
    watch: EmbeddingWatch | None,
    cost: Cost,
    memory: int,
) -> dict[str, Any]:
    """The content of `result.json`."""
    seen = steps * recipe.data.batch_size
    result: dict[str, Any] = {"task": recipe.task}
    start = recipe.backbone.weights
    origin = "random weights" if start == "random" else "timm's weights" if start == "timm" else f"the weights of {_origin(start)}"
    epochs = counted(recipe.epochs or 0, "epoch")
    if isinstance(recipe, PretrainRecipe):
        taught = f", taught by {_origin(teacher)}" if (teacher := getattr(recipe.method, "teacher", None)) else ""
        result["what"] = f"{recipe.method.name} pretraining of {recipe.backbone.name} from {origin}{taught}, {epochs}"
    elif isinstance(recipe, DetectRecipe):
        boxes = counted(len(tables.boxes[0].label) if tables.boxes else 0, "box", ",")
        pictures = counted(len(tables.train), "picture", ",")
        result["what"] = f"{recipe.head.name} on {boxes} in {pictures}, {recipe.backbone.name} from {origin}, {epochs}"
    else:
        tuned = "classifier" if recipe.tune == "head" else "fine-tuning" if recipe.tune == "full" else f"fine-tuning ({recipe.tune})"
        result["what"] = f"{tuned} on {counted(len(tables.train), 'label')}, {recipe.backbone.name} from {origin}, {epochs}"
    if checkpoints.best is not None:
        # The best epoch was chosen on the pictures that it is judged on: the last epoch's score stands beside it.
        result |= {name.removeprefix("val/"): value for name, value in checkpoints.best_metrics.items() if name != "val/loss"}
        monitor = str(checkpoints.monitor).removeprefix("val/")
        result |= {"monitor": monitor, f"{monitor}_last": checkpoints.latest[f"val/{monitor}"]}
        result |= {"best_step": checkpoints.best_step, "val_pictures": len(tables.val or ())}
    if checkpoints.stopped is not None:
        result["stopped_early"] = checkpoints.stopped
    if probe is not None:
        result |= probe.latest | {f"{k}_start": v for k, v in probe.start.items()}
    if watch is not None:
        for end, scores in (("", watch.latest), ("_start", watch.start)):
            result |= {k.replace("/", "_") + end: v for k, v in scores.items()}
        result["warnings"] = list(watch.said.values())
    for metric, name in (("train/loss", "loss"), ("train/baseline", "loss_baseline"), ("val/loss", "val_loss"), ("val/top5", "top5_last")):
        if metric in checkpoints.latest:
            result[name] = checkpoints.latest[metric]
    result |= {
        "seconds": round(cost.seconds, 2),
        "images_seen": seen,
        "images_per_second": round(seen / cost.seconds, 1) if cost.seconds else 0.0,
        "peak_memory_bytes": memory,
        "parameters": sum(p.numel() for p in module.backbone.parameters()),
    }
    return {k: None if v != v else v for k, v in result.items()}  # JSON has no nan


def _origin(path: str) -> str:
    """A run's name for its `weights/backbone`, else the file's."""
    parts = Path(path).parts
    return parts[-3] if parts[-2:] == ("weights", "backbone") else parts[-1]
