"""Which prediction found which true box: greedily, the highest score first, as COCO does.

N pictures, D predictions and M true boxes of all of them, P pairs that overlap enough. Boxes are xyxy in pixels of one picture.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WRONG, IGNORED = -1, -2  # what a prediction is that found no box; ignored: a crowd covers it


@dataclass(frozen=True, eq=False)
class BoxArrays:
    """Boxes of all pictures in arrays.

    Attributes:
        xyxy: `(M, 4)` float64, picture after picture.
        label: `(M,)` int64.
        offsets: `(N + 1,)` int64: boxes `offsets[i]` to `offsets[i + 1]` are those of picture `i`.
    """

    xyxy: np.ndarray
    label: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def picture(self) -> np.ndarray:
        """`(M,)`, the number of each box's picture."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rows(self, picture: int) -> slice:
        return slice(int(self.offsets[picture]), int(self.offsets[picture + 1]))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Predictions and true boxes of one picture that overlap.

    Attributes:
        found: numbers of the predictions, `(P,)`.
        true: numbers of the true boxes, `(P,)`.
        overlap: how much, `(P,)`.
    """

    found: np.ndarray
    true: np.ndarray
    overlap: np.ndarray

    def take(self, which: np.ndarray) -> "Pairs":
        return Pairs(self.found[which], self.true[which], self.overlap[which])


def overlapping(found: BoxArrays, true: BoxArrays, least: float, *, of_found: bool = False) -> Pairs:
    """All pairs of one picture, of whatever classes, that overlap by `least` or more.

    Args:
        found: predictions.
        true: what there is.
        least: smallest overlap.
        of_found: as a share of the prediction's area, which is how COCO compares with a crowd; else intersection over union.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    both = np.flatnonzero(np.diff(found.offsets) * np.diff(true.offsets))
    for picture in both.tolist():  # memory is that of one picture's pairs
        f, t = found.rows(picture), true.rows(picture)
        overlap = overlaps(found.xyxy[f], true.xyxy[t], of_first=of_found)
        i, j = np.nonzero(overlap >= least)
        parts.append((i + f.start, j + t.start, overlap[i, j]))
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        return Pairs(nothing, nothing, np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def overlaps(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """`(D, 4)` and `(M, 4)` -> `(D, M)`: intersection over union, or over the area of the first.

    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [2, 0, 4, 2]]))
    array([[0.33333333, 0. ]])
    """
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(min=0).prod(axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    whole = np.broadcast_to(area_a[:, None], shared.shape) if of_first else area_a[:, None] + area_b[None, :] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def greedy(pairs: Pairs, place: np.ndarray, M: int) -> np.ndarray:
    """For each prediction the true box it found, or `WRONG`: in turn, each takes the one left that it overlaps most.

    Pictures do not compete: a round lets the next prediction of every picture choose at once.

    Args:
        pairs: what may be matched.
        place: `(D,)`, each prediction's place within its picture, from 0; the lower one chooses first.
        M: the number of true boxes.
    """
    match = np.full(len(place), WRONG, dtype=np.int64)
    free = np.ones(M, dtype=bool)
    # of equal overlaps COCO's code keeps the last
    order = np.lexsort((-pairs.true, -pairs.overlap, pairs.found, place[pairs.found]))
    found, true = pairs.found[order], pairs.true[order]
    rounds = np.append(np.flatnonzero(np.diff(place[found], prepend=-1)), len(found))
    for start, end in pairwise(rounds.tolist()):
        left = free[true[start:end]]
        f, t = found[start:end][left], true[start:end][left]
        first = np.diff(f, prepend=-1) != 0
        match[f[first]] = t[first]
        free[t[first]] = False
    return match


def places(score: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Each prediction's place within its picture by falling score, `(D,)`; of equal ones the earlier is first.

    >>> places(np.array([0.1, 0.9, 0.5, 0.5]), np.array([0, 2, 4])).tolist()
    [1, 0, 0, 1]
    """
    counts = np.diff(offsets)
    picture = np.repeat(np.arange(len(counts)), counts)
    place = np.empty(len(score), dtype=np.int64)
    place[np.lexsort((-score, picture))] = np.arange(len(score)) - np.repeat(offsets[:-1], counts)
    return place


def match_by_class(found: BoxArrays, score: np.ndarray, true: BoxArrays, crowd: BoxArrays, least: float = 0.5) -> np.ndarray:
    """For each prediction, `(D,)`, the true box of its class that it found, `WRONG`, or `IGNORED` where a crowd of its class covers it.

    Lin et al. 2014 (arXiv 1405.0312) and https://cocodataset.org/#detection-eval, at one overlap (IoU) of `least`.
    """
    pairs = overlapping(found, true, least)
    match = greedy(pairs.take(found.label[pairs.found] == true.label[pairs.true]), places(score, found.offsets), len(true))
    covered = overlapping(found, crowd, least, of_found=True)
    covered = covered.take(found.label[covered.found] == crowd.label[covered.true])
    match[covered.found[match[covered.found] == WRONG]] = IGNORED
    return match
