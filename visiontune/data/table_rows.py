"""All rows of an annotation table as they stand there, with what is wrong with them, and what each of them is for.

N rows.
"""

import os
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visiontune.data.cells import hashable
from visiontune.data.columns import Columns, TableSettings, find_columns, section_of
from visiontune.data.rows import Place, Source, open_source
from visiontune.errors import UserError, counted, some

# What the rows of a split column are for, by their names.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class Rows:
    """All rows as they stand in the table.

    Attributes:
        source, columns: where they come from.
        key: the recipe's, for messages.
        lines: number of each row; int64.
        paths: below the root, or absolute; of a picture inside of a file its name there.
        labels: number of each row's cell in `cells`.
        cells: all different labels.
        splits: number of each row's cell in `split_names`.
        split_names: all different ones.
        places: shard, first byte and bytes of pictures inside of files; `(N, 3)` int64, or nothing.
        troubles: what is wrong with them.
    """

    source: Source
    columns: Columns
    key: str
    lines: np.ndarray
    paths: list[bytes]
    labels: np.ndarray
    cells: list[Hashable]
    splits: np.ndarray
    split_names: list[str]
    places: np.ndarray
    troubles: "Troubles"


@dataclass
class Troubles:
    """What is wrong with rows, with their numbers; what is `fatal` ends the run."""

    counts: str
    told: list[str] = field(default_factory=list)
    fatal: bool = False

    def add(self, numbers: Sequence[int], noun: str, what: str, *, examples: Sequence[str] = (), fatal: bool = False) -> None:
        """`what` follows `3 rows `; `examples` stand beside the numbers of the first ones."""
        if not len(numbers):
            return
        listed = [f"{n}: {e}" for n, e in zip(numbers, examples, strict=False)] or list(map(str, numbers))
        more = f", and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        where = f"{self.counts}{'s' if len(numbers) > 1 else ''} {', '.join(listed[:5])}{more}"
        self.told.append(f"{counted(len(numbers), noun, ',')} {what} ({where})")
        self.fatal |= fatal


def read_rows(path: str, settings: TableSettings, key: str, labelled: bool | None) -> Rows:
    source = open_source(path, key=key)
    columns = find_columns(source, settings, key=key, labelled=labelled)
    wanted = [columns.path, *columns.labels, *([] if columns.split is None else [columns.split])]
    L = len(columns.labels)
    lines, labels, splits, places = array("q"), array("q"), array("q"), array("q")
    paths: list[bytes] = []
    cells: dict[Hashable, int] = {}
    names: dict[str, int] = {}
    nameless, uneven = array("q"), array("q")
    for number, row in source.rows(wanted):
        if row is None:
            uneven.append(number)
            continue
        picture = row[0].strip() if isinstance(row[0], str) else row[0]
        if not picture:
            nameless.append(number)
            continue
        if isinstance(picture, Place):
            places.extend(picture[:3])
            name = f"{source.shards[picture.shard]}/{number:07d}{picture.ending}"
        else:
            name = str(picture)
        lines.append(number)
        # The same picture by other words; an address is left as it is, for the message that refuses it.
        loose = ("./" in name or "//" in name) and "://" not in name
        paths.append(os.fsencode(os.path.normpath(name) if loose else name))
        if L:
            cell = tuple(row[1 : 1 + L]) if columns.one_each else hashable(row[1])
            labels.append(cells.setdefault(cell, len(cells)))
        if columns.split is not None:
            splits.append(names.setdefault(str(row[-1] if row[-1] is not None else "").strip(), len(names)))
    if places and len(places) != 3 * len(paths):
        raise UserError(f"{key}: {path} holds some pictures as bytes and some as paths; save it again with all as bytes")
    troubles = Troubles(source.counts)
    troubles.add(uneven, "row", f"with another number of cells than the {len(source.names)} of the header", fatal=True)
    troubles.add(nameless, "row", "without a picture left out")
    if not paths:
        raise UserError(f"{key}: {path} has no row with a picture{''.join(f'; {t}' for t in troubles.told)}")
    numbers = [
        np.frombuffer(column, dtype=np.int64) if len(column) else np.zeros(0, np.int64) for column in (lines, labels, splits, places)
    ]
    return Rows(
        source, columns, key, numbers[0], paths, numbers[1], list(cells), numbers[2], list(names), numbers[3].reshape(-1, 3), troubles
    )


def parts_of(rows: Rows, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Rows for training and for validation, by the names in the column of parts; the reasons go into the notes.

    Raises:
        UserError: for names that say neither, or if a needed part has no row.
    """
    assert rows.columns.split is not None
    column, file = rows.source.names[rows.columns.split], rows.source.path
    meaning = [next((part for part, known in PARTS.items() if name.lower() in known), "") for name in rows.split_names]
    found = {part: np.flatnonzero(np.isin(rows.splits, [i for i, m in enumerate(meaning) if m == part])) for part in PARTS}
    if not len(found["val"]):
        found["val"], found["test"] = found["test"], found["val"]
    counts = np.bincount(rows.splits, minlength=len(meaning)).tolist()
    listed = some((f"{name or '(nothing)'} ({counted(n, 'row', ',')})" for name, n in zip(rows.split_names, counts, strict=True)), 10)
    known = ", ".join((*PARTS["train"], *PARTS["val"], *PARTS["test"]))
    if "" in meaning:
        raise UserError(f"{rows.key}: column {column!r} of {file} tells parts by other names than {known}: it holds {listed}")
    for part in needed:
        if not len(found[part]):
            named = ", ".join(PARTS[part] if part == "train" else (*PARTS["val"], *PARTS["test"]))
            raise UserError(f"{rows.key}: no row of {file} has one of {named} in column {column!r}: it holds {listed}")
    left = f"; {counted(len(found['test']), 'row', ',')} for test left alone" if len(found["test"]) and "val" in needed else ""
    told = f"{rows.key}: {file}: parts from column {column!r}: {listed}{left}"
    rows.columns = replace(rows.columns, notes=(*rows.columns.notes, told))
    return found


def one_part(rows: Rows, part: str) -> np.ndarray:
    """Rows of a part by its own name; how many goes into the notes.

    Raises:
        UserError: if there is no column of parts, or none of its rows has the name.
    """
    file = rows.source.path
    if rows.columns.split is None:
        there = some(rows.source.names, 20)
        cure = f"name it with {section_of(rows.key)}.columns.split"
        raise UserError(f"{rows.key}: {file} has no column that tells parts ({there}), of which {part!r} is wanted; {cure}")
    column = rows.source.names[rows.columns.split]
    keep = np.flatnonzero(np.isin(rows.splits, [i for i, name in enumerate(rows.split_names) if name.lower() in PARTS[part]]))
    if not len(keep):
        listed = some(rows.split_names)
        raise UserError(f"{rows.key}: no row of {file} has one of {', '.join(PARTS[part])} in column {column!r}: it holds {listed}")
    told = f"{rows.key}: {file}: {counted(len(keep), 'row', ',')} of {len(rows.paths):,}, those for {part} in column {column!r}"
    rows.columns = replace(rows.columns, notes=(*rows.columns.notes, told))
    return keep
