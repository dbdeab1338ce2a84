"""Pictures with boxes drawn in them: truth beside prediction, and what training sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from visiontune.boxes import Boxes
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection.loader import BoxPictures
from visiontune.data.detection.place import Source, fit
from visiontune.data.detection.table import BoxTable
from visiontune.data.read import read_bytes
from visiontune.errors import counted
from visiontune.evaluate.detection_results import BoxCase
from visiontune.report.classification import save_named, shortened
from visiontune.report.figures import INK, plt

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which people tell apart whatever colours they see.
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TRUE, RIGHT, WRONG, CROWD = GREEN, BLUE, ORANGE, "#777777"
# Longest side of a picture that is drawn, in pixels: twice what the page shows.
LONGEST = 800
# Pictures with more boxes have names at mistakes alone, the most certain ones: others would cover the picture.
FEW_BOXES = 8
MOST_NAMED = 12


@dataclass(frozen=True, eq=False)
class DrawnCase:
    """A case with its picture.

    Attributes:
        pixels: `(h, w, C)` uint8.
        scale: pixels of it for one of the original, of which the boxes are.
        title: what stands above.
        case: the boxes.
    """

    pixels: np.ndarray
    scale: float
    title: str
    case: BoxCase


def load_cases(table: BoxTable, cases: Sequence[BoxCase], *, index: Sequence[int] | None = None, reading: Reading) -> list[DrawnCase]:
    """Cases with their pictures; those that cannot be read any more are left out.

    Args:
        table: where the pictures are.
        cases: of them.
        index: numbers in the table of the pictures that were judged; None: all, in its order.
        reading: how files become pixels.
    """
    drawn = []
    for case in cases:
        number = case.picture if index is None else int(index[case.picture])
        try:
            picture = Picture(read_bytes(table.pictures, number), reading)
            scale = min(1.0, LONGEST / max(picture.height, picture.width))
            size = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
            pixels, box = fit(Source(picture, case.truth, number), size)
        except BrokenPicture:  # it was there a minute ago
            continue
        wrong, missed = int((~case.right).sum()), int(case.missed.sum())
        title = (
            f"{shortened(Path(table.pictures.path(number)).name, 40)}: {counted(len(case.truth), 'box')}, {missed} missed; {wrong} wrong"
        )
        drawn.append(DrawnCase(pixels, box.scale, title, case))
    return drawn


def truth_beside_found(drawn: Sequence[DrawnCase], names: Sequence[str], path: Path) -> None:
    """A line a picture: what is there on the left, what was said on the right; mistakes are orange on both sides."""
    width, gap, head = 4.25, 0.08, 0.26  # inches
    heights = [width * np.clip(d.pixels.shape[0] / d.pixels.shape[1], 0.3, 1.3) for d in drawn]
    legend = 0.34
    whole = (2 * width + gap, sum(heights) + head * len(drawn) + legend)
    figure = plt.figure(figsize=whole)
    _legend(figure, whole)
    top = whole[1] - legend
    for d, height in zip(drawn, heights, strict=True):
        figure.text(0.02 / whole[0], (top - 0.18) / whole[1], d.title, fontsize=8.5, color=INK, parse_math=False)
        top -= head + height
        case = d.case
        few = max(len(case.truth), len(case.found)) <= FEW_BOXES
        for column in range(2):
            place = (column * (width + gap) / whole[0], (top + 0.04) / whole[1], width / whole[0], (height - 0.04) / whole[1])
            axis = _picture(figure.add_axes(place), d.pixels)
            for box in (case.crowd.xyxy * d.scale).tolist():
                _box(axis, box, CROWD, style=":")
            boxes = case.found if column else case.truth
            bad = ~case.right if column else case.missed
            good = RIGHT if column else TRUE
            told = np.flatnonzero(bad)[:MOST_NAMED]
            for i in np.argsort(bad, kind="stable").tolist():  # mistakes on top
                name = shortened(names[int(boxes.labels[i])], 14)
                text = f"{name} {float(boxes.scores[i]):.2f}" if boxes.scores is not None else name
                style = "--" if bad[i] and not column else "-"
                shown = text if few or i in told else ""
                _box(
                    axis,
                    (boxes.xyxy[i] * d.scale).tolist(),
                    WRONG if bad[i] else good,
                    text=shown,
                    style=style,
                    width=1.7 if bad[i] else 1.2,
                )
    save_named(figure, path)


def _legend(figure: Any, whole: tuple[float, float]) -> None:
    kinds = [(TRUE, "-", "there, found"), (WRONG, "--", "there, missed"), (RIGHT, "-", "said, right"), (WRONG, "-", "said, wrong")]
    lines = [Line2D([], [], color=colour, linestyle=style, linewidth=1.8, label=text) for colour, style, text in kinds]
    figure.legend(
        handles=lines, loc="upper left", ncols=4, fontsize=8.5, frameon=False, bbox_to_anchor=(0, 1), borderaxespad=0.2, labelcolor=INK
    )


def training_pictures(dataset: BoxPictures, names: Sequence[str], path: Path, *, count: int = 8, epoch: int = 0) -> None:
    """What the network is given: augmented samples with their boxes, a colour a class; those of pictures that can be read."""
    samples = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
        item = dataset[index, epoch]
        if item.pixels is not None:
            samples.append((item.pixels, item.boxes))
    if samples:
        strip(samples, names, path)


def strip(samples: Sequence[tuple[np.ndarray, Boxes]], names: Sequence[str], path: Path, *, columns: int = 4) -> None:
    """Pictures `(H, W, C)` uint8 with boxes in their pixels, a colour a class; each class is named at its largest box."""
    columns = min(columns, len(samples))
    lines = -(-len(samples) // columns)
    side, gap = 8.6 / 4, 0.05  # inches
    ratio = max(p.shape[0] / p.shape[1] for p, _ in samples)
    whole = (columns * side, lines * side * ratio)
    figure = plt.figure(figsize=whole)
    for i, (pixels, boxes) in enumerate(samples):
        left, low = (i % columns) * side, whole[1] - (i // columns + 1) * side * ratio
        place = (left / whole[0], low / whole[1], (side - gap) / whole[0], (side * ratio - gap) / whole[1])
        axis = _picture(figure.add_axes(place), pixels)
        area = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(dim=1)
        few = len(boxes) <= FEW_BOXES
        named: set[int] = set()
        for m in area.argsort(descending=True).tolist():  # small ones on top
            label = int(boxes.labels[m])
            text = shortened(names[label], 14) if few or label not in named else ""
            named.add(label)
            _box(axis, boxes.xyxy[m].tolist(), PALETTE[label % len(PALETTE)], text=text)
    save_named(figure, path)


def _picture(axis: Any, pixels: np.ndarray) -> Any:
    """Fills the axis with the picture and a grey frame; its own coordinates are the picture's pixels."""
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    height, width = shown.shape[:2]
    # pixels of small pictures are seen as what they are
    axis.imshow(shown, extent=(0, width, height, 0), interpolation="nearest" if max(height, width) < 300 else "antialiased")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.set_anchor("NW")
    axis.spines[:].set_color("#cccccc")
    return axis


def _box(axis: Any, xyxy: Sequence[float], colour: str, *, text: str = "", style: str = "-", width: float = 1.2) -> None:
    x1, y1, x2, y2 = xyxy
    halo = [Stroke(linewidth=width + 1.2, foreground="white", alpha=0.8), Normal()]  # seen on any ground
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, linestyle=style, path_effects=halo))
    if not text:
        return
    height, right = axis.get_ylim()[0], axis.get_xlim()[1]
    inside = y1 < 0.05 * height  # no room above
    near = x1 > 0.8 * right  # nor to the right
    axis.text(
        min(x2, right) if near else max(x1, 0), max(y1, 0), text, fontsize=6.5, color="white", parse_math=False, clip_on=True,
        ha="right" if near else "left", va="top" if inside else "bottom",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip
