"""An order of pictures in shards that reads neighbours together."""

import numpy as np

from visiontune.data.order import permute
from visiontune.data.table import PictureTable

# Shards whose blocks are mixed among themselves, about: 11 to 24, so that the last group is no smaller than the others.
GROUP = 16


class ShardShuffle:
    """Positions of an epoch -> pictures: a bijection for each epoch that mixes well and still reads neighbours together.

    Shards are permuted and taken in groups of about 16; the blocks of a group, runs of neighbours in one shard, are permuted among
    themselves; each window of positions is permuted fully. So a window's pictures come from some 60 random places of 16 shards, where
    a shuffle buffer of its size, filled from one shard after another, would hold one or two shards.

    Reading: within a window all of `window / block` blocks are read, and no others but the two at its ends (a shard's last block may be
    short, then there are more); a shard is open only while its group lasts. The ranks share each window: every picture is read once by
    one of them, and a machine's workers read a block together through the page cache. Shards that hold one class each want to be
    written anew (`python -m visiontune shard` mixes them).

    Memory: 40 bytes a block, a little more than one a picture with blocks of 32 (6 MB for 5 million pictures); nothing is kept between
    epochs that is not computed from (seed, epoch).

    Args:
        table: pictures in shards, also a part of them (`table.take`).
        seed: of the run.
        block: pictures that are read one after another.
        window: pictures that are mixed fully.
    """

    def __init__(self, table: PictureTable, seed: int, *, block: int = 32, window: int = 2048) -> None:
        assert table.members is not None
        self.seed, self.window = seed, window
        self.n = len(table)
        shard = table.members.shard  # ascending
        # The same type as the column's: another would have searchsorted convert all of it.
        firsts = np.searchsorted(shard, np.arange(len(table.members.shards) + 1, dtype=shard.dtype))
        blocks = -(-np.diff(firsts) // block)  # of each shard
        of_shard = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        self.starts = np.repeat(firsts[:-1], blocks) + block * of_shard
        self.sizes = np.diff(self.starts, append=self.n)
        # Shards without pictures in the table do not count.
        self.shards = np.repeat(np.arange((blocks > 0).sum()), blocks[blocks > 0])
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        near = np.empty_like(positions)
        window = positions // self.window
        for w in np.unique(window).tolist():
            here, first = window == w, w * self.window
            size = min(self.window, self.n - first)
            # A number of its own for each window of each epoch.
            near[here] = first + permute(positions[here] - first, size, seed=self.seed, epoch=(epoch << 32) + w)
        ends, shift = self._blocks(epoch)
        return near + shift[np.searchsorted(ends, near, side="right")]

    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks in the epoch's order: the position after each, and how far its pictures' numbers are from their positions."""
        if self._plan is None or self._plan[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            shards = int(self.shards[-1]) + 1
            groups = max(1, round(shards / GROUP))
            # Even groups: a last one of a single shard would mix nothing.
            group = rng.permutation(shards) * groups // shards
            order = np.argsort(group[self.shards] + rng.random(len(self.shards)))
            ends = np.cumsum(self.sizes[order])
            self._plan = epoch, ends, self.starts[order] - ends + self.sizes[order]
        return self._plan[1:]
