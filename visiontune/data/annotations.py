"""Annotated pictures: a table with a row a picture becomes a `PictureTable`, and all that is wrong with it is told at once.

N rows, K classes.
"""

import contextlib
import os
from array import array
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visiontune.data.broken import FORGIVEN
from visiontune.data.cells import Classes, classes_of, hashable, zeros_and_ones
from visiontune.data.columns import Columns, TableSettings, find_columns
from visiontune.data.rows import Place, Source, open_source
from visiontune.data.table import Members, PictureTable
from visiontune.errors import UserError, counted, some

# What the rows of a split column are for, by their names.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# From so many rows of one folder on, it is listed rather than asked for each: on network storage a listing costs as much as a few of them.
LISTED = 8


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


def open_table(
    path: str,
    settings: TableSettings,
    *,
    key: str,
    labelled: bool | None,
    several: bool | None = None,
    max_broken: float = 0.01,
) -> PictureTable:
    """The pictures of a table in its order; where the recipe names a column of parts, those for training.

    Args:
        path: what `rows.is_table` takes.
        settings: what the recipe says of it.
        key: the recipe's key, for messages.
        labelled: read labels; None does so where there is a column of them.
        several: whether pictures may have several labels; None: as it looks.
        max_broken: share of files that may be missing; they are met as broken pictures later.

    Raises:
        UserError: with all that is wrong.
    """
    rows = _read(path, settings, key, labelled)
    keep = np.arange(len(rows.paths))
    if settings.split:
        keep = _parts(rows, ("train",))["train"]
    elif rows.columns.split is not None and len(rows.split_names) > 1:
        column = rows.source.names[rows.columns.split]
        note = f"{key}: all rows of {path} are taken, whatever is in column {column!r} ({some(rows.split_names)})"
        rows.columns = replace(rows.columns, notes=(*rows.columns.notes, f"{note}; {_section(key)}.columns.split={column} looks at it"))
    return _build(rows, settings, keep, np.zeros(len(rows.paths), dtype=np.int8), several, max_broken)[0]


def open_split(
    path: str, settings: TableSettings, *, key: str, several: bool | None = None, max_broken: float = 0.01
) -> tuple[PictureTable, PictureTable]:
    """Training and validation pictures of a labelled table by its column of parts; those named `test` serve if none are for validation.

    Raises:
        UserError: with all that is wrong.
    """
    rows = _read(path, settings, key, True)
    _must_have_split(rows.source, rows.columns, key)
    parts = _parts(rows, ("train", "val"))
    side = np.zeros(len(rows.paths), dtype=np.int8)
    side[parts["val"]] = 1
    train, val = _build(rows, settings, np.sort(np.concatenate([parts["train"], parts["val"]])), side, several, max_broken)
    return train, val


def look_into(path: str, settings: TableSettings, *, key: str, labelled: bool, split: bool) -> None:
    """Find what is wrong with a table as a whole, before anything is done with it: reads until it meets a picture that is there.

    Args:
        path, settings, key, labelled: see `open_table`.
        split: it must have a column that tells training from validation.

    Raises:
        UserError: with the first of it.
    """
    source = open_source(path, key=key)
    columns = find_columns(source, settings, key=key, labelled=labelled)
    if split:
        _must_have_split(source, columns, key)
    root, first, count = settings.root or source.root, "", 0
    for _, row in source.rows([columns.path]):
        if row is None or not row[0]:
            continue
        if isinstance(row[0], Place) or os.path.lexists(os.path.join(root, str(row[0]).strip())):
            return
        first, count = first or str(row[0]).strip(), count + 1
    if count:
        raise UserError(_none_there(path, os.fsencode(first), count, root, key))
    raise UserError(f"{key}: {path} has no row with a picture")


def _section(key: str) -> str:
    """`data` or `probe`, whose `columns` and `root` say more of a table; `check` takes those of `data`."""
    return key.partition(".")[0] if "." in key else "data"


