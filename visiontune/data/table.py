"""The pictures of a run: where the bytes of each lie, in arrays that all loader workers share.

A million paths as a Python list are a million objects, and every worker that looks at one copies the memory page around it. Here they
are bytes in one array, mapped from the index file where there is one.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Members:
    """Pictures inside of larger files.

    Attributes:
        shards: paths of the tar files below the root, in order; or of Arrow files, which hold pictures at places just the same.
        shard: number of each picture's shard; int32.
        start: its first byte in there; int64.
        size: bytes; int64.
        mixed: whether neighbours in a shard are a random choice, so that an epoch may read them together.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    start: np.ndarray
    size: np.ndarray
    mixed: bool = True

    def take(self, indices: np.ndarray) -> "Members":
        return replace(self, shard=self.shard[indices], start=self.start[indices], size=self.size[indices])


@dataclass(frozen=True, eq=False)
class PictureTable:
    """Paths as bytes with offsets and optional labels: one a picture (`labels`) or any number (`targets`).

    N pictures, K classes.

    Attributes:
        root: the folder that paths are relative to.
        names: all relative paths, one after another; uint8.
        offsets: where each begins, one more than there are pictures; int64.
        labels: class of each picture, or None; integers.
        targets: `(N, K)` uint8, 1 where a picture has a class, of which it may have several or none; or None. Then there are no `labels`.
        classes: class names in the order of their numbers.
        members: where the pictures lie in shards, or None for files.
        mapped: the index file that the arrays are mapped from and its fingerprint, or None: workers that are not forked open it again.
        notes: what was met while listing, in words.
    """

    root: str
    names: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    members: Members | None = None
    mapped: tuple[Path, str] | None = None
    notes: tuple[str, ...] = field(default=())
    targets: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        root: str,
        relative: Sequence[bytes],
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] = (),
        **more: Any,
    ) -> "PictureTable":
        offsets = np.zeros(len(relative) + 1, dtype=np.int64)
        np.cumsum([len(r) for r in relative], out=offsets[1:])
        names = np.frombuffer(b"".join(relative), dtype=np.uint8)
        return cls(root, names, offsets, None if labels is None else np.asarray(labels, dtype=np.int64), tuple(classes), **more)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    # Views of the same memory that give plain integers and bytes: a look-up through numpy's scalars takes four times as long.
    @cached_property
    def _bytes(self) -> memoryview:
        return memoryview(np.ascontiguousarray(self.names))

    @cached_property
    def _starts(self) -> memoryview:
        return memoryview(np.ascontiguousarray(self.offsets))

    @cached_property
    def _prefix(self) -> str:
        return os.path.join(self.root, "")

    def name(self, index: int) -> bytes:
        """Path below the root."""
        return bytes(self._bytes[self._starts[index] : self._starts[index + 1]])

    def path(self, index: int) -> str:
        """For people and for `open`; of a picture in a shard `SHARD.tar/MEMBER`."""
        return self._prefix + os.fsdecode(self.name(index))

    def label(self, index: int) -> int | np.ndarray:
        """The class's number, -1 where there are no labels; of a table with `targets` its row `(K,)`."""
        if self.targets is not None:
            return self.targets[index]
        return -1 if self.labels is None else int(self.labels[index])

    def class_counts(self) -> np.ndarray:
        """Pictures of each class; `(K,)` int64.

        Raises:
            ValueError: if the table has no labels.
        """
        if self.targets is not None:
            return self.targets.sum(axis=0, dtype=np.int64)
        if self.labels is None:
            raise ValueError(f"expected a table with labels, got one of {len(self)} pictures without")
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def fingerprint(self) -> str:
        """Changes when a picture is added, removed, renamed, or gets another label."""
        code = zlib.crc32(self.names[self.offsets[0] : self.offsets[-1]])
        if self.members is not None:  # shards written anew have the same names for other pictures
            code = zlib.crc32(np.ascontiguousarray(self.members.size), zlib.crc32(np.ascontiguousarray(self.members.start), code))
        if self.labels is not None:
            code = zlib.crc32(self.labels.astype(np.int64), code)
        if self.targets is not None:
            code = zlib.crc32(np.ascontiguousarray(self.targets), code)
        return f"{len(self)} pictures, {zlib.crc32(os.fsencode(chr(0).join(self.classes)), code):08x}"

    def take(self, indices: Iterable[int]) -> "PictureTable":
        """A table of these pictures alone, in ascending order."""
        chosen = np.array(sorted(indices), dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        more: dict[str, Any] = {"members": None if self.members is None else self.members.take(chosen)}
        more["targets"] = None if self.targets is None else self.targets[chosen]
        return PictureTable.of(self.root, [self.name(i) for i in chosen.tolist()], labels, self.classes, **more)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        if self.mapped is not None and not _still_there(*self.mapped):
            state["mapped"] = None  # the folder was listed anew: the arrays travel themselves
        elif self.mapped is not None:
            state |= {"names": None, "offsets": None, "labels": None, "labelled": self.labels is not None, "count": len(self)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["mapped"] is not None:
            from visiontune.data.index import open_again

            index = open_again(*state["mapped"])
            # Labelled tables leave out the first ones, which lie in no class folder.
            first = len(index) - state.pop("count")
            state |= {"names": index.names, "offsets": index.offsets[first:]}
            state["labels"] = index.labels[first:] if state.pop("labelled") else None
        self.__dict__.update(state)


def _still_there(file: Path, fingerprint: str) -> bool:
    from visiontune.data.index import fingerprint_of

    return fingerprint_of(file) == fingerprint
