import itertools

import numpy as np
import pytest

from visiontune.data.balance import ClassSampling, _permute_each
from visiontune.data.order import TrainOrder
from visiontune.data.table import PictureTable


def table(counts, *, several=False):
    """Pictures of classes in a mixed order; `several`: each has its class and the next one, and five have none."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [b"%d" % i for i in range(len(labels) + 5 * several)]
    classes = tuple(map(str, range(len(counts))))
    if not several:
        return PictureTable.of("/p", names, labels, classes)
    targets = np.zeros((len(names), len(counts)), dtype=np.uint8)
    targets[np.arange(len(labels)), labels] = 1
    targets[np.arange(len(labels)), (labels + 1) % len(counts)] = 1
    return PictureTable.of("/p", names, None, classes, targets=targets)


COUNTS = (90, 10, 40, 3)


def drawn(pictures, sampling, epochs, per_epoch=128, seed=0):
    sample = ClassSampling(pictures, sampling, seed=seed, per_epoch=per_epoch)
    return [key for epoch in range(epochs) for key in sample(np.arange(per_epoch), epoch)]


@pytest.mark.parametrize(("sampling", "share"), [("balanced", np.ones(4)), ("sqrt", np.sqrt(COUNTS))])
def test_classes_come_as_often_as_asked_give_or_take_one_at_any_time(sampling, share):
    pictures = table(COUNTS)
    classes = pictures.labels[[i for i, _ in drawn(pictures, sampling, 10)]]
    came = np.cumsum(classes[:, None] == np.arange(4), axis=0)
    due = np.arange(1, len(classes) + 1)[:, None] * share / share.sum()
    # Time runs unevenly by at most the number of classes: how often the others came shifts it.
    assert np.abs(came - due).max() < 3
    assert np.abs(came[-1] / len(classes) - share / share.sum()).max() < 0.003


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_within_a_class_every_picture_comes_before_any_again_in_another_order_each_time(sampling):
    pictures = table(COUNTS)
    keys = drawn(pictures, sampling, 12)
    for k, count in enumerate(COUNTS):
        mine = [i for i, _ in keys if pictures.labels[i] == k]
        rounds = [mine[i : i + count] for i in range(0, len(mine) - count + 1, count)]
        assert len(rounds) > 1
        assert all(len(set(r)) == count for r in rounds)
        assert count < 10 or len(set(map(tuple, rounds))) == len(rounds)
    assert len(set(keys)) == len(keys)  # each visit of a picture has its own augmentation


def test_any_positions_can_be_asked_for_alone():
    pictures = table(COUNTS)
    for sampling in ("balanced", "sqrt"):
        sample = ClassSampling(pictures, sampling, seed=3, per_epoch=128)
        whole = [key for epoch in range(3) for key in sample(np.arange(128), epoch)]
        again = ClassSampling(pictures, sampling, seed=3, per_epoch=128)
        for first, count in ((0, 1), (7, 3), (127, 1), (64, 64)):
            assert again(np.arange(first, first + count), 1) == whole[128 + first : 128 + first + count]
        assert sample(np.array([9, 4]), 2) == [whole[256 + 9], whole[256 + 4]]
        assert drawn(pictures, sampling, 1, seed=4) != whole[:128]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_a_run_goes_on_with_the_same_pictures_on_any_number_of_ranks(world, accumulate):
    pictures = table(COUNTS)
    n = len(pictures)

    def order(step, world=1, rank=0, accumulate=1):
        sampling = ClassSampling(pictures, "balanced", seed=0, per_epoch=n // 8 * 8)
        return TrainOrder(n, 8, 0, lambda: step, accumulate, rank, world, sampling=sampling)

    steps = n // 8
    whole = list(order(0)) + list(order(steps))
    assert len(whole) == 2 * steps
    for step in (0, 5, steps - 1, steps, steps + 3):
        ranks = [list(order(step, world, r, accumulate)) for r in range(world)]
        parts = list(itertools.product(range(accumulate), ranks))
        met = [sorted(key for a, r in parts for key in r[i + a]) for i in range(0, len(ranks[0]), accumulate)]
        assert met == [sorted(batch) for batch in whole[step : (step // steps + 1) * steps]]


def test_of_pictures_with_several_labels_each_class_is_drawn_equally_often_and_so_are_those_without():
    pictures = table((60, 20, 6), several=True)
    keys = drawn(pictures, "balanced", 40)
    without = sum(not pictures.targets[i].any() for i, _ in keys)
    assert without / len(keys) == pytest.approx(1 / 4, abs=0.002)
    # Class 0 is drawn for itself, with every picture of class 0 or 2 it comes along: shares follow from the table alone.
    expected = np.mean([pictures.targets[pictures.targets[:, k] == 1].mean(axis=0) for k in range(3)], axis=0) * 3 / 4
    assert np.mean([pictures.targets[i] for i, _ in keys], axis=0) == pytest.approx(expected, abs=0.01)
    assert len(set(keys)) == len(keys)


def test_classes_without_pictures_are_never_drawn_and_one_picture_may_be_all_of_a_class():
    pictures = table((5, 0, 1))
    classes = pictures.labels[[i for i, _ in drawn(pictures, "balanced", 3, per_epoch=6)]]
    assert np.bincount(classes, minlength=3).tolist() == [9, 0, 9]


def test_a_thousand_classes_far_into_a_run_are_drawn_evenly_with_little_memory():
    import tracemalloc

    labels = np.random.default_rng(0).integers(0, 1000, 50_000)
    pictures = PictureTable.of("/p", [b"x"] * 50_000, labels, tuple(map(str, range(1000))))
    sample = ClassSampling(pictures, "balanced", seed=0, per_epoch=49_920)
    tracemalloc.start()
    keys = sample(np.arange(20_300, 24_300), 400)  # 20 million pictures later
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    counts = np.bincount(labels[[i for i, _ in keys]], minlength=1000)
    assert (counts.min(), counts.max()) == (3, 5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
def test_many_permutations_at_once_are_each_a_permutation(n):
    keys = np.arange(50, dtype=np.uint64)
    places = np.tile(np.arange(n), 50)
    found = _permute_each(places, np.full(50 * n, n), np.repeat(keys, n)).reshape(50, n)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(n), (50, 1)))
    if n > 3:  # every picture is first as often as any other
        firsts = _permute_each(np.zeros(20_000, dtype=np.int64), np.full(20_000, n), np.arange(20_000, dtype=np.uint64))
        spread = np.bincount(firsts, minlength=n).std()
        assert spread < 1.5 * np.sqrt(20_000 / n)
