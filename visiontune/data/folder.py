"""What lies in a folder: pictures, and labels where its sub-folders are classes; or what shards or a table name."""

import os
from collections.abc import Sequence
from pathlib import Path

from visiontune.data.annotations import open_table
from visiontune.data.columns import TableSettings
from visiontune.data.index import open_index
from visiontune.data.rows import TABLES, is_table
from visiontune.data.sample import sample_folder
from visiontune.data.shards import is_shards, open_shards
from visiontune.data.table import PictureTable
from visiontune.data.table_rows import PARTS
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, counted, some


def list_pictures(
    root: str | Path,
    *,
    key: str = "data.train",
    labelled: bool | None = False,
    fewest: int = 2,
    settings: TableSettings = TableSettings(),  # noqa: B008 (frozen)
    several: bool | None = None,
    max_broken: float = 0.01,
    part: str | None = None,
) -> PictureTable:
    """List a folder's pictures in an order that depends on names alone, so that the same tree gives the same order everywhere.

    The listing is kept in the user's cache folder and brought up to date by the folders that changed.

    Args:
        root: a folder of pictures, or of tar shards (also `shards/train-*.tar`); a table (see `annotations`); `sample:digits/train` and
            `sample:digits/test`.
        key: the recipe's key, for error messages.
        labelled: take the first level of sub-folders as classes, in alphabetical order; of shards their `.cls` files; of a table its
            labels. None does so where every picture has a class, and where a table has labels.
        fewest: classes that labels must have: validation and evaluation may look at one alone.
        settings, several, max_broken, part: of a table, see `annotations.open_table`.

    Raises:
        UserError: if the folder is missing or holds no picture; if it has too few classes although `labelled`, or the parts of a data set
            in their place; if a `part` of no table is wanted.
    """
    folder = str(sample_folder(str(root))) if str(root).startswith("sample:") else str(root)
    if is_table(folder):
        return open_table(folder, settings, key=key, labelled=labelled, fewest=fewest, several=several, max_broken=max_broken, part=part)
    if part is not None:
        raise UserError(f"{key}: {folder} is no table, so it has no part {part!r}; give the folder of that part")
    if is_shards(folder):
        return open_shards(folder, key=key, labelled=labelled, fewest=fewest)
    if not os.path.isdir(folder):
        raise UserError(missing_folder(key, folder))
    index = open_index(folder)
    if not len(index):
        try:
            there = sorted(os.listdir(folder))
            listed = f"it holds {some(there)}" if there else "it is empty"
        except OSError as error:
            listed = f"it cannot be listed ({error.strerror})"
        notes = [*index.notes(brief=True), *([index.left_out] if index.left_out else [])]
        troubles = "".join(f"; {note.removeprefix('index: ')}" for note in notes)
        raise UserError(f"{key}: no picture in {folder}; {listed}{troubles}; pictures end in {', '.join(SUFFIXES)}")
    first = int((index.labels < 0).sum())  # the root's own pictures, which have no class, come first
    notes = index.notes(brief=True)
    if index.left_out:
        notes.append(f"{key}: {index.left_out}")
    parts = "" if labelled is False else parts_not_classes(key, folder, index.classes, fewest=fewest)
    if labelled is None:
        labelled = not first and len(index.classes) > 1
        if labelled and parts:
            labelled = False
            notes.append(parts)
    if not labelled:
        first = 0
    elif parts:
        raise UserError(parts)
    elif len(index.classes) < fewest:
        found = f"one class folder ({index.classes[0]})" if index.classes else f"{counted(len(index), 'picture')} and no class folders"
        raise UserError(f"{key}: {folder} holds {found}; labelled pictures lie in one sub-folder a class (flowers/train/rose/1.jpg)")
    if first:
        notes.append(f"{key}: {counted(first, 'picture')} directly in {folder}, in no class folder, left out")
    return PictureTable(
        folder,
        index.names,
        index.offsets[first:],
        index.labels[first:] if labelled else None,
        index.classes if labelled else (),
        mapped=(index.file, index.fingerprint),
        notes=tuple(notes),
    )


def parts_among(names: Sequence[str], wanted: str) -> list[str]:
    """Of folders that are all named as parts of a data set, and none as a class, one a part; what serves best as `wanted` comes first.

    >>> parts_among(["test", "train", "validation"], "train"), parts_among(["bus", "train"], "train")
    (['train', 'validation', 'test'], [])
    """
    part_of = {word: part for part, words in PARTS.items() for word in words}
    if any(name.lower() not in part_of for name in names):
        return []
    found = {part_of[name.lower()]: name for name in names}
    order = {"train": ("train", "val", "test"), "val": ("val", "test", "train"), "test": ("test", "val", "train")}[wanted]
    return [found[part] for part in order if part in found]


def parts_not_classes(key: str, folder: str, names: Sequence[str], *, fewest: int) -> str:
    """What is wrong with a folder that should hold classes, and holds the parts of a data set; nothing where it does not.

    Args:
        key: `SECTION.train` or `SECTION.val` of a recipe, or a verb; what is meant by it is named.
        folder: where.
        names: of the folders in it.
        fewest: classes that it must have; where that is one, a single folder may be the class of trains.
    """
    section, _, part = key.rpartition(".")
    parts = parts_among(names, part if section else "test" if key == "evaluate" else "train")
    if not parts or max(fewest, len(names)) < 2:
        return ""
    cure = f"{key}={os.path.join(folder, parts[0])}" if section else os.path.join(folder, parts[0])
    if section and part == "train" and len(parts) > 1:
        cure += f" {section}.val={os.path.join(folder, parts[1])}"
    return f"{key}: {folder} holds the folders {some(names)}, which are parts of a data set and no classes; give {cure}"


def missing_folder(key: str, folder: str) -> str:
    """The end of a search for a folder: what is there instead."""
    if os.path.exists(folder):
        what = f"{key}: {folder} is a file; pictures lie in a folder, in shards (.tar), or are named by a table"
        return f"{what} ({', '.join(TABLES)}, or a folder of `datasets.save_to_disk`)"
    parent = Path(folder).absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    beside = sorted(p.name for p in parent.iterdir() if p.is_dir())
    return f"{key}: no folder {folder}; {parent} holds {'the folders ' + some(beside) if beside else 'no folders'}"
