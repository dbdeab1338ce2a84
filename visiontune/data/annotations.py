"""Annotated pictures: a table with a row a picture becomes a `PictureTable`, and all that is wrong with it is told at once.

N rows, K classes.
"""

import os
from dataclasses import replace

import numpy as np

from visiontune.data.broken import FORGIVEN
from visiontune.data.cells import Classes, classes_of, zeros_and_ones
from visiontune.data.columns import Columns, TableSettings, find_columns, section_of
from visiontune.data.missing import missing_files, none_there, rooted
from visiontune.data.rows import Place, Source, open_source
from visiontune.data.table import Members, PictureTable
from visiontune.data.table_rows import Rows, one_part, parts_of, read_rows
from visiontune.errors import UserError, some


def open_table(
    path: str,
    settings: TableSettings,
    *,
    key: str,
    labelled: bool | None,
    fewest: int = 2,
    several: bool | None = None,
    max_broken: float = 0.01,
    part: str | None = None,
) -> PictureTable:
    """The pictures of a table in its order; where the recipe names a column of parts, those for training.

    Args:
        path: what `rows.is_table` takes.
        settings: what the recipe says of it.
        key: the recipe's key, for messages.
        labelled: read labels; None does so where there is a column of them.
        fewest: classes that there must be where pictures have one label each.
        several: whether pictures may have several labels; None: as it looks.
        max_broken: share of files that may be missing; they are met as broken pictures later.
        part: the rows of one part alone, by its own name in the column of parts.

    Raises:
        UserError: with all that is wrong.
    """
    rows = read_rows(path, settings, key, labelled)
    keep = np.arange(len(rows.paths))
    if part is not None:
        keep = one_part(rows, part)
    elif settings.split:
        keep = parts_of(rows, ("train",))["train"]
    elif rows.columns.split is not None and len(rows.split_names) > 1:
        column = rows.source.names[rows.columns.split]
        note = f"{key}: all rows of {path} are taken, whatever is in column {column!r} ({some(rows.split_names)})"
        rows.columns = replace(rows.columns, notes=(*rows.columns.notes, f"{note}; {section_of(key)}.columns.split={column} looks at it"))
    if labelled is None and rows.columns.labels and not rows.columns.one_each and len({*rows.cells} - {"", None}) < 2:
        rows.columns = replace(rows.columns, labels=())  # as a folder of one folder is one without labels
    return _build(rows, settings, keep, np.zeros(len(rows.paths), dtype=np.int8), several, max_broken, fewest)[0]


def open_split(
    path: str, settings: TableSettings, *, key: str, several: bool | None = None, max_broken: float = 0.01
) -> tuple[PictureTable, PictureTable]:
    """Training and validation pictures of a labelled table by its column of parts; those named `test` serve if none are for validation.

    Raises:
        UserError: with all that is wrong.
    """
    rows = read_rows(path, settings, key, True)
    _must_have_split(rows.source, rows.columns, key)
    parts = parts_of(rows, ("train", "val"))
    side = np.zeros(len(rows.paths), dtype=np.int8)
    side[parts["val"]] = 1
    train, val = _build(rows, settings, np.sort(np.concatenate([parts["train"], parts["val"]])), side, several, max_broken)
    for table, what in ((train, "training"), (val, "validation")):
        if not len(table):
            raise UserError(f"{key}: no row of {path} for {what} has a label")
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
        raise UserError(none_there(path, os.fsencode(first), count, root, key))
    raise UserError(f"{key}: {path} has no row with a picture")


def _must_have_split(source: Source, columns: Columns, key: str) -> None:
    if columns.split is None:
        section = section_of(key)
        cure = f"give {section}.val: a folder, a table{', or a share such as 0.2' * (section == 'data')}"
        missing = f"has no column that tells training from validation ({some(source.names, 20)})"
        raise UserError(f"{section}.val: is missing, and {source.path} {missing}; {cure}; or name the column with {section}.columns.split")


# ---------------------------------------------------------------- rows to tables


