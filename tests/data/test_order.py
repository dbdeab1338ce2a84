import numpy as np
import pytest

from visiontune.data.order import EvalOrder, TrainOrder, permute


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 4097])
def test_an_epochs_order_is_a_permutation(n):
    order = permute(np.arange(n), n, seed=3, epoch=5)
    assert sorted(order.tolist()) == list(range(n))


def test_orders_differ_by_epoch_and_seed_and_do_not_follow_the_folder():
    n = 5000
    a, b, c = (permute(np.arange(n), n, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    for x, y in ((a, b), (a, c), (a, np.arange(n))):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.06  # four standard deviations
        assert (x == y).mean() < 0.003


def test_a_position_can_be_asked_for_alone():
    whole = permute(np.arange(100), 100, seed=0, epoch=2)
    assert permute(np.array([41, 7]), 100, seed=0, epoch=2).tolist() == whole[[41, 7]].tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_every_step_has_the_same_pictures_whatever_the_ranks_and_accumulation(world, accumulate):
    def step_pictures(world, accumulate):
        orders = [list(TrainOrder(50, 8, 0, lambda: 0, accumulate, r, world)) for r in range(world)]
        for step in range(6):
            batches = [o[step * accumulate + a] for o in orders for a in range(accumulate)]
            yield sorted(key for batch in batches for key in batch)

    assert list(step_pictures(world, accumulate)) == list(step_pictures(1, 1))


def test_an_epoch_shows_no_picture_twice_and_leaves_out_less_than_a_batch():
    keys = [k for batch in TrainOrder(50, 8, 0, lambda: 0) for k in batch]
    assert len(set(keys)) == len(keys) == 48
    left = set(range(50)) - {i for i, _ in keys}
    again = set(range(50)) - {i for b in TrainOrder(50, 8, 0, lambda: 6) for i, _ in b}
    assert left != again  # others in the next epoch


def test_the_order_goes_on_at_the_step_that_it_is_told():
    whole = list(TrainOrder(50, 8, 0, lambda: 0)) + list(TrainOrder(50, 8, 0, lambda: 6))
    for step in (1, 5, 6, 8, 11):
        assert list(TrainOrder(50, 8, 0, lambda s=step: s)) == whole[step : (step // 6 + 1) * 6]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_picture_once(world):
    keys = [i for r in range(world) for batch in EvalOrder(17, 4, r, world) for i, _ in batch]
    assert sorted(keys) == list(range(17))
    assert all(len(list(EvalOrder(17, 4, r, world))) == len(EvalOrder(17, 4, r, world)) for r in range(world))


def test_repeats_keep_the_pictures_for_as_many_steps():
    once = list(TrainOrder(50, 8, 0, lambda: 0))
    order = TrainOrder(50, 8, 0, lambda: 0, repeats=3)
    assert (order.steps_per_epoch, len(order), list(order)) == (18, 6, once)
    for step in range(18):
        assert list(TrainOrder(50, 8, 0, lambda s=step: s, repeats=3)) == once[step // 3 :]


def test_the_order_takes_no_memory_and_no_time_to_begin():
    import tracemalloc

    order = TrainOrder(10_000_000_000, 256, 0, lambda: 7_000_000)
    tracemalloc.start()
    first = next(iter(order))
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert len(set(first)) == 256
