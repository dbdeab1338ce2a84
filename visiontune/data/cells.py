"""From cells of a table to classes: one a picture, or several.

N pictures, U different cells, K classes.
"""

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visiontune.errors import UserError, some

SEPARATORS = "|;"


@dataclass(frozen=True)
class Classes:
    """What the cells say.

    Attributes:
        names: of the classes: those of a ClassLabel in its order, whole numbers by size, others by the alphabet.
        several: whether a picture may have several labels, or none.
        rows: class of each different cell, -1 where it is empty, `(U,)`; with `several` its zeros and ones, `(U, K)` uint8.
        separated: the separators that were met between labels.
    """

    names: tuple[str, ...]
    several: bool
    rows: np.ndarray
    separated: str = ""


def classes_of(
    cells: Sequence[Hashable],
    names: tuple[str, ...],
    separator: str | Literal[False] | None,
    several: bool | None,
    *,
    places: Sequence[str],
    where: str,
) -> Classes:
    """Classes of a label column.

    Args:
        cells: all different ones.
        names: what numbers stand for; empty: for themselves.
        separator: between labels, one of its letters unless it is a longer text; None: `|` and `;`; False: none.
        several: whether pictures may have several labels; None: if a cell has, or is a list.
        places: where each of `cells` was met first, in words.
        where: the recipe's key, for messages.

    Raises:
        UserError: for a number that is infinite.
    """
    if wrong := [f"{cell!r} in {place}" for cell, place in zip(cells, places, strict=True) if _infinite(cell)]:
        raise UserError(f"{where}: a label is a name or a whole number, got {some(wrong, 3)}; mend the table, or name another column")
    texts = [cell for cell in cells if isinstance(cell, str)]
    separated = ""
    if separator:
        separated = separator
    elif separator is None and several is not False:
        separated = "".join(s for s in SEPARATORS if any(s in text for text in texts))
    if several is None:
        several = bool(separated) or any(isinstance(cell, tuple) for cell in cells)
    pattern = None
    if separated and several:
        pattern = re.compile(re.escape(separator) if separator else f"[{re.escape(separated)}]")
    found = [_labels(cell, names, pattern) for cell in cells]
    present = {label for labels in found for label in labels}
    ordered = tuple(n for n in names if n in present) if names else tuple(sorted(present, key=_order(present)))
    number = {name: k for k, name in enumerate(ordered)}
    if not several:
        # A list of one is one label; of a list of several there are `several`.
        rows = np.array([number[labels[0]] if labels else -1 for labels in found], dtype=np.int64)
        return Classes(ordered, False, rows)
    rows = np.zeros((len(found), len(ordered)), dtype=np.uint8)
    for row, labels in zip(rows, found, strict=True):
        row[[number[label] for label in labels]] = 1
    return Classes(ordered, True, rows, separated)


def zeros_and_ones(cells: Sequence[tuple], names: tuple[str, ...], places: Sequence[str], *, where: str) -> Classes:
    """Classes of one column each.

    Args:
        cells: all different rows of these columns.
        names: of the columns, which are the classes.
        places: where each of `cells` was met first, in words.
        where: the recipe's key, for messages.

    Raises:
        UserError: for a cell that is neither.
    """
    rows = np.zeros((len(cells), len(names)), dtype=np.uint8)
    wrong = []
    for row, values, place in zip(rows, cells, places, strict=True):
        for k, value in enumerate(values):
            text = str(value).strip().lower()
            if text in ("1", "1.0", "true"):
                row[k] = 1
            elif not (_empty(value) or text in ("0", "0.0", "false")):
                wrong.append(f"{value!r} in column {names[k]!r} ({place})")
    if wrong:
        raise UserError(f"{where}: several columns hold 1 where a picture has the class and else 0 or nothing, got {some(wrong, 3)}")
    return Classes(names, True, rows)


def hashable(cell: Any) -> Hashable:
    """Lists of a Parquet or Arrow column as tuples."""
    return tuple(cell) if isinstance(cell, (list, np.ndarray)) else cell


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def _infinite(cell: Any) -> bool:
    return any(map(_infinite, cell)) if isinstance(cell, tuple) else isinstance(cell, float) and math.isinf(cell)


def _labels(cell: Any, names: tuple[str, ...], pattern: re.Pattern | None) -> list[str]:
    if _empty(cell):
        return []
    if isinstance(cell, tuple):
        return [label for item in cell for label in _labels(item, names, None)]
    if isinstance(cell, str) and pattern is not None:
        return [part.strip() for part in pattern.split(cell) if part.strip()]
    if isinstance(cell, (int, float)) and not isinstance(cell, bool) and cell == int(cell):
        if names:
            return [names[int(cell)]] if 0 <= cell < len(names) else []  # `datasets` writes -1 where there is no label
        return [str(int(cell))]  # pandas makes whole numbers beside an empty cell 1.0
    return [str(cell).strip()]


def _order(names: set[str]) -> Any:
    return int if all(re.fullmatch(r"-?\d{1,18}", name) for name in names) else str
