"""Class-aware sampling: rare classes come more often than they lie in the table.

Which class comes when, and which of its pictures, is computed from (seed, epoch, position) and never stored, so that a run resumes on
any number of workers and ranks. G groups: the classes that have pictures, and where pictures may have several labels those without any.
"""

from typing import Literal

import numpy as np

from visiontune.data.order import Key
from visiontune.data.table import PictureTable

Sampling = Literal["natural", "balanced", "sqrt"]
# Parts of the step between two draws of a class by which a draw is put off; few enough that sums with counts are exact in float64.
JITTER = 1 << 20


class ClassSampling:
    """Positions of an epoch -> pictures: each class equally often, or in proportion to the root of its number of pictures.

    Time runs through all epochs, with one draw a unit. Class k is due `weight[k]` times a unit: its draw i falls somewhere in the i-th
    of its steps of `1 / weight[k]`, at a place drawn by a hash of (seed, k, i). All draws in order of time are the sequence of
    pictures. So at any time every class has come as often as it should, give or take one, in a batch as in a run; and how often it
    came before is known without a look at what was before. Within a class the draws go through all of its pictures in an order of
    their own before any comes again, then through all of them in another order.

    Of pictures with several labels one is drawn for each of its classes as often as for any other picture of that class (class-aware
    sampling of Shen, Lin and Huang 2016, arXiv 1512.05830).

    Memory: four bytes a picture (a label, where there are several), made once, in the process that trains alone.

    Args:
        table: labelled pictures.
        sampling: `balanced` or `sqrt`.
        seed: of the run.
        per_epoch: positions of an epoch that are trained on.
    """

    def __init__(self, table: PictureTable, sampling: Sampling, *, seed: int, per_epoch: int) -> None:
        assert sampling != "natural"
        self.per_epoch = per_epoch
        if table.targets is not None:
            grouped = np.concatenate([table.targets, ~table.targets.any(axis=1, keepdims=True)], axis=1)
            groups, members = np.nonzero(grouped.T)
        else:
            assert table.labels is not None
            labels = np.asarray(table.labels)
            members = np.argsort(labels, kind="stable")
            groups = labels[members]
        _, first, counts = np.unique(groups, return_index=True, return_counts=True)
        self.members, self.first, self.counts = members.astype(np.int32), first, counts
        weight = np.sqrt(counts) if sampling == "sqrt" else np.ones(len(counts))
        self.weight = weight / weight.sum()
        self.seeds = np.random.SeedSequence((seed, 0xC1A55)).generate_state(2, dtype=np.uint64)

    def __call__(self, positions: np.ndarray, epoch: int) -> list[Key]:
        """Picture and number of its visit, which seeds its augmentation, at positions that lie near to each other."""
        low = int(positions.min())
        group, draw = self._draws(epoch * self.per_epoch + low, int(positions.max()) - low + 1)
        group, draw = group[positions - low], draw[positions - low]
        count = self.counts[group]
        visit, place = np.divmod(draw, count)
        place = _permute_each(place, count, _mix(_mix(self.seeds[1] + group.astype(np.uint64)) + visit.astype(np.uint64)))
        index = self.members[self.first[group] + place]
        # A picture of several classes comes for each of them: every visit is another.
        return list(zip(index.tolist(), (visit * len(self.counts) + group).tolist(), strict=True))

    def _draws(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and number of its draw, of `count` draws from the `first` one on."""
        G = len(self.counts)
        # Each group is less than one draw before or behind, so that many draws more than wanted are looked at.
        before, after = self._before(max(0, first - G)), self._before(first + count + G)
        many = after - before
        group = np.repeat(np.arange(G), many)
        draw = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many - before, many)
        skip = first - int(before.sum())
        order = np.argsort(self._time(group, draw), kind="stable")[skip : skip + count]
        return group[order], draw[order]

    def _before(self, time: int) -> np.ndarray:
        """Draws of each group before a time; `(G,)`."""
        group = np.arange(len(self.counts))
        sure = np.maximum(np.floor(time * self.weight).astype(np.int64) - 1, 0)
        return sure + sum((self._time(group, sure + i) < time).astype(np.int64) for i in range(3))

    def _time(self, group: np.ndarray, draw: np.ndarray) -> np.ndarray:
        hashed = _mix(_mix(self.seeds[0] + group.astype(np.uint64)) + draw.astype(np.uint64))
        return (draw + (hashed % np.uint64(JITTER)).astype(np.float64) / JITTER) / self.weight[group]


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute_each(place: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """`order.permute`, with a size and a key for each place: a bijection of [0, size) for each key."""
    half = np.maximum(1, (_bits(size - 1) + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    size = size.astype(np.uint64)

    def once(x: np.ndarray, half: np.ndarray, mask: np.ndarray, key: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for r in range(4):
            left, right = right, left ^ (_mix(right ^ (key + np.uint64(r << 60))) & mask)
        return (left << half) | right

    x = once(place.astype(np.uint64), half, mask, key)
    while (outside := np.flatnonzero(x >= size)).size:
        x[outside] = once(x[outside], half[outside], mask[outside], key[outside])
    return x.astype(np.int64)


def _bits(x: np.ndarray) -> np.ndarray:
    """Bits that hold each number: 0 for 0, 3 for 4."""
    return np.frexp(x.astype(np.float64))[1]
