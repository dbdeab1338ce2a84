"""Boxes: xyxy in pixels, `x` to the right, `y` down, of the picture's upper left corner; a box covers `x1 <= x < x2`.

M boxes. Labels count from 0; there is no class for the background here, whatever a head makes of it inside.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# What stands where there is no picture: about the mean of photographs (ImageNet's is 124, 116, 104), nearly 0 after normalisation.
FILL = 114


@dataclass(frozen=True, eq=False)
class Boxes:
    """What is in one picture, or what a detector says is in it. The one thing that travels between data, heads, metrics and predictions.

    Attributes:
        xyxy: `(M, 4)`, float32; `(0, 4)` for an empty picture.
        labels: `(M,)`, int64, from 0.
        scores: `(M,)`, float32, of predictions; None for the truth.
    """

    xyxy: Tensor
    labels: Tensor
    scores: Tensor | None = None

    @staticmethod
    def none(device: torch.device | str = "cpu") -> "Boxes":
        """Of an empty picture."""
        return Boxes(torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.long, device=device))

    def __len__(self) -> int:
        return len(self.xyxy)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Boxes":
        moved = (x if x is None else x.to(device, non_blocking=non_blocking) for x in (self.xyxy, self.labels, self.scores))
        return Boxes(*moved)  # type: ignore[arg-type]

    def take(self, which: Tensor) -> "Boxes":
        """Some of them: indices, or a mask `(M,)`."""
        return Boxes(self.xyxy[which], self.labels[which], None if self.scores is None else self.scores[which])

    def with_area(self) -> "Boxes":
        """Those that cover anything: what lies wholly beside a picture does not once it is cut."""
        return self.take((self.xyxy[:, 2:] > self.xyxy[:, :2]).all(dim=1))

    def clip(self, height: int, width: int) -> "Boxes":
        """Cut to a picture's size."""
        limit = self.xyxy.new_tensor([width, height, width, height])
        return replace(self, xyxy=self.xyxy.clamp(min=0).minimum(limit))


@dataclass(frozen=True)
class Letterbox:
    """How a picture was made to fit into another size: scaled, then placed, the rest filled.

    Attributes:
        scale: pixels of the result for one of the original, across.
        left, top: where its upper left corner lies, in pixels of the result.
        height, width: of the original.
        stretch: pixels down for one across: 1 but for what is lost and gained where both sides are rounded to whole pixels.
    """

    scale: float
    left: float
    top: float
    height: int
    width: int
    stretch: float = 1.0

    @staticmethod
    def of(height: int, width: int, into: tuple[int, int]) -> "Letterbox":
        """The largest that fits into `(height, width)`, in its upper left corner.

        >>> Letterbox.of(480, 640, (320, 320))
        Letterbox(scale=0.5, left=0.0, top=0.0, height=480, width=640, stretch=1.0)
        """
        return Letterbox(min(into[0] / height, into[1] / width), 0.0, 0.0, height, width)

    def inside(self, boxes: Boxes) -> Boxes:
        """Boxes of the original -> of the result."""
        return replace(boxes, xyxy=boxes.xyxy * self._factors(boxes.xyxy) + self._shift(boxes.xyxy))

    def outside(self, boxes: Boxes) -> Boxes:
        """Boxes of the result -> of the original, cut to its size."""
        return replace(boxes, xyxy=(boxes.xyxy - self._shift(boxes.xyxy)) / self._factors(boxes.xyxy)).clip(self.height, self.width)

    def _factors(self, like: Tensor) -> Tensor:
        down = self.scale * self.stretch
        return like.new_tensor([self.scale, down, self.scale, down])

    def _shift(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.left, self.top, self.left, self.top])


class _Carried(Generic[T]):
    """What a batch holds of each picture, beside the pictures. No list: Lightning takes lists apart to change the precision of what is in
    them, and boxes must keep theirs."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self.items = tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __getitem__(self, i: int) -> T:
        return self.items[i]


class BoxList(_Carried[Boxes]):
    """The boxes of each picture of a batch.

    From a loader worker, and to a device, they go as two tensors for all of them: each tensor costs an open file or a transfer.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _boxes_of, self._packed()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "BoxList":
        xyxy, labels, counts = self._packed()
        return _boxes_of(xyxy.to(device, non_blocking=non_blocking), labels.to(device, non_blocking=non_blocking), counts)

    def pin_memory(self) -> "BoxList":
        xyxy, labels, counts = self._packed()
        return _boxes_of(xyxy.pin_memory(), labels.pin_memory(), counts)

    def _packed(self) -> tuple[Tensor, Tensor, list[int]]:
        """`(M, 4)` and `(M,)` of all pictures, and how many of each."""
        everything = self.items or (Boxes.none(),)
        return torch.cat([b.xyxy for b in everything]), torch.cat([b.labels for b in everything]), [len(b) for b in self]


def _boxes_of(xyxy: Tensor, labels: Tensor, counts: list[int]) -> BoxList:
    return BoxList(Boxes(x, y) for x, y in zip(xyxy.split(counts), labels.split(counts), strict=True)) if counts else BoxList()


class LetterboxList(_Carried[Letterbox]):
    """How each picture of a batch was made to fit; plain numbers, the same on any device."""

    def to(self, device: Any, **_: Any) -> "LetterboxList":
        return self
