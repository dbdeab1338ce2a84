"""Pictures inside of tar files in WebDataset's layout: which files are meant, a table of their pictures, the bytes of one.

Pictures are read at their place, as from a folder, so that any worker may ask for any picture. See `shard_index` for what a sample is.
"""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from visiontune.data.header import BrokenPicture
from visiontune.data.shard_index import index_shards
from visiontune.data.table import Members, PictureTable
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, counted, some

# Entries of a folder that are looked at before it is taken as one of shards.
GLANCE = 1000

# ---------------------------------------------------------------- which files?


def is_shards(path: str) -> bool:
    """Whether a path means tar shards: a `.tar`, a pattern (`train-*.tar`, `train-{000..012}.tar`), or a folder of them.

    A folder that has pictures itself, or in the first of its sub-folders, is one of pictures: an archive was left beside them.
    """
    if not os.path.isdir(path):
        return path.lower().endswith((".tar", ".tar.gz", ".tgz"))
    found = False
    folders: list[str] = []
    try:
        with os.scandir(path) as entries:
            for seen, entry in enumerate(entries):
                name = entry.name.lower()
                if name.startswith("."):
                    continue
                if name.endswith(SUFFIXES):
                    return False
                if name.endswith(".tar"):
                    found = True
                elif len(folders) < 8 and entry.is_dir():
                    folders.append(entry.path)
                if found and seen >= GLANCE:
                    break
    except OSError:
        return False
    return found and not any(_has_picture(f, deeper=1) for f in folders)


def _has_picture(folder: str, *, deeper: int) -> bool:
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, GLANCE):
                if entry.name.lower().endswith(SUFFIXES):
                    return True
                if len(folders) < 8 and deeper and entry.is_dir():
                    folders.append(entry.path)
    except OSError:
        return False
    return any(_has_picture(f, deeper=deeper - 1) for f in folders)


def find_shards(path: str, *, key: str) -> tuple[str, list[str]]:
    """The folder that shards lie in, and their sorted paths below it.

    Raises:
        UserError: if there is none, or one of a brace range is missing.
    """
    if os.path.isdir(path):
        return path, sorted(n for n in os.listdir(path) if n.lower().endswith(".tar") and not n.startswith("."))
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", [os.path.basename(path)]
    root = os.path.dirname(re.split(r"[*?\[{]", path)[0]) or "."
    found = {pattern: glob.glob(pattern) for pattern in _braces(path)}
    if missing := [pattern for pattern, files in found.items() if not files]:
        there = sorted(os.listdir(root)) if os.path.isdir(root) else None
        beside = f"{root} holds {some(there)}" if there else f"{root} is empty" if there is not None else f"there is no folder {root}"
        raise UserError(f"{key}: no shard {some(missing)}; {beside}")
    return root, sorted({os.path.relpath(file, root) for files in found.values() for file in files})


def _braces(pattern: str) -> Iterator[str]:
    """`{000..012}` and `{a,b}` written out, as bash and WebDataset do."""
    brace = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if brace is None:
        yield pattern
        return
    first, last, listed = brace.groups()
    if listed is not None:
        words = listed.split(",")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        words = [f"{i:0{width}d}" for i in range(int(first), int(last) + step, step)]
    for word in words:
        yield from _braces(pattern[: brace.start()] + word + pattern[brace.end() :])


# ---------------------------------------------------------------- the table


