"""Which pictures are meant: files, folders of them, tar shards, and lists of such on standard input."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visiontune.data.folder import list_pictures, missing_folder
from visiontune.data.read import read_bytes, read_file
from visiontune.data.shards import is_shards
from visiontune.data.table import PictureTable
from visiontune.errors import UserError

Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Source:
    """One picture to read: a file, or the `index`-th of a folder or of shards."""

    name: str
    table: PictureTable | None = None
    index: int = 0

    def read(self) -> bytes:
        """Its file, whole. Raises BrokenPicture."""
        return read_file(self.name) if self.table is None else read_bytes(self.table, self.index)


class Sources:
    """Pictures in the order of the paths; those of a folder or of shards in the order of training's listing.

    Args:
        paths: one path or several. Of a list, folders and shards are opened at once, so that a mistake is told before any work; what comes
            one by one (a generator, standard input) is opened when its turn comes, and not kept.
        key: for error messages.

    Attributes:
        total: number of pictures; None if it is not known beforehand.
        notes: what a person should know of folders that were opened at once, such as files in them that are not read.

    Raises:
        UserError: for a folder without pictures, or shards that cannot be used.
    """

    def __init__(self, paths: Paths, *, key: str = "predict") -> None:
        if isinstance(paths, str | Path):
            paths = [paths]
        self.parts: Iterable[str | PictureTable] = (_open(str(path), key) for path in paths)
        self.total: int | None = None
        self.notes: list[str] = []
        if isinstance(paths, Sequence):
            self.parts = parts = list(self.parts)
            self.total = sum(1 if isinstance(part, str) else len(part) for part in parts)
            tables = [part for part in parts if not isinstance(part, str)]
            self.notes = [note for table in tables for note in table.notes if note.startswith(f"{key}: ")]

    def __iter__(self) -> Iterator[Source]:
        for part in self.parts:
            if isinstance(part, str):
                yield Source(part)
            else:
                yield from (Source(part.path(i), part, i) for i in range(len(part)))


def _open(path: str, key: str) -> str | PictureTable:
    return list_pictures(path, key=key) if os.path.isdir(path) or is_shards(path) or path.startswith("sample:") else path


def from_words(words: Sequence[str], *, key: str) -> Sources:
    """Paths as a command got them; `-` stands for the lines of standard input.

    Raises:
        UserError: if one is not there: a word that was typed is a slip, while a line of a long list is a broken picture.
    """
    for word in words:
        if not (word == "-" or word.startswith("sample:") or is_shards(word) or os.path.lexists(word)):
            raise UserError(missing_folder(key, word).replace("no folder", "no file or folder", 1))
    if "-" not in words:
        return Sources(words, key=key)
    return Sources((path for word in words for path in (_lines() if word == "-" else [word])), key=key)


def _lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)
