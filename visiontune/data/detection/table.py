"""Boxes of all pictures of a run in arrays that loader workers share.

N pictures, M boxes of all of them, K classes. Boxes are xyxy in pixels of the original picture; one covers `x1 <= x < x2`.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from visiontune.boxes import Boxes
from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted, near, some


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: of `problems.KINDS`.
        path: the picture, or the annotation file where it is that which is wrong.
        detail: in words.
        picture: its number in the table, -1 where there is none.
        box: the number of the box within the table, -1 where it is not about one.
    """

    kind: str
    path: str
    detail: str
    picture: int = -1
    box: int = -1


@dataclass(frozen=True, eq=False)
class BoxTable:
    """What there is to detect.

    Attributes:
        pictures: where each picture lies.
        xyxy: `(M, 4)` float32, picture after picture.
        label: `(M,)` int64, class numbers from 0.
        crowd: `(M,)` bool: COCO's `iscrowd`, Pascal VOC's `difficult`: nobody learns from it, and finding it or not counts for nothing.
        area: `(M,)` float32, square pixels; of COCO that of the object's outline where it is told, else of the box.
        offsets: `(N + 1,)` int64: boxes `offsets[i]` to `offsets[i + 1]` are those of picture `i`.
        classes: names in the order of their numbers.
        sizes: `(N, 2)` int32, height and width that the annotations were made for; 0 where neither they nor the file tell.
        category_ids: `(K,)` int64, the numbers of the classes in a COCO file, which leave gaps; None where the annotations have none.
        picture_ids: `(N,)` int64, likewise of the pictures.
        source: the annotation file or folder.
        notes: what was met while reading, in words.
        problems: what was met while reading and left out.
    """

    pictures: PictureTable
    xyxy: np.ndarray
    label: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    offsets: np.ndarray
    classes: tuple[str, ...]
    sizes: np.ndarray
    category_ids: np.ndarray | None = None
    picture_ids: np.ndarray | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        pictures: PictureTable,
        owner: np.ndarray,
        xyxy: np.ndarray,
        label: np.ndarray,
        *,
        classes: Sequence[str],
        sizes: np.ndarray,
        crowd: np.ndarray | None = None,
        area: np.ndarray | None = None,
        category_ids: Sequence[int] | np.ndarray | None = None,
        picture_ids: Sequence[int] | np.ndarray | None = None,
        source: str = "",
        notes: Sequence[str] = (),
        problems: Sequence[Problem] = (),
    ) -> "BoxTable":
        """From boxes in any order.

        Args:
            owner: `(M,)`, the number of each box's picture; others as the attributes.
        """
        order = np.argsort(owner, kind="stable")
        xyxy = np.asarray(xyxy, dtype=np.float32).reshape(-1, 4)
        if area is None:
            area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
        return cls(
            pictures,
            np.ascontiguousarray(xyxy[order]),
            np.asarray(label, dtype=np.int64)[order],
            np.zeros(len(xyxy), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool)[order],
            np.asarray(area, dtype=np.float32)[order],
            np.concatenate([[0], np.cumsum(np.bincount(np.asarray(owner, dtype=np.int64), minlength=len(pictures)))]).astype(np.int64),
            tuple(classes),
            np.asarray(sizes, dtype=np.int32).reshape(-1, 2),
            None if category_ids is None else np.asarray(category_ids, dtype=np.int64),
            None if picture_ids is None else np.asarray(picture_ids, dtype=np.int64),
            source,
            tuple(notes),
            tuple(problems),
        )

    def __len__(self) -> int:
        """Pictures."""
        return len(self.pictures)

    def rows(self, index: int) -> slice:
        """Where the boxes of a picture stand in the arrays."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def boxes_of(self, index: int, *, crowd: bool = False) -> Boxes:
        """The boxes of a picture; those that are a `crowd` too, where asked for."""
        rows = self.rows(index)
        xyxy, label = self.xyxy[rows], self.label[rows]
        if not crowd:
            keep = ~self.crowd[rows]
            xyxy, label = xyxy[keep], label[keep]
        return Boxes(torch.tensor(xyxy), torch.tensor(label))

    def crowd_of(self, index: int) -> Boxes:
        """The boxes of a picture that are a crowd: whether they are found or not counts for nothing."""
        rows = self.rows(index)
        keep = self.crowd[rows]
        return Boxes(torch.tensor(self.xyxy[rows][keep]), torch.tensor(self.label[rows][keep]))

    def area_of(self, index: int) -> torch.Tensor:
        """Areas of the boxes of a picture that are no crowd, in the order of `boxes_of`; `(M,)` float32, square pixels."""
        rows = self.rows(index)
        return torch.tensor(self.area[rows][~self.crowd[rows]])

    @property
    def owner(self) -> np.ndarray:
        """`(M,)` int64, the number of each box's picture."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def class_counts(self) -> np.ndarray:
        """Boxes of each class, without those of a crowd; `(K,)` int64."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.classes)).astype(np.int64)

    def fingerprint(self) -> str:
        """Changes when a picture or a box does."""
        code = zlib.crc32("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for array in (self.xyxy, self.label, self.crowd, self.offsets):
            code = zlib.crc32(np.ascontiguousarray(array), code)
        return f"{self.pictures.fingerprint()}, {len(self.label)} boxes, {code:08x}"

    def take(self, indices: Iterable[int]) -> "BoxTable":
        """A table of these pictures alone, in ascending order."""
        chosen = np.unique(np.fromiter(indices, dtype=np.int64))
        number = np.full(len(self), -1, dtype=np.int64)
        number[chosen] = np.arange(len(chosen))
        owner = number[self.owner]
        return replace(
            self._boxes(owner >= 0),
            pictures=self.pictures.take(chosen.tolist()),
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[chosen])]),
            sizes=self.sizes[chosen],
            picture_ids=None if self.picture_ids is None else self.picture_ids[chosen],
            problems=(),
        )

    def without(self, dropped: np.ndarray) -> "BoxTable":
        """All pictures, but not these boxes: a mask `(M,)`."""
        counts = np.bincount(self.owner[~dropped], minlength=len(self))
        return replace(self._boxes(~dropped), offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def _boxes(self, keep: np.ndarray) -> "BoxTable":
        return replace(self, xyxy=self.xyxy[keep], label=self.label[keep], crowd=self.crowd[keep], area=self.area[keep])


def align_classes(table: BoxTable, classes: Sequence[str], *, key: str = "data.val", strict: bool = True) -> BoxTable:
    """Number the classes as the training's; those that no box has may be unknown there.

    Args:
        table: what was read.
        classes: names in the order of their numbers.
        key: the recipe's, for messages.
        strict: an unknown class is an error; else its boxes are left out and become problems.

    Raises:
        UserError: with the classes that training has not.
    """
    used = np.bincount(table.label, minlength=len(table.classes)) > 0
    known = {name: i for i, name in enumerate(classes)}
    unknown = [name for name, is_used in zip(table.classes, used, strict=True) if is_used and name not in known]
    if unknown and strict:
        what = f"{counted(len(unknown), 'class')} that training has not: {some(map(repr, unknown))}"
        raise UserError(f"{key}: {table.source} has {what}{near(unknown[0], classes)}; training has {some(map(repr, classes), 20)}")
    number = np.array([known.get(name, -1) for name in table.classes], dtype=np.int64)
    if unknown:
        out = number[table.label] < 0
        owner = table.owner
        told = [
            Problem("unknown class", table.pictures.path(int(owner[m])), f"{table.classes[table.label[m]]!r}", int(owner[m]))
            for m in np.flatnonzero(out).tolist()
        ]
        table = replace(table.without(out), problems=(*table.problems, *told))
    ids = None
    if table.category_ids is not None:
        own = dict(zip(table.classes, table.category_ids.tolist(), strict=True))
        spare = max(own.values(), default=0) + 1  # a class that this file does not know: a number that none of its own has
        ids = np.array([own.get(name, spare + i) for i, name in enumerate(classes)], dtype=np.int64)
    return replace(table, label=number[table.label], classes=tuple(classes), category_ids=ids)
