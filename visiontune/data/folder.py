"""What lies in a folder: pictures, and labels where its sub-folders are classes."""

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visiontune.data.sample import sample_folder
from visiontune.errors import UserError, some

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class PictureTable:
    """Paths as bytes with offsets and optional labels: arrays that loader workers share, instead of a list that each one copies.

    Attributes:
        root: the folder that paths are relative to.
        names: all relative paths, encoded, one after another; uint8.
        offsets: where each begins, one more than there are pictures; int64.
        labels: class of each picture, or None; int64.
        classes: class names in the order of their numbers.
    """

    root: str
    names: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: str, relative: Sequence[bytes], labels: Sequence[int] | None = None, classes: Sequence[str] = ()) -> "PictureTable":
        offsets = np.zeros(len(relative) + 1, dtype=np.int64)
        np.cumsum([len(r) for r in relative], out=offsets[1:])
        names = np.frombuffer(b"".join(relative), dtype=np.uint8)
        return cls(root, names, offsets, None if labels is None else np.asarray(labels, dtype=np.int64), tuple(classes))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def path(self, index: int) -> str:
        name = self.names[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return os.path.join(self.root, os.fsdecode(name))

    def fingerprint(self) -> str:
        """Changes when a picture is added, removed or renamed."""
        return f"{len(self)} pictures, {zlib.crc32(self.names.tobytes()):08x}"

    def take(self, indices: Iterable[int]) -> "PictureTable":
        """A table of these pictures alone, in ascending order."""
        chosen = sorted(indices)
        names = [self.names[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in chosen]
        return PictureTable.of(self.root, names, None if self.labels is None else self.labels[chosen].tolist(), self.classes)


def list_pictures(root: str | Path, *, key: str = "data.train", labelled: bool = False) -> PictureTable:
    """List a folder's pictures, sorted by name, so that the same tree gives the same order everywhere.

    Args:
        root: a folder, or `sample:digits/train` and `sample:digits/test`.
        key: the recipe's key, for error messages.
        labelled: take the first level of sub-folders as classes, in alphabetical order.

    Raises:
        UserError: if the folder is missing or holds no picture, or has no class folders although `labelled`.
    """
    folder = str(sample_folder(str(root))) if str(root).startswith("sample:") else str(root)
    if not os.path.isdir(folder):
        raise UserError(missing_folder(key, folder))
    relative = sorted(_walk(os.fsencode(folder), b""))
    if not relative:
        there = sorted(os.listdir(folder))
        listed = f"it holds {some(there)}" if there else "it is empty"
        raise UserError(f"{key}: no picture in {folder}; {listed}; pictures end in {', '.join(SUFFIXES)}")
    if not labelled:
        return PictureTable.of(folder, relative)

    firsts = [r.split(b"/", 1)[0] if b"/" in r else b"" for r in relative]
    kept = [(r, f) for r, f in zip(relative, firsts, strict=True) if f]
    classes = sorted({f for _, f in kept})
    if len(classes) < 2:
        found = f"one class folder ({os.fsdecode(classes[0])})" if classes else f"{len(relative)} pictures and no class folders"
        raise UserError(f"{key}: {folder} holds {found}; labelled pictures lie in one sub-folder a class (flowers/train/rose/1.jpg)")
    number = {name: i for i, name in enumerate(classes)}
    return PictureTable.of(folder, [r for r, _ in kept], [number[f] for _, f in kept], [os.fsdecode(c) for c in classes])


def missing_folder(key: str, folder: str) -> str:
    """The end of a search for a folder: what is there instead."""
    parent = Path(folder).absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    beside = sorted(p.name for p in parent.iterdir() if p.is_dir())
    return f"{key}: no folder {folder}; {parent} holds {'the folders ' + some(beside) if beside else 'no folders'}"


def _walk(root: bytes, below: bytes) -> Iterable[bytes]:
    with os.scandir(os.path.join(root, below) if below else root) as entries:
        for entry in entries:
            name = below + b"/" + entry.name if below else entry.name
            if entry.is_dir():
                yield from _walk(root, name)
            elif entry.name.lower().endswith(tuple(s.encode() for s in SUFFIXES)):
                yield name


def align_labels(val: PictureTable, classes: Sequence[str], key: str = "data.val") -> PictureTable:
    """Number the validation's classes as the training's.

    Raises:
        UserError: if validation has a class that training has not.
    """
    unknown = [c for c in val.classes if c not in classes]
    if unknown:
        raise UserError(f"{key}: {val.root} has classes that the training folder has not: {some(unknown)}; training has {some(classes)}")
    assert val.labels is not None
    number = np.array([list(classes).index(c) for c in val.classes], dtype=np.int64)
    return PictureTable(val.root, val.names, val.offsets, number[val.labels], tuple(classes))


def few_labels(table: PictureTable, *, seed: int, fraction: float | None = None, per_class: int | None = None) -> PictureTable:
    """A stratified part of the labels, at least one picture a class; a smaller part is contained in a larger one of the same seed."""
    if fraction is None and per_class is None:
        return table
    assert table.labels is not None
    chosen: list[int] = []
    for k in range(len(table.classes)):
        members = np.flatnonzero(table.labels == k)
        count = per_class if per_class is not None else max(1, round((fraction or 0) * len(members)))
        order = np.random.default_rng((seed, k)).permutation(members)
        chosen += order[:count].tolist()
    return table.take(chosen)


def split_off(table: PictureTable, fraction: float, *, seed: int) -> tuple[PictureTable, PictureTable]:
    """A stratified part for validation: `(the rest, the part)`."""
    part = few_labels(table, seed=seed + 1, fraction=fraction)
    inside = {part.path(i) for i in range(len(part))}
    rest = [i for i in range(len(table)) if table.path(i) not in inside]
    return table.take(rest), part
