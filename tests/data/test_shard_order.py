"""The order of pictures in shards: a bijection that reads neighbours together."""

from collections import Counter

import numpy as np
import pytest

from tests.data.test_shards import png, table_of, tar, three, values  # noqa: F401 (three is a fixture)
from visiontune.data.order import TrainOrder
from visiontune.data.shard_order import ShardShuffle

UNEQUAL = [100, 1, 0, 517, 33, 32, 31, 64, 2000, 5, 0] + [70] * 20


@pytest.mark.parametrize("counts", [[1], [5], [0, 7, 0], UNEQUAL, [1] * 50, [4096]])
@pytest.mark.parametrize(("block", "window"), [(32, 2048), (1, 10), (7, 100), (64, 1)])
def test_an_epoch_is_a_bijection(counts, block, window):
    shuffle = ShardShuffle(table_of(counts), 3, block=block, window=window)
    n = sum(counts)
    for epoch in (0, 5):
        assert sorted(shuffle(np.arange(n), epoch).tolist()) == list(range(n))


def test_a_part_of_the_pictures_is_a_bijection_too():
    table = table_of(UNEQUAL)
    part = table.take(np.random.default_rng(0).choice(len(table), 900, replace=False))
    assert sorted(ShardShuffle(part, 0)(np.arange(900), 1).tolist()) == list(range(900))


def test_positions_can_be_asked_for_alone_and_epochs_in_any_order():
    shuffle = ShardShuffle(table_of(UNEQUAL), 1, window=256)
    whole = {epoch: shuffle(np.arange(shuffle.n), epoch) for epoch in (0, 1, 2)}
    for epoch in (2, 0, 1):
        assert shuffle(np.array([2500, 7, 300]), epoch).tolist() == whole[epoch][[2500, 7, 300]].tolist()
    again = ShardShuffle(table_of(UNEQUAL), 1, window=256)
    assert np.array_equal(again(np.arange(again.n), 1), whole[1])


def test_orders_differ_by_epoch_and_seed():
    n = 32 * 400
    table = table_of([320] * 40)
    a, b, c = (ShardShuffle(table, s)(np.arange(n), e) for s, e in ((0, 0), (0, 1), (1, 0)))
    for x, y in ((a, b), (a, c), (a, np.arange(n))):
        assert (x == y).mean() < 0.003


def test_a_window_reads_few_blocks_and_no_others():
    counts = [320] * 40
    shuffle = ShardShuffle(table_of(counts), 0)
    for epoch in (0, 1):
        order = shuffle(np.arange(shuffle.n), epoch)
        met = [set((order[first : first + 2048] // 32).tolist()) for first in range(0, shuffle.n, 2048)]
        assert all(len(blocks) <= 2048 // 32 + 1 for blocks in met)
        # A block is read in one window, or in two that follow each other.
        assert sum(map(len, met)) <= 400 + len(met)
        for i in range(len(met) - 2):
            assert not met[i] & set().union(*met[i + 2 :])


def test_neighbours_in_a_batch_come_from_many_shards():
    table = table_of([320] * 40)
    order = ShardShuffle(table, 0)(np.arange(12800), 0)
    shard = table.members.shard[order]
    for first in range(0, 12800, 256):
        met = Counter(shard[first : first + 256].tolist())
        assert len(met) >= 10  # of 20 in a group
        assert max(met.values()) < 80  # at most four times its part of a group
    assert (np.diff(shard) == 0).mean() < 0.15
    assert (np.abs(np.diff(order)) == 1).mean() < 0.02


def test_shards_are_left_behind_once_their_group_is_done():
    table = table_of([320] * 40)
    shard = table.members.shard[ShardShuffle(table, 0)(np.arange(12800), 0)]
    for first in range(0, 12800, 2048):
        assert len(set(shard[first : first + 2048].tolist())) <= 32


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_every_step_has_the_same_pictures_whatever_the_ranks(world, accumulate):
    shuffle = ShardShuffle(table_of([100, 30, 77, 1]), 5, block=8, window=64)

    def steps(world, accumulate):
        orders = [list(TrainOrder(208, 16, 5, lambda: 0, accumulate, r, world, shuffle=shuffle)) for r in range(world)]
        for step in range(13):
            yield sorted(key for o in orders for a in range(accumulate) for key in o[step * accumulate + a])

    assert list(steps(world, accumulate)) == list(steps(1, 1))


def test_the_order_goes_on_at_the_step_that_it_is_told():
    shuffle = ShardShuffle(table_of([100, 30, 77, 1]), 5, block=8, window=64)
    whole = [b for epoch in (0, 13) for b in TrainOrder(208, 16, 5, lambda e=epoch: e, shuffle=shuffle)]
    assert list(TrainOrder(208, 16, 5, lambda: 17, shuffle=shuffle)) == whole[17:]
