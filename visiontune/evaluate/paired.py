"""Whether one kind of run is better than another, from runs in pairs: of the same seed, so on the same labels in the same order.

n pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the interval, and what a difference is called told apart by.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Attributes:
    n: pairs.
    difference: mean of `a - b`.
    low, high: 95 % interval of the mean difference (Student's t, n - 1 degrees of freedom); nan for one pair.
    p: of the paired t-test, two-sided; nan for one pair.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def told_apart(self) -> bool:
        return self.p < 1 - CONFIDENCE


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare runs `a` with runs `b`, pair by pair.

    Student's t-test, not Wilcoxon's: with fewer than six pairs the ranks alone can never come below p = 0.05. Where all differences
    are equal there is no spread to judge by: p is 0 for a difference and 1 for none.

    Raises:
        ValueError: if they are not as many, or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"Expected pairs but got {len(a)} and {len(b)} runs.")
    from scipy.stats import t

    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    if n == 1:
        return Paired(1, mean, math.nan, math.nan, math.nan)
    error = (math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n) ** 0.5
    if error == 0:
        return Paired(n, mean, mean, mean, 0.0 if mean else 1.0)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Paired(n, mean, mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, n - 1)))