def _build(
    rows: Rows,
    settings: TableSettings,
    keep: np.ndarray,
    side: np.ndarray,
    several: bool | None,
    max_broken: float,
    fewest: int = 2,
) -> list[PictureTable]:
    """Tables of the rows to keep, one a side (0: training, 1: validation), with the classes of all of them."""
    troubles, lines = rows.troubles, rows.lines
    classes = _classes(rows, settings, keep, several, fewest)
    if classes is not None and not classes.several:
        empty = classes.rows[rows.labels[keep]] < 0
        troubles.add(lines[keep[empty]].tolist(), "row", "without a label left out")
        if empty.all():
            raise UserError(f"{rows.key}: no row of {rows.source.path} has a label; {'; '.join(troubles.told)}")
        keep = keep[~empty]
    keep = _once(rows, classes, keep, side)
    root, keep_paths = rooted(settings.root or rows.source.root, [rows.paths[i] for i in keep.tolist()])
    if not len(rows.places):
        _look_for_files(rows, root, keep, keep_paths, max_broken)
    if troubles.fatal:
        raise UserError(f"{rows.key}: {rows.source.path}: {'; '.join(troubles.told)}; nothing was read from it")
    notes = list(rows.columns.notes)
    if troubles.told:
        notes.append(f"{rows.key}: {rows.source.path}: {'; '.join(troubles.told)}")
    if classes is not None and classes.separated:
        key = f"{section_of(rows.key)}.label_separator"
        notes.append(f"{rows.key}: several labels a picture, separated by {' or '.join(classes.separated)} ({key}=false takes cells whole)")

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


def _classes(rows: Rows, settings: TableSettings, keep: np.ndarray, several: bool | None, fewest: int) -> Classes | None:
    """Classes of the kept rows.

    Raises:
        UserError: if there are too few, or cells that cannot be labels.
    """
    if not rows.columns.labels:
        return None
    where = f"{section_of(rows.key)}.columns.label"
    first = np.unique(rows.labels, return_index=True)[1]
    places = [f"{rows.source.counts} {rows.lines[i]}" for i in first.tolist()]
    if rows.columns.one_each:
        names = tuple(rows.source.names[c] for c in rows.columns.labels)
        return zeros_and_ones([c for c in rows.cells if isinstance(c, tuple)], names, places, where=where)
    # Cells of rows that are left out (a test part) make no classes.
    used = np.unique(rows.labels[keep])
    (column,) = rows.columns.labels
    cells = [rows.cells[i] for i in used.tolist()]
    met = [f"column {rows.source.names[column]!r} ({places[i]})" for i in used.tolist()]
    names = rows.source.class_names.get(column, ())
    found = classes_of(cells, names, settings.separator, several, places=met, where=where)
    needed = 1 if found.several else fewest
    if len(found.names) < needed:
        which = f"of one class ({found.names[0]})" if found.names else "without a label"
        none = f", or say {section_of(rows.key)}.label_separator='|' if an empty cell is a picture without it" * (
            bool(found.names) and not found.several and bool((found.rows < 0).any())
        )
        words = "two classes are" if needed > 1 else "a class is"
        raise UserError(
            f"{rows.key}: all rows of {rows.source.path} are {which} in column {rows.source.names[column]!r}; {words} needed{none}"
        )
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


def _look_for_files(rows: Rows, root: str, keep: np.ndarray, paths: list[bytes], max_broken: float) -> None:
    """Files that are not there: a trouble where they are many, an error at once where none is there."""
    gone = missing_files(root, paths)
    if paths and len(gone) == len(paths):
        raise UserError(none_there(rows.source.path, paths[0], len(paths), root, rows.key))
    many = len(gone) > max(FORGIVEN, max_broken * len(paths))
    what = f", more than data.max_broken allows ({max_broken:g})" if many else ", counted as broken"
    examples = [os.fsdecode(paths[i]) for i in gone[:5]]
    rows.troubles.add([int(rows.lines[keep[i]]) for i in gone], "row", f"whose file is not there{what}", examples=examples, fatal=many)
