"""Which picture an annotation file belongs to: the one of the same name, and which of them a list of names wants."""

import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from visiontune.data.table import PictureTable
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, counted, near, some

ENDINGS = (*SUFFIXES, ".xml", ".txt")


def stem(path: str) -> str:
    """A path without its ending, where that is one of a picture or an annotation.

    >>> stem("./train/a.b.JPG"), stem("2007.000027")
    ('train/a.b', '2007.000027')
    """
    path = path.removeprefix("./")
    root, ending = os.path.splitext(path)
    return root if ending.lower() in ENDINGS else path


def annotation_files(folder: str, ending: str) -> Iterator[str]:
    """Paths below a folder, sorted, of files with this ending; hidden ones and those in hidden folders are passed over."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = os.path.relpath(where, folder)
        yield from (f if below == "." else f"{below}/{f}" for f in sorted(files) if f.lower().endswith(ending) and not f.startswith("."))


class Stems:
    """Numbers of pictures by name: by their path below the folder, or by the last part of it where only one has that."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.whole = {stem(name): i for i, name in enumerate(self.names)}
        self.last: dict[str, int] = {}
        for i, name in enumerate(self.names):
            short = PurePosixPath(stem(name)).name
            self.last[short] = -1 if short in self.last else i  # -1: several

    @classmethod
    def of(cls, table: PictureTable) -> "Stems":
        return cls(os.fsdecode(table.name(i)) for i in range(len(table)))

    def find(self, path: str) -> int | None:
        """The number of what is called so; of a longer path (`images/train/a.jpg`) the end counts."""
        parts = stem(path.replace("\\", "/")).split("/")
        for k in range(len(parts)):
            if (found := self.whole.get("/".join(parts[k:]))) is not None:
                return found
        found = self.last.get(parts[-1], -1)
        return found if found >= 0 else None


def choose(stems: Stems, split: str, *, key: str) -> list[int]:
    """Numbers of what a text file names, a line each: with or without folder and ending.

    Raises:
        UserError: if the file is missing or empty, or names what is not there.
    """
    try:
        with open(split, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        folder = os.path.dirname(os.path.abspath(split))
        there = sorted(n for n in os.listdir(folder) if n.endswith(".txt")) if os.path.isdir(folder) else []
        beside = f"{folder} holds {some(there)}" if there else f"there is no .txt in {folder}"
        raise UserError(f"{key}.split: cannot read {split} ({error.strerror}); {beside}") from error
    if not lines:
        raise UserError(f"{key}.split: {split} is empty; expected a name of a picture a line")
    numbers = [stems.find(line) for line in lines]
    if gone := [line for line, n in zip(lines, numbers, strict=True) if n is None]:
        what = (
            f"names {counted(len(gone), 'picture', ',')} of {len(lines):,} that {'is' if len(gone) == 1 else 'are'} not there: {some(gone)}"
        )
        raise UserError(f"{key}.split: {split} {what}{near(gone[0], stems.names)}; there are {counted(len(stems.names), 'file', ',')}, "
                        f"e.g. {some(stems.names, 3)}")  # fmt: skip
    return sorted({n for n in numbers if n is not None})
