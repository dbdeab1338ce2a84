import numpy as np
import pytest
from scipy.stats import ttest_rel

from visiontune.evaluate.paired import paired


@pytest.mark.parametrize("n", [2, 3, 10])
def test_difference_interval_and_p_are_scipys(n):
    rng = np.random.default_rng(n)
    b = rng.normal(0.5, 0.05, n)
    a = b + rng.normal(0.02, 0.01, n)
    theirs = ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    ours = paired(a.tolist(), b.tolist())
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, low, high), rel=1e-9)
    assert ours.difference == pytest.approx(np.mean(a - b))
    assert ours.n == n
    assert ours.told_apart == (not low < 0 < high)


def test_students_own_example():
    """Additional hours of sleep of ten patients by two drugs (Student 1908, table I): t 4.06, p 0.0028."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired(second, first)
    assert found.difference == pytest.approx(1.58)
    assert found.p == pytest.approx(0.00283, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.70, 2.46), abs=0.005)


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ([0.6], [0.5], 0.1),
        ([0.5, 0.75], [0.25, 0.5], 0.25),
        ([0.31, 0.72, 0.44], [0.21, 0.62, 0.34], 0.1),  # equal but for rounding
        ([0.5, 0.75], [0.5, 0.75], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_without_a_spread_there_is_a_difference_and_no_test(a, b, difference):
    found = paired(a, b)
    assert (found.n, found.difference) == (len(a), pytest.approx(difference))
    assert np.isnan([found.low, found.high, found.p]).all()
    assert not found.tested
    assert not found.told_apart


def test_differences_a_picture_apart_have_a_spread():
    assert paired([0.5001, 0.7500], [0.25, 0.5]).tested


def test_pairs_are_needed():
    with pytest.raises(ValueError, match="2 and 1"):
        paired([1.0, 2.0], [1.0])


def test_under_the_null_one_test_in_twenty_says_better_or_worse():
    rng = np.random.default_rng(0)
    said = [paired(rng.normal(size=4).tolist(), rng.normal(size=4).tolist()).told_apart for _ in range(2000)]
    assert np.mean(said) == pytest.approx(0.05, abs=0.015)
