"""A look at all pictures and boxes before anything is trained on them: everything that is wrong at once, and what there is to detect."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visiontune.data.decode import Reading
from visiontune.data.detection.problems import KINDS, faults
from visiontune.data.detection.table import BoxTable, Problem
from visiontune.data.inspect import look_at_all
from visiontune.errors import counted, some

# Sides of a square: COCO's small, medium and large objects are below, between and above these areas (https://cocodataset.org/#detection-eval).
SMALL, LARGE = 32, 96
PARTS = ("training", "validation")
BAR = 30  # characters


@dataclass
class BoxFindings:
    """What annotated pictures are like.

    Attributes:
        tables: the training's, and the validation's where there is one.
        problems: everything that is wrong, in the order of `KINDS`.
        looked: whether the pictures were read, too.
    """

    tables: tuple[BoxTable, ...]
    problems: list[Problem] = field(default_factory=list)
    looked: bool = True

    def counts(self) -> dict[str, int]:
        """How many problems of each kind that occurs."""
        found = Counter(p.kind for p in self.problems)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def lines(self, examples: int = 3) -> list[str]:
        """For people."""
        said = []
        for part, table in zip(PARTS, self.tables, strict=False):
            said += [] if part == PARTS[0] else [""]
            said += [f"{part}: {line}" if i == 0 else line for i, line in enumerate(histogram(table))]
        said.append("")
        if not self.problems:
            return [*said, "nothing wrong was found" + ("" if self.looked else "; the pictures themselves were not read")]
        for kind, count in self.counts().items():
            told = [f"{p.path} ({p.detail})" if p.detail else p.path for p in self.problems if p.kind == kind]
            said.append(f"{kind}: {count:,} ({KINDS[kind]}): {some(told, examples)}")
        return said

    def write_csv(self, file: Path) -> None:
        """`path,problem,detail` of everything found."""
        with file.open("w", newline="", errors="surrogateescape") as opened:
            writer = csv.writer(opened)
            writer.writerow(["path", "problem", "detail"])
            writer.writerows([p.path, p.kind, p.detail] for p in self.problems)


def inspect_boxes(
    train: BoxTable,
    val: BoxTable | None = None,
    *,
    pixels: bool = True,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> BoxFindings:
    """Find what is wrong with annotated pictures. Read them with `strict=False`, and annotations that nobody understands are listed, too.

    Args:
        train: pictures to train on.
        val: pictures to validate on.
        pixels: read and decode every picture; else only the boxes are looked at.
        reading: how files become pixels.
        processes: helpers; None takes one a core.
        progress: told the number of pictures done, from time to time.
    """
    tables = (train,) if val is None else (train, val)
    problems: list[Problem] = []
    seen: dict[bytes, tuple[int, int]] = {}  # by content: part, and number there
    done = 0
    for part, table in enumerate(tables):
        problems += table.problems
        problems += _of_boxes(table)
        if part and (unknown := [name for name in table.classes if name not in train.classes]):
            problems += _of_classes(table, unknown)
        if not pixels:
            continue
        for look in look_at_all(table.pictures, reading=reading, processes=processes, progress=_from(done, progress)):
            path = table.pictures.path(look.index)
            if look.cause:
                kind = "broken picture" if os.path.lexists(path) else "missing picture"
                problems.append(Problem(kind, path, look.cause, look.index))
                continue
            said = table.sizes[look.index]
            if said.all() and tuple(said.tolist()) != (look.height, look.width):
                what = f"{said[1]}x{said[0]} in the annotation, {look.width}x{look.height} in the file"
                turned = ", turned by its EXIF orientation or by hand" if tuple(said.tolist()) == (look.width, look.height) else ""
                problems.append(Problem("other size", path, what + turned, look.index))
            before, index = seen.setdefault(look.digest, (part, look.index))
            if (before, index) != (part, look.index):
                other = f"as {tables[before].pictures.path(index)}"
                problems.append(Problem("same picture" if before == part else "in both", path, other, look.index))
        done += len(table)
    order = list(KINDS)
    return BoxFindings(tables, sorted(problems, key=lambda p: order.index(p.kind)), looked=pixels)


def _from(start: int, progress: Callable[[int], object] | None) -> Callable[[int], object] | None:
    return None if progress is None else lambda done: progress(start + done)


def _of_boxes(table: BoxTable) -> list[Problem]:
    owner = table.owner
    found = []
    for kind, mask in faults(table).items():
        for m in np.flatnonzero(mask).tolist():
            picture = int(owner[m])
            numbers = ", ".join(f"{x:g}" for x in table.xyxy[m].round(1).tolist())
            height, width = table.sizes[picture].tolist()
            within = f" in {width}x{height}" if "outside" in kind or "edge" in kind else ""
            what = f"{table.classes[table.label[m]]} {numbers}{within}"
            found.append(Problem(kind, table.pictures.path(picture), what, picture, m))
    return found


def _of_classes(table: BoxTable, unknown: Sequence[str]) -> list[Problem]:
    owner, numbers = table.owner, [table.classes.index(name) for name in unknown]
    return [
        Problem("unknown class", table.pictures.path(int(owner[m])), f"{table.classes[table.label[m]]!r}", int(owner[m]), m)
        for m in np.flatnonzero(np.isin(table.label, numbers)).tolist()
    ]


def histogram(table: BoxTable) -> list[str]:
    """Pictures, and boxes of each class by size: a line a class with a bar, COCO's limits of 32 and 96 pixels squared.

    Sizes are those of the original pictures, crowds are left out.
    """
    counts = table.class_counts()
    empty = int((np.diff(table.offsets) == 0).sum())
    crowd = int(table.crowd.sum())
    head = f"{counted(len(table), 'picture', ',')} ({empty:,} without boxes), {counted(int(counts.sum()), 'box', ',')}"
    if crowd:
        head += f", {crowd:,} more of crowds or marked difficult"
    by_size = np.digitize(table.area, (SMALL**2, LARGE**2))
    names = [name if len(name) <= 24 else name[:23] + "~" for name in table.classes]
    width = max([5, *map(len, names)])
    said = [head, f"{'class':<{width}}  {'boxes':>9}  {f'<{SMALL}²':>9}  {f'to {LARGE}²':>9}  {'larger':>9}"]
    most = max(1, int(counts.max(initial=0)))
    for k, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        sizes = np.bincount(by_size[(table.label == k) & ~table.crowd], minlength=3).tolist()
        bar = "#" * -(-BAR * count // most)
        said.append(f"{name:<{width}}  {count:>9,}  {sizes[0]:>9,}  {sizes[1]:>9,}  {sizes[2]:>9,}  {bar}".rstrip())
    return said
