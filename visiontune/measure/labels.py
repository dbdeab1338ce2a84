"""A classifier judged on labelled pictures: at the end of a run, and by `python -m visiontune evaluate RUN DATA`.

B pictures of a batch, N pictures, K classes.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiontune.checks import TABLE_KEYS, data_of
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError, some
from visiontune.evaluate import classification as judged
from visiontune.evaluate.classification import Answers, Case
from visiontune.recipe.schema import table_settings
from visiontune.recipe.sections import Data
from visiontune.report import classification as figures
from visiontune.report.classification import Shown, shortened
from visiontune.report.figures import as_image
from visiontune.report.folder import clear_evaluation, evaluation_folder, identity_of
from visiontune.report.measured import write_predictions, write_tables
from visiontune.run import Run

BATCH = 64
# What mistakes.png shows: titles, which answers, how many at most (six fill a line).
SINGLE_GROUPS: tuple[tuple[str, dict[str, bool], int], ...] = (
    ("Wrong, and most certain", {"right": False}, 24),
    ("Right, and most certain", {"right": True}, 6),
)
MULTI_GROUPS: tuple[tuple[str, dict[str, bool], int], ...] = (
    ("Said and not there, highest scores first", {"right": False, "said": True}, 12),
    ("There and not said, lowest scores first", {"right": False, "said": False}, 12),
    ("Said and there, highest scores first", {"right": True, "said": True}, 6),
)


@dataclass(frozen=True)
class Judgement:
    """Answers, and the pictures that they are about.

    Attributes:
        answers: to N pictures.
        kept: their numbers in the table, `(N,)`; broken ones are left out.
        table: the pictures.
        names: of the K classes.
        view: how the network sees a picture.
        reading: how files become pixels.
        broken: path and cause of pictures that could not be read.
    """

    answers: Answers
    kept: list[int]
    table: PictureTable
    names: tuple[str, ...]
    view: CenterCrop
    reading: Reading
    broken: list[tuple[str, str]]


def judge(
    logits_of: Callable[[Tensor], Tensor],
    table: PictureTable,
    names: Sequence[str],
    *,
    view: CenterCrop,
    reading: Reading,
    workers: int = 0,
    batch_size: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Ask a classifier about every picture of a table.

    Args:
        logits_of: `(B, C, H, W)` uint8 -> `(B, K)`.
        table: with labels, numbered as `names`.
        names: K.
        view: makes the one clean view of a picture.
        reading: how files become pixels.
        workers: loader processes.
        batch_size: pictures at a time.
        progress: told the number of pictures that are done.

    Raises:
        UserError: if no picture can be read.
    """
    parts, kept, broken, done = [], [], [], 0
    with torch.inference_mode():
        for batch in make_loader(Pictures(table, view, reading=reading), EvalOrder(len(table), batch_size), workers=workers):
            count = min(batch_size, len(table) - done)
            gone = {path for path, _ in batch["broken"]}
            kept += [i for i in range(done, done + count) if not gone or table.path(i) not in gone]
            broken += batch["broken"]
            if batch["images"]:
                parts.append(logits_of(batch["images"][0]).float().cpu())
            done += count
            progress(done)
    if not parts:
        raise UserError(f"evaluate: no picture of {table.root} can be read: {some((f'{p} ({c})' for p, c in broken), 5)}")
    source = table.labels if table.targets is None else table.targets
    assert source is not None, "the caller asks for labels"
    truth = torch.from_numpy(source[kept])
    logits = torch.cat(parts)
    assert logits.shape == (len(truth), len(names))
    return Judgement(Answers(logits, truth.long() if truth.ndim == 1 else truth), kept, table, tuple(names), view, reading, broken)


def write(found: Judgement, folder: Path, predictions: Path | None = None) -> dict[str, Any]:
    """`predictions.csv`, `classes.csv`, `confusion.csv`, and in `pictures/` the matrix, mistakes and reliability; returns the numbers.

    What is of nothing is None, and has no picture.

    Args:
        found: what is written about.
        folder: made if missing.
        predictions: another file than `predictions.csv` in there.
    """
    answers, names = found.answers, found.names
    classes = judged.class_results(answers)
    cells = judged.confusions(answers) if answers.labels == "single" else []
    write_tables(folder, answers, classes, cells, names)
    write_predictions(predictions or folder / "predictions.csv", answers, map(found.table.path, found.kept), names)
    pictures = folder / "pictures"
    if cells:
        figures.confusion(cells, names, pictures / "confusion.png")
    shown = _shown(found)
    if any(group for group, _ in shown.values()):
        figures.cases(shown, pictures / "mistakes.png")
    panels = {"scores": judged.calibration(answers)}
    if answers.labels == "single":
        before = "as trained" if answers.temperature != 1 else "scores"
        panels = {before: judged.calibration(answers, temperature=1.0)}
        if answers.temperature != 1:
            panels[f"at temperature {answers.temperature:g}"] = judged.calibration(answers)
    if not answers.lost.any():
        figures.reliability(panels, pictures / "reliability.png")
    return {name: None if value != value else value for name, value in judged.results(answers, classes).items()}


def _shown(found: Judgement) -> dict[str, tuple[list[Shown], bool]]:
    """Groups of answers to look at, and whether they were right."""
    groups = {}
    for title, which, most in SINGLE_GROUPS if found.answers.labels == "single" else MULTI_GROUPS:
        shown = []
        for case in judged.certain_cases(found.answers, **which, most=most):
            with contextlib.suppress(BrokenPicture):  # it was there a minute ago
                pixels = found.view(Picture(read_bytes(found.table, found.kept[case.picture]), found.reading))[0]
                shown.append(Shown(as_image(torch.from_numpy(pixels).permute(2, 0, 1) / 255), *_words(found, case)))
        groups[title] = (shown, which["right"])
    return groups


def _words(found: Judgement, case: Case) -> tuple[str, str]:
    """What was said of a picture with which score, and what it is."""
    name, truth = shortened(found.names[case.label], 16), found.answers.truth[case.picture]
    if found.answers.labels == "single":
        return f"{name} {case.score:.2f}", f"is {shortened(found.names[int(truth)], 18)}"
    has = [found.names[k] for k in truth.nonzero().flatten().tolist()]
    said = f"{name} {case.score:.2f}" if case.said else f"not {shortened(name, 12)} {case.score:.2f}"
    return said, shortened(f"is {', '.join(has)}" if has else "has no label", 24)


# ---------------------------------------------------------------- the verb


def evaluate(
    path: str,
    data: str,
    *,
    out: str | None = None,
    csv: str | None = None,
    tta: bool = False,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    part: str | None = None,
    progress: Callable[[int], Callable[[int], None]] = lambda total: lambda done: None,
) -> tuple[dict[str, Any], Path, list[str]]:
    """Judge a run or an exported model on labelled pictures, and write what was found.

    Args:
        path: what `visiontune.load` takes.
        data: what `data.val` of a recipe takes: class folders, shards, a table; for a detector annotations, see `evaluate_boxes`.
        out: folder; None: `evaluate/NAME` in the run, see `evaluation_folder`.
        csv: another file for the predictions.
        tta: judge the mean of the scores of each picture and its mirror image.
        device: where to compute.
        overrides: of a table, which column holds what (`data.columns.label=species`); what is not said is as in the run's recipe.
        part: of a table with a column of parts, the rows of one.
        progress: made with the number of pictures, told how many are done.

    Returns:
        The content of `result.json`, the folder, and what was met on the way.

    Raises:
        UserError: if the model has no classes, the data no labels or other ones, or the folder holds something else.
    """
    from visiontune.data.folder import list_pictures
    from visiontune.data.loader import auto_workers
    from visiontune.data.parts import align_labels
    from visiontune.measure.boxes import evaluate_boxes
    from visiontune.predict import BoxPredictor, load
    from visiontune.report.page import write_evaluation

    model = load(path, device=device)
    if isinstance(model, BoxPredictor):
        if tta or part is not None:
            raise UserError(f"evaluate: {path} detects, for which there is no --{'tta' if tta else 'part'}; leave it out")
        return evaluate_boxes(path, model, data, out=out, csv=csv, overrides=overrides, workers=auto_workers(1)[0], progress=progress)
    if not model.class_names:
        raise UserError(
            f"evaluate: {path} has no classifier, it is a backbone; give a fine-tuned run, or judge it by: python -m visiontune probe"
        )
    folder = evaluation_folder(path, data, out, part)
    settings = table_settings(_data_of(path, overrides))
    if part is None:
        settings = replace(settings, split=None)  # all rows, not those for training
    listed = list_pictures(data, key="evaluate", labelled=True, fewest=1, settings=settings, several=model.several or None, part=part)
    table = align_labels(listed, model.class_names, key="evaluate", several=model.several)
    notes = list(listed.notes)
    if model.several and listed.targets is None:
        notes.append(f"{data} has one label a picture and the model gives several: the others are taken as not there")
    found = judge(
        mirrored(model, several=model.several, temperature=model.temperature) if tta else model,
        table,
        model.class_names,
        view=model.view,
        reading=model.reading,
        workers=auto_workers(1)[0],
        progress=progress(len(table)),
    )
    thresholds = model.thresholds.double().numpy() if model.several else None
    found = replace(found, answers=replace(found.answers, temperature=model.temperature, thresholds=thresholds))
    clear_evaluation(folder)
    result: dict[str, Any] = {
        "task": "evaluate",
        "what": f"{path} on {data}" + (f", part {part}" if part else "") + (", each picture with its mirror image" if tta else ""),
        "model": str(Path(path).absolute()),
        "data": data,
        **identity_of(data, part),
        "tta": tta,
    }
    result |= write(found, folder, Path(csv) if csv else None)
    if found.answers.words_on_lost:
        notes.append(f"{path}: {found.answers.words_on_lost}")
    absent = [name for name, count in zip(found.names, table.class_counts(), strict=True) if not count]
    if absent:
        notes.append(f"classes without a picture in {data}, left out of means: {some(absent, 10)}")
    result["pictures"] = found.answers.N
    result, notes = write_evaluation(folder, result, found.broken, notes)
    return result, folder, notes


def _data_of(path: str, overrides: Sequence[str]) -> Data:
    """How a table is read: as by the recipe of the run, where it is one, with what the command says on top."""
    given = data_of(overrides, verb="evaluate", keys=TABLE_KEYS)
    run = Run(path)
    if not run.recipe_file.is_file():
        return given
    if stages := run.stage_runs():
        run = list(stages.values())[-1]
    own = run.recipe().data
    assert isinstance(own, Data), "a detector's data are judged elsewhere"
    columns = own.columns.model_copy(update=given.columns.model_dump(exclude_unset=True))
    return own.model_copy(update=given.model_dump(exclude_unset=True, exclude={"train"}) | {"columns": columns})


def mirrored(logits_of: Callable[[Tensor], Tensor], *, several: bool, temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Logits whose scores at this temperature are the mean of the scores of a picture and of its mirror image."""

    def both(images: Tensor) -> Tensor:
        # on the CPU, for mps has no float64
        views = torch.stack([logits_of(x).cpu().double() for x in (images, images.flip(-1))]) / temperature
        if several:
            return temperature * torch.logit(views.sigmoid().mean(dim=0), eps=1e-12)
        return temperature * (views.log_softmax(dim=2).logsumexp(dim=0) - torch.log(torch.tensor(2.0)))

    return both
