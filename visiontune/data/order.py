"""In which order pictures come: a permutation computed from (seed, epoch, position), never stored.

A run's position is its number of optimiser steps; everything else here is arithmetic on it, so a resumed run goes on where the
steps stopped, whatever the workers had fetched ahead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# A picture asked for: its index, and what seeds its augmentation: the epoch, or which of its visits this is where it comes several times.
Key = tuple[int, int]


def permute(positions: np.ndarray, n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Positions in [0, n) -> indices in [0, n), a bijection that differs in every epoch, in constant memory.

    A Feistel network of four rounds on the smallest even number of bits that holds n; what falls outside walks on until inside
    (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains": cycle walking).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng((seed, epoch)).integers(0, 2**63, size=4, dtype=np.uint64)

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(half)) | right

    x = once(np.asarray(positions, dtype=np.uint64))
    outside = x >= n
    while outside.any():
        x[outside] = once(x[outside])
        outside = x >= n
    return x.astype(np.int64)


@dataclass
class TrainOrder:
    """Batch sampler of one process for training.

    Leaves out the remainder below one global batch; which pictures that is changes with the epoch's permutation.

    Attributes:
        n: pictures in the table.
        batch_size: pictures per optimiser step over all processes and accumulation.
        accumulate: batches per optimiser step.
        rank: this process.
        world_size: number of processes.
        seed: of the run.
        step: tells the optimiser step to start from, asked at the start of each epoch.
        repeats: steps that follow each other on the same pictures; one batch stands for all of them here.
        shuffle: positions and epoch -> indices, a bijection for each epoch; None: the permutation over all.
        sampling: neighbouring positions and epoch -> pictures asked for, some more often than others, instead of all of that.
    """

    n: int
    batch_size: int
    seed: int
    step: Callable[[], int]
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    repeats: int = 1
    shuffle: Callable[[np.ndarray, int], np.ndarray] | None = None
    sampling: Callable[[np.ndarray, int], list[Key]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch_size * self.repeats

    @property
    def local(self) -> int:
        """Pictures in a batch of this process."""
        return self.batch_size // (self.accumulate * self.world_size)

    def __len__(self) -> int:
        return self.n // self.batch_size * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, step = divmod(self.step(), self.steps_per_epoch)
        for batch in range(step // self.repeats * self.accumulate, len(self)):
            first = (batch * self.world_size + self.rank) * self.local
            positions = np.arange(first, first + self.local)
            if self.sampling is not None:
                yield self.sampling(positions, epoch)
                continue
            if self.shuffle is None:
                indices = permute(positions, self.n, seed=self.seed, epoch=epoch)
            else:
                indices = self.shuffle(positions, epoch)
            yield [(int(i), epoch) for i in indices]


@dataclass
class EvalOrder:
    """Batch sampler of one process for evaluation: every picture once over all processes, none padded."""

    n: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        mine = len(range(self.rank, self.n, self.world_size))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        mine = range(self.rank, self.n, self.world_size)
        for start in range(0, len(mine), self.batch_size):
            yield [(i, 0) for i in mine[start : start + self.batch_size]]
