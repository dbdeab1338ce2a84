"""A detector judged on annotated pictures: at the end of a run, and by `python -m visiontune evaluate RUN BOXES images=FOLDER`.

B pictures of a batch, N pictures, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiontune.boxes import Boxes
from visiontune.data.decode import Reading
from visiontune.data.detection.loader import BoxPictures, make_box_loader
from visiontune.data.detection.problems import usable
from visiontune.data.detection.read import read_boxes
from visiontune.data.detection.table import BoxTable
from visiontune.data.order import EvalOrder
from visiontune.errors import UserError, near, some
from visiontune.evaluate.detection import BoxAnswers, box_curves
from visiontune.evaluate.detection_results import box_results
from visiontune.metrics.detection import find_counter
from visiontune.predict import BoxPrediction, BoxPredictor, write_box_csv
from visiontune.report import detection
from visiontune.report.boxes import load_cases
from visiontune.report.folder import clear_evaluation, evaluation_folder, identity_of

BATCH = 16
KEYS = ("images", "split")


@dataclass(frozen=True)
class BoxJudgement:
    """Answers, and the pictures that they are about.

    Attributes:
        answers: to N pictures, in their own pixels.
        found: the predictions of each.
        kept: their numbers in the table, `(N,)`; broken ones are left out.
        table: the pictures and their boxes.
        reading: how files become pixels.
        broken: path and cause of pictures that could not be read.
    """

    answers: BoxAnswers
    found: list[Boxes]
    kept: list[int]
    table: BoxTable
    reading: Reading
    broken: list[tuple[str, str]]


def judge_boxes(
    boxes_of: Callable[[Tensor], Sequence[Boxes]],
    table: BoxTable,
    *,
    size: tuple[int, int],
    reading: Reading,
    workers: int = 0,
    batch_size: int = BATCH,
    max_detections: int = 100,
    progress: Callable[[int], None] = lambda done: None,
) -> BoxJudgement:
    """Ask a detector about every picture of a table.

    Args:
        boxes_of: `(B, C, H, W)` uint8 -> boxes with scores, in these pixels.
        table: what there is.
        size: `(height, width)` that pictures are fitted into.
        reading: how files become pixels.
        workers: loader processes.
        batch_size: pictures at a time.
        max_detections: of a picture and class that count.
        progress: told the number of pictures that are done.

    Raises:
        UserError: if no picture can be read.
    """
    found: list[Boxes] = []
    kept: list[int] = []
    broken: list[tuple[str, str]] = []
    done = 0
    loader = make_box_loader(BoxPictures(table, size, reading=reading), EvalOrder(len(table), batch_size), workers=workers)
    with torch.inference_mode():
        for batch in loader:
            broken += batch["broken"]
            if len(batch["images"]):
                said = boxes_of(batch["images"])
                found += [box.outside(b.to("cpu")).with_area() for box, b in zip(batch["letterbox"], said, strict=True)]
                kept += batch["index"].tolist()
            done = min(len(table), done + batch_size)
            progress(done)
    if not kept:
        raise UserError(f"evaluate: no picture of {table.pictures.root} can be read: {some((f'{p} ({c})' for p, c in broken), 5)}")
    answers = BoxAnswers.of(
        found,
        [table.boxes_of(i) for i in kept],
        num_classes=len(table.classes),
        crowd=[table.crowd_of(i) for i in kept],
        area=[table.area_of(i) for i in kept],
        max_detections=max_detections,
    )
    return BoxJudgement(answers, found, kept, table, reading, broken)


def write_boxes(found: BoxJudgement, folder: Path, *, threshold: float | None = None, predictions: Path | None = None) -> dict[str, Any]:
    """`predictions.csv`, `classes.csv`, `sizes.csv`, `confusion.csv`, and in `pictures/` curves, the matrix and the worst pictures.

    Args:
        found: what is written about.
        folder: made if missing.
        threshold: lowest score of what is said; None: the one with the highest mean F1.
        predictions: another file than `predictions.csv` in there.

    Returns:
        the numbers, for `result.json`.
    """
    curves = box_curves(found.answers)
    threshold = curves.best_threshold if threshold is None else threshold
    names, path = found.table.classes, found.table.pictures.path
    detection.write(
        folder, found.answers, curves, threshold, names, partial(load_cases, found.table, index=found.kept, reading=found.reading)
    )
    rows = (BoxPrediction(path(i), boxes) for i, boxes in zip(found.kept, found.found, strict=True))
    write_box_csv(rows, predictions or folder / "predictions.csv", names)
    return box_results(found.answers, curves, threshold)


# ---------------------------------------------------------------- the verb


def evaluate_boxes(
    path: str,
    model: BoxPredictor,
    boxes: str,
    *,
    out: str | None = None,
    csv: str | None = None,
    overrides: Sequence[str] = (),
    workers: int = 0,
    progress: Callable[[int], Callable[[int], None]] = lambda total: lambda done: None,
) -> tuple[dict[str, Any], Path, list[str]]:
    """Judge a detector on annotated pictures, and write what was found.

    Args:
        path: where it comes from.
        model: the detector.
        boxes: COCO's .json, a folder of Pascal VOC's .xml or of YOLO's .txt.
        out: folder; None: `evaluate/NAME` in the run, see `evaluation_folder`.
        csv: another file for the predictions.
        overrides: `images=FOLDER`, which must be there, and `split=names.txt`.
        workers: loader processes.
        progress: made with the number of pictures, told how many are done.

    Returns:
        The content of `result.json`, the folder, and what was met on the way.

    Raises:
        UserError: if pictures or annotations are missing or have other classes, or the folder holds something else.
    """
    from visiontune.report.page import write_evaluation

    find_counter()  # before any picture is looked at
    given: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"evaluate: got {text!r}; of annotations are allowed: images=FOLDER, split=names.txt{near(key, KEYS)}")
        given[key] = value
    if "images" not in given:
        raise UserError(f"evaluate: {path} detects: {boxes} is taken for annotations; add images=FOLDER, where their pictures are")
    part = Path(given["split"]).stem if "split" in given else None
    folder = evaluation_folder(path, boxes, out, part)
    read = read_boxes(given["images"], boxes, split=given.get("split"), classes=model.class_names, key="evaluate", reading=model.reading)
    table = usable(read, least=0.0, key="evaluate")
    found = judge_boxes(
        model,
        table,
        size=model.image_size,
        reading=model.reading,
        workers=workers,
        max_detections=model.max_detections,
        progress=progress(len(table)),
    )
    clear_evaluation(folder)
    notes = list(table.notes)
    result: dict[str, Any] = {
        "task": "evaluate",
        "what": f"{path} on {boxes}" + (f", part {part}" if part else ""),
        "model": str(Path(path).absolute()),
        "data": boxes,
        **identity_of(boxes, part),
    }
    result |= write_boxes(found, folder, threshold=model.shown_from, predictions=Path(csv) if csv else None)
    if absent := [name for name, count in zip(table.classes, table.class_counts().tolist(), strict=True) if not count]:
        notes.append(f"classes without a box in {boxes}, left out of means: {some(absent, 10)}")
    result["pictures"] = found.answers.N
    result, notes = write_evaluation(folder, result, found.broken, notes)
    return result, folder, notes