def _must_have_split(source: Source, columns: Columns, key: str) -> None:
    if columns.split is None:
        section = _section(key)
        cure = f"give {section}.val: a folder, a table{', or a share such as 0.2' * (section == 'data')}"
        missing = f"has no column that tells training from validation ({some(source.names, 20)})"
        raise UserError(f"{section}.val: is missing, and {source.path} {missing}; {cure}; or name the column with {section}.columns.split")


def _none_there(path: str, first: bytes, count: int, root: str, key: str) -> str:
    cure = f"paths are relative to {root}; another folder: {_section(key)}.root=FOLDER"
    if b"://" in first:
        cure = "an address cannot be read: fetch the pictures first"
    elif b"\\" in first and os.sep == "/":
        cure = "here folders are separated by /, not by \\"
    whole = os.path.join(root, os.fsdecode(first))
    return f"{key}: none of the {counted(count, 'file', ',')} of {path} is there, the first is {whole}; {cure}"


# ---------------------------------------------------------------- reading


def _read(path: str, settings: TableSettings, key: str, labelled: bool | None) -> Rows:
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


def _parts(rows: Rows, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
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


# ---------------------------------------------------------------- rows to tables


def _build(
    rows: Rows, settings: TableSettings, keep: np.ndarray, side: np.ndarray, several: bool | None, max_broken: float
) -> list[PictureTable]:
    """Tables of the rows to keep, one a side (0: training, 1: validation), with the classes of all of them."""
    troubles, lines = rows.troubles, rows.lines
    classes = _classes(rows, settings, keep, several)
    if classes is not None and not classes.several:
        empty = classes.rows[rows.labels[keep]] < 0
        troubles.add(lines[keep[empty]].tolist(), "row", "without a label left out")
        if empty.all():
            raise UserError(f"{rows.key}: no row of {rows.source.path} has a label; {'; '.join(troubles.told)}")
        keep = keep[~empty]
    keep = _once(rows, classes, keep, side)
    root, keep_paths = _rooted(settings.root or rows.source.root, [rows.paths[i] for i in keep.tolist()])
    if not len(rows.places):
        _look_for_files(rows, root, keep, keep_paths, max_broken)
    if troubles.fatal:
        raise UserError(f"{rows.key}: {rows.source.path}: {'; '.join(troubles.told)}; nothing was read from it")
    notes = list(rows.columns.notes)
    if troubles.told:
        notes.append(f"{rows.key}: {rows.source.path}: {'; '.join(troubles.told)}")
    if classes is not None and classes.separated:
        notes.append(f"{rows.key}: several labels a picture, separated by {' or '.join(classes.separated)} (data.label_separator)")

    tables = []
    for part in range(int(side.max(initial=0)) + 1):
        mine = np.flatnonzero(side[keep] == part)
        labels = targets = members = None
        if classes is not None and classes.several:
            targets = classes.rows[rows.labels[keep[mine]]]
        elif classes is not None:
            labels = classes.rows[rows.labels[keep[mine]]]
        if len(rows.places):
            shard, start, size = rows.places[keep[mine]].T
            members = Members(rows.source.shards, shard.astype(np.int32), start.copy(), size.copy(), mixed=False)
        names = classes.names if classes is not None else ()
        more = {"members": members, "targets": targets, "notes": tuple(notes) if part == 0 else ()}
        tables.append(PictureTable.of(root, [keep_paths[i] for i in mine.tolist()], labels, names, **more))
    return tables


def _classes(rows: Rows, settings: TableSettings, keep: np.ndarray, several: bool | None) -> Classes | None:
    """Classes of the kept rows.

    Raises:
        UserError: if there is only one, or cells that cannot be labels.
    """
    if not rows.columns.labels:
        return None
    if rows.columns.one_each:
        first = np.unique(rows.labels, return_index=True)[1]
        places = [f"{rows.source.counts} {rows.lines[i]}" for i in first.tolist()]
        names = tuple(rows.source.names[c] for c in rows.columns.labels)
        return zeros_and_ones([c for c in rows.cells if isinstance(c, tuple)], names, places, where=f"{_section(rows.key)}.columns.label")
    # Cells of rows that are left out (a test part) make no classes.
    used = np.unique(rows.labels[keep])
    (column,) = rows.columns.labels
    cells = [rows.cells[i] for i in used.tolist()]
    found = classes_of(cells, rows.source.class_names.get(column, ()), settings.separator, several)
    if len(found.names) < 2 - found.several:
        which = f"of one class ({found.names[0]})" if found.names else "without a label"
        raise UserError(f"{rows.key}: all rows of {rows.source.path} are {which} in column {rows.source.names[column]!r}; two are needed")
    by_cell = np.zeros((len(rows.cells), *found.rows.shape[1:]), dtype=found.rows.dtype)
    by_cell[used] = found.rows
    return replace(found, rows=by_cell)


def _once(rows: Rows, classes: Classes | None, keep: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Rows without those that name a picture again; other labels or another part for the same picture are a trouble."""
    hashes = np.array([hash(rows.paths[i]) for i in keep.tolist()], dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first: dict[bytes, int] = {}
    again: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    leaked: list[tuple[int, int]] = []
    for row in sorted({int(keep[order[i + d]]) for i in alike for d in (0, 1)}):
        before = first.setdefault(rows.paths[row], row)
        if before == row:
            continue
        same = classes is None or np.array_equal(classes.rows[rows.labels[row]], classes.rows[rows.labels[before]])
        (again if same and side[row] == side[before] else leaked if same else other).append((row, before))
    for pairs, what, fatal in (
        (again, "naming a picture again left out", False),
        (other, "giving a picture another label than before; all labels of a picture stand in one row, as a|b", True),
        (leaked, "naming a picture of the other part again (training, validation)", True),
    ):
        examples = [f"{os.fsdecode(rows.paths[row])}, as in {rows.lines[before]}" for row, before in pairs[:5]]
        rows.troubles.add([int(rows.lines[row]) for row, _ in pairs], "row", what, examples=examples, fatal=fatal)
    return keep[~np.isin(keep, [row for row, _ in again])]


def _rooted(root: str, paths: list[bytes]) -> tuple[str, list[bytes]]:
    """A root and the paths below it: that of the file system where some are absolute."""
    if not any(os.path.isabs(path) for path in paths):
        return root, paths
    whole = os.fsencode(os.path.abspath(root))
    top = os.path.abspath(os.sep)
    return top, [os.path.join(whole, path)[len(os.fsencode(top)) :] for path in paths]


def _look_for_files(rows: Rows, root: str, keep: np.ndarray, paths: list[bytes], max_broken: float) -> None:
    """Files that are not there: a trouble where they are many, an error at once where none is there."""
    gone = missing_files(root, paths)
    if paths and len(gone) == len(paths):
        raise UserError(_none_there(rows.source.path, paths[0], len(paths), root, rows.key))
    many = len(gone) > max(FORGIVEN, max_broken * len(paths))
    what = f", more than {_section(rows.key)}.max_broken allows ({max_broken:g})" if many else ", counted as broken"
    examples = [os.fsdecode(paths[i]) for i in gone[:5]]
    rows.troubles.add([int(rows.lines[keep[i]]) for i in gone], "row", f"whose file is not there{what}", examples=examples, fatal=many)


def missing_files(root: str, paths: Sequence[bytes]) -> list[int]:
    """Numbers of the paths that lead to nothing."""
    folders: dict[bytes, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        folders[os.path.dirname(path)].append(i)
    top, gone = os.fsencode(root), []
    for folder, numbers in folders.items():
        there: set[bytes] = set()
        if len(numbers) >= LISTED:
            with contextlib.suppress(OSError):  # asking for each tells
                there = set(os.listdir(os.path.join(top, folder)))
        # Asked again: names may be written in another way, where the file system takes large and small letters for the same.
        gone += [i for i in numbers if os.path.basename(paths[i]) not in there and not os.path.lexists(os.path.join(top, paths[i]))]
    return sorted(gone)
