"""The front against its definition."""

import random

from visiontune.benchmark.pareto import front


def by_definition(points):
    def beaten(p):
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    return [i for i, p in enumerate(points) if not beaten(p)]


def test_the_front_is_what_no_other_point_beats():
    rng = random.Random(0)
    for count in [0, 1, 2, 3, 5, 9, 30] * 40:
        grid = rng.choice([3, 10, 1000])  # few values: ties in one coordinate and twins in both
        points = [(rng.randrange(grid) / grid, rng.randrange(grid) / grid) for _ in range(count)]
        assert front(points) == by_definition(points), points
