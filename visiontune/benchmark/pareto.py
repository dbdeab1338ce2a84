"""The Pareto front: what nothing else is better than in one respect and at least as good in the other."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of the points on it, in the order of the points; of both coordinates more is better.

    >>> front([(100, 0.7), (10, 0.9), (50, 0.6), (100, 0.5)])
    [0, 1]
    """
    kept, best, at = [], float("-inf"), float("nan")
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):  # the fastest first
        speed, accuracy = points[i]
        if accuracy > best:
            kept.append(i)
            best, at = accuracy, speed
        elif (speed, accuracy) == (at, best):  # twins are both there
            kept.append(i)
    return sorted(kept)
