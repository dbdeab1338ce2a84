"""Parts of tables with boxes: few annotated pictures, and a share for validation.

N pictures, K classes.
"""

import numpy as np

from visiontune.data.detection.table import BoxTable
from visiontune.data.parts import stratified_targets
from visiontune.errors import UserError, counted


def few_pictures(table: BoxTable, *, seed: int, fraction: float) -> BoxTable:
    """A share of the pictures, with at least one of each class; a smaller part is contained in a larger one of the same seed.

    The share is that of each group of pictures with the same rarest class; those without boxes are a group, too.
    """
    return table.take(stratified_targets(shown(table), seed=seed, fraction=fraction))


def split_off_boxes(table: BoxTable, fraction: float, *, seed: int) -> tuple[BoxTable, BoxTable]:
    """A part for validation, drawn likewise: `(the rest, the part)`. The rest keeps at least one picture of each class.

    Raises:
        UserError: if no picture is left for validation.
    """
    has = shown(table).astype(bool)
    chosen = np.sort(stratified_targets(has, seed=seed + 1, fraction=fraction))
    for k in np.flatnonzero(has.any(axis=0)).tolist():
        if has[chosen, k].sum() == has[:, k].sum():
            chosen = np.delete(chosen, np.flatnonzero(has[chosen, k])[-1])
    if not len(chosen):
        what = f"a share of {fraction:g} leaves none of {counted(len(table), 'picture')} for validation, with one of each class to train on"
        raise UserError(f"data.val: {what}; give a larger share, or pictures and boxes of their own")
    return table.take(np.setdiff1d(np.arange(len(table)), chosen).tolist()), table.take(chosen.tolist())


def shown(table: BoxTable) -> np.ndarray:
    """`(N, K)` uint8: 1 where a picture has a box of a class, crowds aside."""
    found = np.zeros((len(table), len(table.classes)), dtype=np.uint8)
    found[table.owner[~table.crowd], table.label[~table.crowd]] = 1
    return found
