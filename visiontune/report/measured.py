"""What a classifier was measured to be, in tables and words: `predictions.csv`, `classes.csv`, `confusion.csv` and their part of a page."""

import base64
import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from visiontune.errors import counted, readable
from visiontune.evaluate.classification import Answers, ClassResult, Confusion, most_confused
from visiontune.report.classification import FEW_CLASSES, confusion_words
from visiontune.report.numbers import score_rows

# Between the labels of a picture that has several, as `predict` writes them.
SEPARATOR = "|"
COLUMNS = [f.name for f in fields(ClassResult)]
# Classes that a page lists; classes.csv has all.
LISTED = 40


# ---------------------------------------------------------------- CSV


def write_tables(folder: Path, answers: Answers, classes: list[ClassResult], cells: list[Confusion], names: Sequence[str]) -> None:
    """`classes.csv`, and `confusion.csv` where a picture has one label. What is of nothing is an empty field."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: Iterable[Sequence[Any]] = ([name, *(_field(getattr(c, f)) for f in COLUMNS)] for name, c in zip(names, classes, strict=True))
    write_rows(folder / "classes.csv", ["class", *COLUMNS], rows)
    if answers.labels == "single":
        rows = ([names[c.truth], names[c.label], c.pictures, _field(c.share)] for c in cells)
        write_rows(folder / "confusion.csv", ["truth", "label", "pictures", "share"], rows)


def write_predictions(file: Path, answers: Answers, paths: Iterable[str], names: Sequence[str]) -> None:
    """A row a picture: path, truth, label, score. Several labels stand side by side, with their scores in the same order."""
    write_rows(
        file, ["path", "truth", "label", "score"], ([path, *row] for path, row in zip(paths, prediction_rows(answers, names), strict=True))
    )


def prediction_rows(answers: Answers, names: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    """Truth, label and score of each picture, as text."""
    truth = answers.truth.numpy()
    if answers.labels == "single":
        for t, k, score in zip(truth.tolist(), answers.label.tolist(), answers.score.tolist(), strict=True):
            yield names[t], names[k] if score == score else "", f"{score:.4f}"
        return
    for has, said, scores in zip(truth > 0, answers.said, answers.scores, strict=True):
        yes = sorted(said.nonzero()[0].tolist(), key=lambda k: -scores[k])
        true = SEPARATOR.join(names[k] for k in has.nonzero()[0])
        yield true, SEPARATOR.join(names[k] for k in yes), SEPARATOR.join(f"{scores[k]:.4f}" for k in yes)


def write_rows(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table as CSV, whatever bytes its names have."""
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        csv.writer(out, lineterminator="\n").writerows([header])
        csv.writer(out, lineterminator="\n").writerows(rows)


def _field(value: float) -> float | str:
    return value if isinstance(value, int) else "" if value != value else f"{value:.6g}"


def read_classes(folder: Path) -> dict[str, ClassResult]:
    """`classes.csv` by class name; none if there is no file."""
    rows = read_rows(folder / "classes.csv")
    counts = ("pictures", "said")
    return {r["class"]: ClassResult(**{f: int(r[f]) if f in counts else float(r[f] or "nan") for f in COLUMNS}) for r in rows}


def read_confusions(folder: Path, names: Sequence[str]) -> list[Confusion]:
    """`confusion.csv`; none if there is no file."""
    number = {name: k for k, name in enumerate(names)}
    rows = read_rows(folder / "confusion.csv")
    return [Confusion(number[r["truth"]], number[r["label"]], int(r["pictures"]), float(r["share"])) for r in rows]


def read_rows(file: Path) -> list[dict[str, str]]:
    """Of a CSV, by column; none if there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return list(csv.DictReader(text))


# ---------------------------------------------------------------- words


def pair_words(cells: Sequence[Confusion], names: Sequence[str], most: int = 3) -> str:
    """The most confused classes in a line: `cat taken for dog 34 times (17 % of cat)`."""
    worst = most_confused(list(cells), most)
    said = (f"{names[c.truth]} taken for {names[c.label]} {counted(c.pictures, 'time')} ({100 * c.share:.0f} %)" for c in worst)
    return readable(", ".join(said))


# One sentence or two each on how to read what stands above it.
CLASSES = (
    "Worst first, by F1. Precision: of the pictures of which the class was said, the share that have it. Recall: of the pictures that have "
    "it, the share of which it was said. F1 is their harmonic mean; AP, the average precision, and AUROC judge the scores alone, whatever "
    "is said. Read a row with its number of pictures in mind: of ten, one more or less is ten points."
)
CONFUSION = (
    "A row is what pictures are, a column what was said of them; numbers are pictures, colour is their share of the row: blue right, "
    "orange wrong (its square root, so that few are seen). Orange on both sides of the diagonal is a pair that looks alike; on one side "
    "alone, a class that swallows another, often the one with more training pictures."
)
MISTAKES = (
    "As the network saw them. First the wrong answers that it was most certain of: look for wrong labels, pictures of two things, and what "
    "the middle crop cut off, before blaming the network. At the end certain ones that are right: what it takes a class for."
)
RELIABILITY = (
    "Answers by their score: a bar ends where as many of them are right, the orange line is what the score says. A bar that ends below its "
    "line is too certain, above it too modest. The error is the mean distance of both, weighted by the number of answers, drawn below."
)
KEPT = "Of the weights that are kept, those of the best epoch by these same validation pictures."


def sections(folder: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The part of a page about a classifier, from the files that measuring left: title, caption, and a picture or a table each."""
    classes = read_classes(folder)
    if not classes:
        return []
    names = list(classes)
    cells = read_confusions(folder, names)
    found = [class_table(classes)]
    if result["task"] == "classify":
        found[0]["caption"] = f"{KEPT} {found[0]['caption']}"
    if cells:
        caption = f"{CONFUSION} {confusion_words(cells)}"
        found.append(picture(folder / "pictures/confusion.png", "What is taken for what", caption, wide=len(classes) > FEW_CLASSES))
        worst = most_confused(cells)
        rows = [[names[c.truth], names[c.label], f"{c.pictures:,}", f"{100 * c.share:.1f} %"] for c in worst]
        if rows:
            columns = ["what it is", "what was said", "pictures", "share of the class"]
            table = {"columns": columns, "rows": _readable(rows), "texts": 2}
            found.append({"title": "Most confused", "caption": "All pairs are in confusion.csv.", "table": table})
    for name, title, caption in (
        ("mistakes", "Certain mistakes", MISTAKES),
        ("reliability", "What a score is worth", f"{RELIABILITY} {chosen_on(result)}"),
    ):
        if (path := folder / "pictures" / f"{name}.png").is_file():
            found.append(picture(path, title, caption))
    return found


def chosen_on(result: dict[str, Any]) -> str:
    """Where temperature or thresholds come from: chosen on the pictures that they are judged on, or not."""
    elsewhere = result["task"] == "evaluate"
    if "temperature" in result:
        T = result["temperature"]
        what = f"Scores are softmax(logits / {T:g}); the temperature changes no answer, only how certain it sounds."
        where = (
            "It came with the model." if elsewhere else "It was fitted on these same pictures, so the error after it is a little flattered."
        )
    else:
        what = "A class is said from its threshold on (classes.csv), the one with the highest F1."
        same = "They were chosen on these same pictures, so F1 at the thresholds is flattered, most of all for classes with few pictures."
        where = "The thresholds came with the model." if elsewhere else same
    return f"{what} {where}"


def class_table(classes: dict[str, ClassResult], *, most: int = LISTED) -> dict[str, Any]:
    """The classes with the lowest F1 first; those without pictures last."""
    multi = any(c.threshold == c.threshold for c in classes.values())
    ordered = sorted(classes.items(), key=lambda item: (item[1].f1 != item[1].f1, item[1].f1))
    shares = ("precision", "recall", "f1", "ap", "auroc")
    rows = [
        [name, f"{c.pictures:,}", f"{c.said:,}", *(percent(getattr(c, s)) for s in shares)] + ([f"{c.threshold:.3f}"] if multi else [])
        for name, c in ordered[:most]
    ]
    columns = ["class", "pictures", "said", "precision", "recall", "F1", "AP", "AUROC"] + (["threshold"] if multi else [])
    rest = f" The {len(ordered) - most} best are in classes.csv." if len(ordered) > most else " The same in classes.csv."
    return {"title": "Classes", "caption": CLASSES + rest, "table": {"columns": columns, "rows": _readable(rows), "texts": 1}}


def percent(share: float) -> str:
    return "n/a" if share != share else f"{100 * share:.1f} %"


def _readable(rows: list[list[str]]) -> list[list[str]]:
    return [[readable(cell) for cell in row] for row in rows]


def picture(path: Path, title: str, caption: str, *, wide: bool = False) -> dict[str, Any]:
    """A PNG as a section of a page; a wide one keeps its size and scrolls."""
    return {"title": title, "caption": caption, "data": base64.b64encode(path.read_bytes()).decode(), "wide": wide}


def words(folder: Path, result: dict[str, Any]) -> str:
    """What an evaluation found, for the terminal: its numbers, the classes with the lowest F1, the most confused pairs."""
    classes = read_classes(folder)
    table = class_table(classes, most=10)["table"]
    parts = [f"{result['what']}: {counted(result['pictures'], 'picture', ',')}", text_table(score_rows(result))]
    parts.append(text_table([table["columns"], *table["rows"]]))
    if len(classes) > 10:
        parts.append(f"{len(classes) - 10} classes more in {folder / 'classes.csv'}")
    if pairs := pair_words(read_confusions(folder, list(classes)), list(classes), 5):
        parts.append(f"most confused: {pairs}")
    return "\n\n".join(readable(part) for part in parts)


def text_table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Rows with their columns under each other; the first `texts` are on the left of theirs."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )
