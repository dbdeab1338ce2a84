"""Sizes of training batches, drawn by (seed, epoch, batch): the same on every process, and the same after a resume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from visiontune.data.order import TrainOrder

# Strides of the deepest level that heads look at: sides that it does not divide would be padded anyway.
STEP = 32
# Keeps these draws apart from those of the pictures.
SALT = 0x51CE

Size = tuple[int, int]


def multi_scale(size: Size, factors: tuple[float, float], *, seed: int) -> Callable[[int, int], Size]:
    """Epoch and number of a batch in it -> its `(height, width)`, multiples of 32, one as likely as another.

    Redmon and Farhadi 2017 (arXiv 1612.08242, YOLO9000), section 2, draw a size for every 10 batches.

    Args:
        size: of the run.
        factors: smallest and largest side, as shares of the run's.
        seed: of the run.
    """
    sizes = sizes_between(size, factors)

    def drawn(epoch: int, batch: int) -> Size:
        return sizes[int(np.random.default_rng((seed, epoch, batch, SALT)).integers(len(sizes)))]

    return drawn


def sizes_between(size: Size, factors: tuple[float, float]) -> list[Size]:
    """All that `multi_scale` may give, of about the shape of `size`, the run's own among them.

    >>> sizes_between((64, 128), (0.5, 1.5))
    [(32, 64), (64, 128), (96, 192)]
    """
    low, high = (round(size[0] * factor / STEP) for factor in factors)
    steps = range(max(1, low), max(1, low, high) + 1)
    sizes = [(k * STEP, max(1, round(k * STEP * size[1] / size[0] / STEP)) * STEP) for k in steps]
    return sizes if factors[0] != factors[1] else [size]


@dataclass
class SizedOrder(TrainOrder):
    """A training order whose keys say the size of their batch: `(index, epoch, (height, width))`.

    Attributes:
        sizes: see `multi_scale`.
    """

    sizes: Callable[[int, int], Size] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        assert self.sizes is not None
        assert self.repeats == 1, "pictures with boxes are read anew for each step"
        epoch, step = divmod(self.step(), self.steps_per_epoch)
        for batch, keys in enumerate(super().__iter__(), step * self.accumulate):
            yield [(*key, self.sizes(epoch, batch)) for key in keys]
