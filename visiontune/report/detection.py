"""What a detector was measured to be: `classes.csv`, `sizes.csv`, `confusion.csv`, its pictures, and its part of a page. K classes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from visiontune.errors import counted, readable
from visiontune.evaluate.classification import Confusion
from visiontune.evaluate.detection import RECALLS, THRESHOLDS, BoxAnswers, BoxCurves
from visiontune.evaluate.detection_results import BoxCase, BoxClass, SizeClass, box_classes, box_confusion, size_classes, worst_pictures
from visiontune.report import boxes as drawing
from visiontune.report.classification import FEW_CLASSES, confusion, confusion_words, save_named, shortened
from visiontune.report.figures import INK, plt
from visiontune.report.measured import KEPT, LISTED, percent, picture, read_rows, text_table, write_rows
from visiontune.report.numbers import score_rows

COLUMNS = [f.name for f in fields(BoxClass)]
SIZE_COLUMNS = [f.name for f in fields(SizeClass)]
SIZE_WORDS = {"small": "up to 32 x 32 pixels", "medium": "up to 96 x 96 pixels", "large": "larger"}
# What stands for no box in the confusion matrix: in its last row, and in its last column.
NOTHING = ("nothing there", "missed")
# Curves that have a colour and a name of their own; of more classes the worst are drawn.
CURVES = len(drawing.PALETTE)

CLASSES = (
    "Worst first, by AP. Boxes: how many there are; said: predictions at the threshold; precision: the share of those that are right; "
    "recall: the share of the boxes that were found; F1 is their harmonic mean. AP is COCO's average precision, the mean over overlaps "
    "(IoU) from 0.5 to 0.95, AP50 that at 0.5; both judge all scores, whatever the threshold. AP50 far above AP: boxes that are found, but "
    "lie loosely."
)
SIZES = (
    "By area in pixels of the original pictures, as COCO has it. If small ones are much worse, a larger data.image_size or tiles help more "
    "than a longer training. Recall is the mean over overlaps from 0.5 to 0.95, at any score: what it lacks, no threshold brings back."
)
OVER_SCORES = (
    "Left: the precision that is left when so many of the boxes are found; the area under a curve is its AP50. A curve that ends early "
    "never finds the rest at any score; one that starts low is wrong where it is most certain: look for missing labels. Right: F1 for "
    "every threshold; the dashed line is the one that tables and pictures here use."
)
CONFUSION = (
    "A row is what is there, a column what was said of it at the threshold; numbers are boxes, colour is their share of the row: blue "
    "right, orange wrong (its square root, so that few are seen). The last column holds boxes that were missed, the last row predictions "
    "where there is nothing, a second one of the same box among them."
)
WORST = (
    "The pictures with most mistakes at the threshold: on the left what is there, on the right what was said. In crowded pictures only "
    "mistakes are named. Orange boxes on the right that look right are missing labels: correct those before anything else."
)


# ---------------------------------------------------------------- everything into a folder


def write(
    folder: Path,
    answers: BoxAnswers,
    curves: BoxCurves,
    threshold: float,
    names: Sequence[str],
    load: Callable[[list[BoxCase]], list[drawing.DrawnCase]],
) -> None:
    """Tables and pictures of a measurement, for `sections` to find.

    Args:
        folder: of the run or the evaluation.
        answers: what was measured.
        curves: of them.
        threshold: for what is said at one score, such as `curves.best_threshold`.
        names: of the K classes.
        load: gives cases their pictures, see `visiontune.report.boxes.load_cases`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = box_classes(answers, curves, threshold)
    write_rows(folder / "classes.csv", ["class", *COLUMNS], _rows(zip(names, classes, strict=True), COLUMNS))
    write_rows(folder / "sizes.csv", SIZE_COLUMNS, ([_field(getattr(s, f)) for f in SIZE_COLUMNS] for s in size_classes(answers)))
    cells = confusion_cells(box_confusion(answers, threshold))
    known = [*names, ""]
    rows = ([known[c.truth], known[c.label], c.pictures, _field(c.share)] for c in cells)
    write_rows(folder / "confusion.csv", ["truth", "label", "boxes", "share"], rows)

    pictures = folder / "pictures"
    if len(answers.true):
        draw_curves(curves, threshold, names, pictures / "precision_recall.png")
    if cells:
        confusion(cells, names, pictures / "confusion.png", nothing=NOTHING)
    if drawn := load(worst_pictures(answers, threshold, most=6)):
        drawing.truth_beside_found(drawn, names, pictures / "worst.png")


def confusion_cells(matrix: np.ndarray) -> list[Confusion]:
    """A matrix without its zeros; `pictures` counts boxes."""
    of_row = matrix.sum(axis=1)
    return [
        Confusion(t, k, int(matrix[t, k]), float(matrix[t, k] / of_row[t]))
        for t, k in zip(*map(np.ndarray.tolist, np.nonzero(matrix)), strict=True)
    ]


def _rows(named: Iterable[tuple[str, Any]], columns: Sequence[str]) -> Iterable[list[Any]]:
    return ([name, *(_field(getattr(x, f)) for f in columns)] for name, x in named)


def _field(value: Any) -> Any:
    """What is of nothing is an empty field."""
    return value if not isinstance(value, float) else "" if value != value else f"{value:.6g}"


# ---------------------------------------------------------------- curves


def draw_curves(curves: BoxCurves, threshold: float, names: Sequence[str], path: Path) -> None:
    """Precision over recall, and F1 over the score; the mean is bold. Of many classes the worst by AP50 are named, the others grey."""
    ap50 = curves.precision.mean(axis=1)
    there = np.flatnonzero(~np.isnan(ap50))
    named = there if len(there) <= CURVES else there[np.argsort(ap50[there], kind="stable")][: CURVES - 1]
    figure, axes = plt.subplots(1, 2, figsize=(8.7, 4.1), sharey=True)
    for axis, x, each, mean in (
        (axes[0], RECALLS, curves.precision, curves.mean_precision),
        (axes[1], THRESHOLDS, curves.f1, curves.mean_f1),
    ):
        for k in there[~np.isin(there, named)]:
            axis.plot(x, each[k], color="#cccccc", linewidth=0.6, zorder=1)
        for k, colour in zip(named, drawing.PALETTE, strict=False):
            axis.plot(x, each[k], color=colour, linewidth=1.3, label=f"{shortened(names[k])} {100 * ap50[k]:.1f}", zorder=2)
        if len(there) > 1:
            axis.plot(x, mean, color=INK, linewidth=2.6, label=f"mean of {len(there)} classes {100 * np.mean(ap50[there]):.1f}", zorder=3)
        axis.set(xlim=(0, 1), ylim=(0, 1.01))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for percent_axis in (axes[0].xaxis, axes[0].yaxis):
        percent_axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_xlabel("recall", fontsize=9)
    axes[1].set_xlabel("score from which on a prediction counts", fontsize=9)
    axes[0].set_title("precision over recall", fontsize=10, color=INK)
    axes[1].set_title("F1 over the score", fontsize=10, color=INK)
    at = float(np.interp(threshold, THRESHOLDS, curves.mean_f1))
    axes[1].axvline(threshold, color=INK, linewidth=1, linestyle="--", zorder=4)
    axes[1].plot([threshold], [at], "o", color=INK, markersize=5, zorder=5)
    right = threshold > 0.6
    axes[1].annotate(
        f"{threshold:.3g}: {100 * at:.1f} %", (threshold, at), xytext=(-6 if right else 6, 7), textcoords="offset points", fontsize=9,
        ha="right" if right else "left", color=INK, zorder=6, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )  # fmt: skip
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(w_pad=2.5, rect=(0, 0.05 + 0.05 * -(-len(labels) // 4), 1, 1))
    legend = figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False, title="AP50, %")
    legend.get_title().set_fontsize(8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_named(figure, path)


# ---------------------------------------------------------------- a page's part


def read_classes(folder: Path) -> dict[str, BoxClass]:
    """`classes.csv` by class name; none if there is no file."""
    counts = ("pictures", "boxes", "said")
    rows = read_rows(folder / "classes.csv")
    return {r["class"]: BoxClass(**{f: int(r[f]) if f in counts else float(r[f] or "nan") for f in COLUMNS}) for r in rows}


def sections(folder: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The part of a page about a detector, from the files that measuring left: title, caption, and a picture or a table each.

    Args:
        folder: of the run or the evaluation.
        result: the content of `result.json`, with `task` and `threshold`.
    """
    classes = read_classes(folder)
    if not classes:
        return []
    found = [class_table(classes), size_table(read_rows(folder / "sizes.csv"))]
    own = result["task"] == "detect"
    if own:
        found[0]["caption"] = f"{KEPT} {found[0]['caption']}"
    chosen = f" The threshold, {result['threshold']:.3g}, " + (
        "was chosen on these same pictures, so F1 at it is a little flattered." if own else "came with the model."
    )
    cells = read_rows(folder / "confusion.csv")
    met = len({name for r in cells for name in (r["truth"], r["label"])})
    for name, title, caption in (
        ("precision_recall", "Precision, recall and F1", OVER_SCORES + chosen),
        ("confusion", "What is taken for what", f"{CONFUSION} {_words(cells, list(classes))}".rstrip()),
        ("worst", "Where most went wrong", WORST),
        ("training", "What the network sees", "Training pictures as they were augmented, a colour a class."),
    ):
        if (path := folder / "pictures" / f"{name}.png").is_file():
            found.append(picture(path, title, caption, wide=name == "confusion" and met > FEW_CLASSES))
    return found


def _words(rows: list[dict[str, str]], names: list[str]) -> str:
    number = {name: k for k, name in enumerate([*names, ""])}
    return confusion_words([Confusion(number[r["truth"]], number[r["label"]], int(r["boxes"]), float(r["share"])) for r in rows])


def class_table(classes: dict[str, BoxClass], *, most: int = LISTED) -> dict[str, Any]:
    """The classes with the lowest AP first; those without boxes last."""
    ordered = sorted(classes.items(), key=lambda item: (item[1].ap != item[1].ap, item[1].ap))
    shares = ("precision", "recall", "f1", "ap", "ap50")
    rows = [
        [readable(name), *(f"{n:,}" for n in (c.pictures, c.boxes, c.said)), *(percent(getattr(c, s)) for s in shares)]
        for name, c in ordered[:most]
    ]
    columns = ["class", "pictures", "boxes", "said", "precision", "recall", "F1", "AP", "AP50"]
    rest = f" The {len(ordered) - most} best are in classes.csv." if len(ordered) > most else " The same in classes.csv."
    return {"title": "Classes", "caption": CLASSES + rest, "table": {"columns": columns, "rows": rows, "texts": 1}}


def size_table(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Boxes, AP and recall of small, medium and large boxes, from `sizes.csv`."""
    cells = [
        [f"{r['size']}: {SIZE_WORDS[r['size']]}", f"{int(r['boxes']):,}", *(percent(float(r[f] or "nan")) for f in ("ap", "recall"))]
        for r in rows
    ]
    return {"title": "Sizes", "caption": SIZES, "table": {"columns": ["size", "boxes", "AP", "recall"], "rows": cells, "texts": 1}}


def words(folder: Path, result: dict[str, Any]) -> str:
    """What an evaluation found, for the terminal: its numbers, and the classes with the lowest AP."""
    table = class_table(read_classes(folder), most=10)["table"]
    parts = (
        f"{result['what']}: {counted(result['pictures'], 'picture', ',')}",
        text_table(score_rows(result)),
        text_table([table["columns"], *table["rows"]]),
    )
    return "\n\n".join(map(readable, parts))
