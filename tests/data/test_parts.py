import numpy as np
import pytest

from visiontune.data.folder import list_pictures
from visiontune.data.parts import align_labels, few_labels, split_off
from visiontune.data.table import PictureTable
from visiontune.errors import UserError


def names(table):
    return {table.name(i) for i in range(len(table))}


def single(labels, classes="abc"):
    return PictureTable.of("/p", [b"%d" % i for i in range(len(labels))], labels, tuple(classes))


def multi(targets, classes="abcde"):
    targets = np.asarray(targets, dtype=np.uint8)
    return PictureTable.of("/p", [b"%d" % i for i in range(len(targets))], None, tuple(classes[: targets.shape[1]]), targets=targets)


@pytest.fixture
def tagged():
    """600 pictures; a frequent class that goes along with others, a rare one, one that only comes with another, some without any."""
    rng = np.random.default_rng(0)
    shares = np.array([0.6, 0.3, 0.1, 0.02])
    targets = (rng.random((600, 4)) < shares).astype(np.uint8)
    targets = np.concatenate([targets, targets[:, 2:3] & (rng.random((600, 1)) < 0.5)], axis=1)
    return multi(targets)


def test_few_labels_are_stratified_nested_and_repeatable(pictures):
    table = list_pictures(pictures / "train", labelled=True)
    small, large = (few_labels(table, seed=1, per_class=k) for k in (3, 9))
    assert np.bincount(small.labels).tolist() == [3, 3]
    assert names(small) < names(large)
    assert names(small) == names(few_labels(table, seed=1, per_class=3))
    assert names(small) != names(few_labels(table, seed=2, per_class=3))
    assert len(few_labels(table, seed=1, fraction=0.01)) == 2  # at least one a class


def test_a_share_set_aside_for_validation_is_apart_from_the_rest(pictures):
    table = list_pictures(pictures / "train", labelled=True)
    rest, part = split_off(table, 0.25, seed=0)
    assert not names(rest) & names(part)
    assert (len(rest), len(part)) == (36, 12)
    assert np.bincount(part.labels).tolist() == [6, 6]


def test_a_class_of_one_picture_is_trained_on_and_not_set_aside():
    rest, part = split_off(single([0] * 10 + [1] * 10 + [2]), 0.2, seed=0)
    assert rest.class_counts().tolist() == [8, 8, 1]
    assert part.class_counts().tolist() == [2, 2, 0]
    with pytest.raises(UserError, match="data.val: a share of 0.2 leaves none of 3 pictures"):
        split_off(single([0, 1, 2]), 0.2, seed=0)


@pytest.mark.parametrize("settings", [{"per_class": 2}, {"per_class": 7}, {"fraction": 0.05}, {"fraction": 0.3}])
def test_few_of_several_labels_hold_every_class_and_lie_in_larger_parts(tagged, settings):
    (name, value), *_ = settings.items()
    small, large = (few_labels(tagged, seed=3, **{name: v}) for v in (value, 2 * value))
    assert names(small) < names(large) < names(tagged)
    assert names(small) == names(few_labels(tagged, seed=3, **settings))
    assert names(small) != names(few_labels(tagged, seed=4, **settings))
    least = settings.get("per_class", 1)
    assert (small.class_counts() >= np.minimum(least, tagged.class_counts())).all()
    assert (~small.targets.any(axis=1)).sum() >= least
    assert large.targets[0].shape == (5,)


def test_a_share_of_several_labels_has_the_shares_of_the_whole(tagged):
    """Against random parts of the same size: classes are nearer to their shares, and the rare ones are always there."""

    def off(table):
        return np.abs(table.class_counts() / len(table) - tagged.class_counts() / len(tagged)).mean()

    ours, random = [], []
    for seed in range(20):
        part = few_labels(tagged, seed=seed, fraction=0.1)
        assert abs(len(part) - 60) <= 6
        ours.append(off(part))
        random.append(off(tagged.take(np.random.default_rng(seed).choice(600, len(part), replace=False).tolist())))
    assert np.mean(ours) < 0.7 * np.mean(random)


def test_validation_set_aside_of_several_labels_leaves_every_class_to_training(tagged):
    rest, part = split_off(tagged, 0.2, seed=0)
    assert not names(rest) & names(part)
    assert len(rest) + len(part) == 600
    assert part.class_counts() == pytest.approx(0.2 * tagged.class_counts(), abs=6)
    alone = multi([[1, 0, 0]] * 10 + [[1, 1, 0], [1, 0, 1], [0, 1, 0]])
    rest, part = split_off(alone, 0.2, seed=0)
    assert (rest.class_counts() > 0).all()
    assert len(part)


def test_validation_is_numbered_as_training_is():
    val = align_labels(single([0, 1, 1], "ba"), ("a", "b", "c"))
    assert (val.labels.tolist(), val.classes) == ([1, 0, 0], ("a", "b", "c"))
    several = align_labels(multi([[1, 0], [1, 1]], "ca"), ("a", "b", "c"), several=True)
    assert several.targets.tolist() == [[0, 0, 1], [1, 0, 1]]
    one_each = align_labels(single([0, 1], "ca"), ("a", "b", "c"), several=True)
    assert (one_each.targets.tolist(), one_each.labels) == ([[0, 0, 1], [1, 0, 0]], None)


def test_names_that_read_alike_are_one_class():
    """An archive that macOS made has é as e with an accent (NFD), where others have one character (NFC)."""
    one, two = "caf\u00e9", "cafe\u0301"
    for trained, judged in ((one, two), (two, one)):
        val = align_labels(single([0, 1], ("bar", judged)), (trained, "bar"))
        assert (val.labels.tolist(), val.classes) == ([1, 0], (trained, "bar"))
    both = align_labels(multi([[1, 0], [0, 1], [0, 0]], (two, one)), (one, "bar"), several=True)
    assert both.targets.tolist() == [[1, 0], [1, 0], [0, 0]]
    apart = align_labels(single([0, 1], (two, one)), (one, two))  # where training tells them apart, so does validation
    assert apart.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (single([0, 1], "az"), "data.val: /p has classes that training has not: z; training has a, b"),
        (multi([[1, 1]], "ab"), "may have several labels, those of the training have one each"),
    ],
)
def test_validation_that_does_not_fit_is_an_error(val, message):
    with pytest.raises(UserError, match=message):
        align_labels(val, ("a", "b"))


def test_counts_need_labels():
    assert single([0, 2, 2]).class_counts().tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="expected a table with labels"):
        PictureTable.of("/p", [b"1"]).class_counts()