def open_shards(path: str, *, key: str, labelled: bool | None, fewest: int = 2) -> PictureTable:
    """The pictures of shards, sorted by shard, in the order of the tar within; the arrays are mapped from the index file.

    Args:
        path: what `is_shards` takes.
        key: the recipe's key, for error messages.
        labelled: read the labels; None where every picture has one. Class names are the lines of `classes.txt` in the shards' folder, else
            the numbers that occur.
        fewest: classes that labels must have.

    Raises:
        UserError: if shards are missing, unusable or without pictures, or, with `labelled`, if not every picture has a label or there are
            too few classes.
    """
    root, names = find_shards(path, key=key)
    index, note = index_shards(path, root, names, key=key)
    arrays = index.arrays
    if not len(arrays["start"]):
        raise UserError(
            f"{key}: no picture in the {counted(len(names), 'shard')} of {path}; pictures are members that end in {', '.join(SUFFIXES)}"
        )
    members = Members(tuple(names), arrays["shard"], arrays["start"], arrays["size"])
    notes = [note, *(f"index: {shard[4]}" for shard in index.shards if shard[4])]
    table = PictureTable(root, arrays["names"], arrays["offsets"], members=members, notes=tuple(notes))
    if labelled is None:
        found = np.unique(arrays["labels"])
        labelled = bool(found[0] >= 0 and len(found) > 1)
    if not labelled:
        return table
    if wrong := [shard[5] for shard in index.shards if shard[5]]:
        raise UserError(f"{key}: {some(wrong, 3)}, which is no class number; `.cls` holds a whole number from 0, classes.txt the names")
    labels, classes = _classes(table, arrays["labels"], path, key, fewest)
    return replace(table, labels=labels, classes=classes)


def _classes(table: PictureTable, labels: np.ndarray, path: str, key: str, fewest: int) -> tuple[np.ndarray, tuple[str, ...]]:
    without = np.flatnonzero(labels < 0)
    if len(without):
        cure = "a class is the number in a member of the same name (0017.jpg, 0017.cls); `python -m visiontune shard` writes them"
        which = "no picture" if len(without) == len(labels) else f"{len(without)} of {len(labels)} pictures"
        verb = "has a label" if len(without) == len(labels) else f"have no label, such as {table.path(int(without[0]))}"
        raise UserError(f"{key}: in {path} {which} {verb}; {cure}")
    numbers = np.unique(labels)
    if len(numbers) < fewest:
        raise UserError(f"{key}: all pictures in {path} are of class {numbers[0]}; a classifier needs two classes or more")
    names = Path(table.root, "classes.txt")
    if names.is_file():
        classes = tuple(names.read_text(errors="surrogateescape").rstrip("\n").split("\n"))
        if numbers[-1] >= len(classes):
            raise UserError(f"{key}: {path} has class {numbers[-1]}, but {names} names {counted(len(classes), 'class')}, from 0")
        return labels, classes
    # As of folders, a class is one that has pictures; without gaps the labels stay mapped.
    gaps = numbers[-1] >= len(numbers)
    return (np.searchsorted(numbers, labels) if gaps else labels), tuple(map(str, numbers.tolist()))


# ---------------------------------------------------------------- the bytes


class _Open:
    """A shard that is open for reading. It closes with its last user, also where a thread reads while the cache drops it."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


@lru_cache(maxsize=64)  # a window of ShardShuffle reads 16 shards, two where it moves on
def _opened(path: str, process: int) -> _Open:
    """By process: a forked worker opens its own, so that none depends on what its parent closes."""
    return _Open(path)


def read_member(table: PictureTable, index: int) -> bytes:
    """A picture's bytes, out of its shard.

    Raises:
        BrokenPicture: if the shard is gone, or shorter than it was when it was listed.
    """
    members = table.members
    assert members is not None
    start, size = int(members.start[index]), int(members.size[index])
    data = b""
    try:
        shard = _opened(os.path.join(table.root, members.shards[members.shard[index]]), os.getpid())
        # `pread` leaves no position behind that another thread could move; one call may give less than was asked for.
        while len(data) < size and (more := os.pread(shard.handle, size - len(data), start + len(data))):
            data = data + more if data else more
    except FileNotFoundError as error:
        raise BrokenPicture("its shard is gone") from error
    except OSError as error:
        raise BrokenPicture(f"its shard cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise BrokenPicture("cut off: its shard is shorter than it was when it was listed")
    return data
