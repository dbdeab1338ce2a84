"""Whether one kind of run is better than another, from runs in pairs: of the same seed, so on the same labels in the same order.

n pairs.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Of the interval, and what a difference is called told apart by.
CONFIDENCE = 0.95
# Differences that are equal but for rounding spread by less than this times the largest score. R's t.test refuses data as constant by
# the same factor.
ROUNDING = 10 * sys.float_info.epsilon


@dataclass(frozen=True)
class Paired:
    """Attributes:
    n: pairs.
    difference: mean of `a - b`.
    low, high: 95 % interval of the mean difference (Student's t, n - 1 degrees of freedom); nan without a spread.
    p: of the paired t-test, two-sided; likewise.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def tested(self) -> bool:
        """Whether there is a spread to test by."""
        return not math.isnan(self.p)

    @property
    def told_apart(self) -> bool:
        return self.p < 1 - CONFIDENCE


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare runs `a` with runs `b`, pair by pair.

    Student's t-test, not Wilcoxon's: with fewer than six pairs the ranks alone can never come below p = 0.05. One pair has no spread
    to test by, nor have pairs whose differences are all equal, zero or not: the t statistic divides by their standard deviation, and an
    estimate of 0 from few rounded scores says nothing of how much other seeds would differ. Then interval and p are nan.

    Raises:
        ValueError: if they are not as many, or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Expected pairs but got {len(a)} and {len(b)} runs.")
    from scipy.stats import t

    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    error = (math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n) ** 0.5 if n > 1 else 0.0
    if error <= ROUNDING * max(map(abs, [*a, *b])):
        return Paired(n, mean, math.nan, math.nan, math.nan)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Paired(n, mean, mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, n - 1)))
