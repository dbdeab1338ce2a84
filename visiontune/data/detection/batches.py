"""What a batch of pictures with boxes carries beside the pictures: lists that travel between processes and devices in one piece.

B pictures, M boxes of all of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from visiontune.boxes import Boxes, Letterbox


class BoxList(list[Boxes]):
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
        """`(M, 4)`, `(M,)` and how many of each picture."""
        everything = self or [Boxes.none()]
        return torch.cat([b.xyxy for b in everything]), torch.cat([b.labels for b in everything]), [len(b) for b in self]


def _boxes_of(xyxy: Tensor, labels: Tensor, counts: list[int]) -> BoxList:
    return BoxList(Boxes(x, y) for x, y in zip(xyxy.split(counts), labels.split(counts), strict=True)) if counts else BoxList()


class LetterboxList(list[Letterbox]):
    """How each picture of a batch was made to fit. On any device: they are plain numbers, and Lightning takes no frozen dataclass apart."""

    def to(self, device: Any, **_: Any) -> "LetterboxList":
        return self

    @classmethod
    def of(cls, boxes: Iterable[Letterbox | None]) -> "LetterboxList":
        return cls(box for box in boxes if box is not None)
