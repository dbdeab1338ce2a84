"""Boxes that cannot be right, and a table without them: nothing is repaired in silence.

M boxes.
"""

from dataclasses import replace

import numpy as np

from visiontune.data.detection.table import BoxTable
from visiontune.errors import counted

# In the order in which a person should look at them.
KINDS = {
    "unreadable annotation": "annotation files that cannot be read",
    "bad annotation": "boxes that cannot be understood",
    "unknown class": "boxes of an unknown class",
    "unknown picture": "boxes of a picture that the file does not list",
    "no box": "annotations without a box",
    "no picture": "annotation files without a picture",
    "missing picture": "pictures that are not there",
    "broken picture": "pictures that cannot be read",
    "other size": "pictures of another size than their annotation says",
    "reversed box": "boxes whose right is left of their left, or whose bottom is above their top",
    "flat box": "boxes of at most a pixel in width or height",
    "outside box": "boxes wholly outside of their picture",
    "box over the edge": "boxes that reach over the edge of their picture",
    "repeated box": "boxes that are there twice",
    "box of two classes": "places where two classes have the same box",
    "same picture": "pictures that are there twice",
    "in both": "pictures of the validation that are in the training, too",
}
# Pixels that a box may reach over the edge: numbers are rounded, and some count from 0 and some from 1.
SPARE = 1.0


def faults(table: BoxTable, *, least: float = 1.0) -> dict[str, np.ndarray]:
    """Which boxes have what is wrong with a box, each at most one of the first five; masks `(M,)` by kind.

    Args:
        table: what to look at.
        least: a box of at most so many pixels in width or height is flat.
    """
    x1, y1, x2, y2 = table.xyxy.T
    height, width = table.sizes[table.owner].T.astype(np.float32)
    known = height > 0
    reversed_ = (x2 < x1) | (y2 < y1)
    flat = ~reversed_ & ~((x2 - x1 > least) & (y2 - y1 > least))  # not a number is flat, too
    left = ~(reversed_ | flat)
    outside = left & known & ((x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height))
    left &= ~outside
    over = left & known & ((x1 < -SPARE) | (y1 < -SPARE) | (x2 > width + SPARE) | (y2 > height + SPARE))
    repeated, two_classes = _repeated(table)
    return {
        "reversed box": reversed_,
        "flat box": flat,
        "outside box": outside,
        "box over the edge": over,
        "repeated box": repeated & ~(reversed_ | flat | outside),
        "box of two classes": two_classes,
    }


def _repeated(table: BoxTable) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that repeat an earlier one of the same class, and first ones of a place that an earlier one of another class has.

    To a tenth of a pixel: the same box drawn twice by hand never is.
    """
    M = len(table.label)
    place = np.column_stack([table.owner, np.nan_to_num(np.rint(table.xyxy.astype(np.float64) * 10), posinf=0, neginf=0).astype(np.int64)])
    first_of_class = np.unique(np.column_stack([place, table.label]), axis=0, return_index=True)[1] if M else np.zeros(0, dtype=int)
    first_of_place = np.unique(place, axis=0, return_index=True)[1] if M else np.zeros(0, dtype=int)
    repeated, first = np.ones(M, dtype=bool), np.zeros(M, dtype=bool)
    repeated[first_of_class] = False
    first[first_of_place] = True
    return repeated, ~repeated & ~first


def usable(table: BoxTable, *, least: float = 1.0, repeated: bool = False, key: str = "data.train") -> BoxTable:
    """A table without boxes that nobody can learn from, the others cut to their pictures. What was done is told in its `notes`.

    Reversed boxes are left out, not turned round: whoever wrote them may have written them wrong in another way, too.

    Args:
        table: what was read.
        least: boxes of at most so many pixels in width or height are left out; 0 for validation, so that it compares with other tools'.
        repeated: keep boxes that are there twice.
        key: the recipe's, for the notes.
    """
    found = faults(table, least=least)
    out = {kind: found[kind] for kind in ("reversed box", "flat box", "outside box")}
    if not repeated:
        out["repeated box"] = found["repeated box"]
    dropped = np.logical_or.reduce(list(out.values()))
    kept = table.without(dropped)
    height, width = kept.sizes[kept.owner].T.astype(np.float32)
    limit = np.where((height > 0)[:, None], np.column_stack([width, height, width, height]), np.inf).astype(np.float32)
    kept = replace(kept, xyxy=np.minimum(np.maximum(kept.xyxy, 0), limit))
    said = [f"{counted(int(mask.sum()), kind, ',')} ({KINDS[kind]})" for kind, mask in out.items() if mask.any()]
    notes = [f"{key}: left out of {len(table.label):,} boxes: {', '.join(said)}"] if said else []
    if over := int(found["box over the edge"].sum()):
        notes.append(f"{key}: {counted(over, 'box', ',')} over the edge cut to the picture")
    return replace(kept, notes=(*kept.notes, *notes))
