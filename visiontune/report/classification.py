"""Figures of a classifier's answers: who is taken for whom, what it is certain of, what its scores are worth. K classes."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from visiontune.errors import readable
from visiontune.evaluate.calibration import Reliability
from visiontune.evaluate.classification import Confusion
from visiontune.report.figures import ACCENTS, INK, plt, save

RIGHT, WRONG = ACCENTS[:2]
# Beyond this many classes a matrix is a blur: those with most mistakes are drawn.
MOST_CLASSES = 100
# Up to here counts fit into the cells, and classes stay in their own order.
FEW_CLASSES = 30


def shortened(name: str, most: int = 24) -> str:
    """A name that fits beside a picture: its beginning and its end, which is where long names differ."""
    name = readable(name)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"


def confusion(cells: Sequence[Confusion], names: Sequence[str], path: Path, *, nothing: tuple[str, str] | None = None) -> None:
    """The confusion matrix: colours are shares of a row, numbers are pictures.

    Args:
        cells: those that are not empty.
        names: of all K classes; one without a picture that was never said is left out.
        path: the PNG.
        nothing: of boxes: what number K is called, which stands last: as truth, where a box is of nothing, and as what was said, where
            one was missed.
    """
    matrix, shown = _matrix(cells)
    rows = columns = [shortened(name) for name in names]
    if nothing is not None:
        rows, columns = [*rows, nothing[0]], [*columns, nothing[1]]
        last = sorted(range(len(shown)), key=lambda i: shown[i] == len(names))
        matrix, shown = matrix[np.ix_(last, last)], [shown[i] for i in last]
    K = len(shown)
    few = K <= FEW_CLASSES
    cell = float(np.interp(K, [2, 12, FEW_CLASSES, MOST_CLASSES], [0.9, 0.5, 0.36, 0.16]))  # inches
    of_class = {c.truth: c.pictures / c.share for c in cells}  # also what was said of classes that are not drawn
    shares = matrix / np.array([[of_class.get(k, 1)] for k in shown])
    rows, columns = [rows[k] for k in shown], [columns[k] for k in shown]
    longest = max(map(len, columns))
    text = float(np.interp(K, [2, FEW_CLASSES, MOST_CLASSES], [10, 8, 7]))
    figure = plt.figure(figsize=(cell * K, cell * K))
    axis = figure.add_axes((0, 0, 1, 1))  # names stand outside: the file is cut to what was drawn
    diagonal = np.eye(K, dtype=bool)
    for mask, colour in ((diagonal, RIGHT), (~diagonal, WRONG)):
        shades = LinearSegmentedColormap.from_list("", ["white", colour])
        # the root, or a confusion of one in twenty would look like none
        axis.imshow(np.ma.masked_array(np.sqrt(shares), ~mask), cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    if few:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            shade = "white" if shares[i, j] > 0.45 else INK
            size = min(text, cell * 72 * 1.5 / max(3, len(f"{matrix[i, j]:,}")))
            axis.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", fontsize=size, color=shade)
    axis.set_xticks(range(K), columns, fontsize=text, rotation=90 if longest * text * 0.6 > cell * 72 else 0, parse_math=False)
    axis.set_yticks(range(K), rows, fontsize=text, parse_math=False)
    axis.set_xticks(np.arange(1, K) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, K) - 0.5, minor=True)
    axis.grid(which="minor", color="#eeeeee", linewidth=0.6)
    if nothing is not None and shown[-1] == len(names):
        axis.axhline(K - 1.5, color="#999999", linewidth=1)
        axis.axvline(K - 1.5, color="#999999", linewidth=1)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("what was said", fontsize=max(9, text))
    axis.set_ylabel("what it is", fontsize=max(9, text))
    axis.spines[:].set_color("#cccccc")
    save_named(figure, path)


def confusion_words(cells: Sequence[Confusion]) -> str:
    """What of the matrix needs saying: classes left out, or in another order."""
    met = len({k for c in cells for k in (c.truth, c.label)})
    left_out = f"Of {met} classes the {MOST_CLASSES} that are in most mistakes are drawn. " if met > MOST_CLASSES else ""
    return left_out + ("Classes that are taken for each other stand side by side." if met > FEW_CLASSES else "")


def _matrix(cells: Sequence[Confusion]) -> tuple[np.ndarray, list[int]]:
    """Counts `(k, k)` of the classes to be drawn, and their numbers in the order of drawing."""
    shown = sorted({k for c in cells for k in (c.truth, c.label)})
    if len(shown) > MOST_CLASSES:
        wrong = Counter(k for c in cells if c.truth != c.label for k in (c.truth, c.label) for _ in range(c.pictures))
        shown = sorted(sorted(shown, key=lambda k: (-wrong[k], k))[:MOST_CLASSES])
    place = {k: i for i, k in enumerate(shown)}
    matrix = np.zeros((len(shown), len(shown)), dtype=np.int64)
    for c in cells:
        if c.truth in place and c.label in place:
            matrix[place[c.truth], place[c.label]] += c.pictures
    if len(shown) > FEW_CLASSES:
        order = _neighbours_first(matrix)
        matrix, shown = matrix[np.ix_(order, order)], [shown[i] for i in order]
    return matrix, shown


def _neighbours_first(matrix: np.ndarray) -> list[int]:
    """An order of classes in which those that are confused are near each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    distance = 1 - np.sqrt((shares + shares.T) / 2)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True)).tolist()


class Shown(NamedTuple):
    """A picture with two lines of text.

    Attributes:
        picture: `(h, w, 3)` in [0, 1].
        said: of it.
        truth: what it is.
    """

    picture: np.ndarray
    said: str
    truth: str


def cases(groups: dict[str, tuple[list[Shown], bool]], path: Path, *, columns: int = 6) -> None:
    """Pictures with what was said of them, in groups under a title; the flag is whether it was right."""
    groups = {title: group for title, group in groups.items() if group[0]}
    lines = sum(-(-len(shown) // columns) for shown, _ in groups.values())
    width, height, head = 1.62, 1.95, 0.3  # inches of a picture with its two lines, and of a group's title
    whole = (columns * width, lines * height + len(groups) * head)
    figure = plt.figure(figsize=whole)
    top = whole[1]
    for title, (shown, right) in groups.items():
        figure.text(0.06 / whole[0], (top - 0.2) / whole[1], title, fontsize=11, color=INK, weight="bold")
        top -= head
        for i, case in enumerate(shown):
            left, low = (i % columns) * width + 0.06, top - (i // columns + 1) * height + 0.03
            axis = figure.add_axes((left / whole[0], low / whole[1], (width - 0.12) / whole[0], (height - 0.42) / whole[1]))
            axis.imshow(case.picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(RIGHT if right else WRONG)
            axis.spines[:].set_linewidth(1.5)
            text = {"transform": axis.transAxes, "fontsize": 8, "parse_math": False, "clip_on": False}
            axis.set_anchor("S")
            axis.text(0, 1.13, case.said, color=RIGHT if right else WRONG, **text)
            axis.text(0, 1.03, case.truth, color=INK, **text)
        top -= -(-len(shown) // columns) * height
    save_named(figure, path)


def reliability(panels: dict[str, Reliability], path: Path) -> None:
    """A panel each: how many answers of a score were right, above how many there were."""
    figure, axes = plt.subplots(
        2, len(panels), figsize=(4.3 * len(panels), 4.6), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3.2, 1]}
    )
    for (above, below), (title, found) in zip(axes.T, panels.items(), strict=True):
        bins = len(found.count)
        edges, filled = np.arange(bins) / bins, found.count > 0
        bars: dict[str, Any] = {"width": 1 / bins, "align": "edge", "edgecolor": "white", "linewidth": 0.6}
        above.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", zorder=3)
        above.bar(edges[filled], found.right[filled], color=RIGHT, label="share that is right", **bars)
        middle = edges[filled] + 0.5 / bins
        above.hlines(
            found.score[filled], middle - 0.4 / bins, middle + 0.4 / bins, color=WRONG, linewidth=2.5, label="their mean score", zorder=4
        )
        above.set(xlim=(0, 1), ylim=(0, 1))
        above.set_title(f"{title}: error {100 * found.error:.1f} %", fontsize=10, color=INK)
        below.bar(edges, found.count / max(1, found.count.sum()), color="#9aa5ad", **bars)
        below.set_xlabel("score", fontsize=9)
        for axis in (above, below):
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("share that is right", fontsize=9)
    axes[1, 0].set_ylabel("share of answers", fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.tight_layout()
    save_named(figure, path)


def save_named(figure: Any, path: Path) -> None:
    """A figure with names of classes in it, as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a class name in a script that the font has not
        save(figure, path, tight=True)
