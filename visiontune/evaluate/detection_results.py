"""What a detector's answers come to at one score: classes, sizes, confusions, and the pictures that went worst. See `detection`.

N pictures, D predictions and M true boxes, K classes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from visiontune.boxes import Boxes
from visiontune.evaluate.detection import BoxAnswers, BoxCurves
from visiontune.evaluate.matching import WRONG, BoxArrays, greedy, overlapping, places
from visiontune.metrics.detection import SIZES

EDGES = (32**2, 96**2)  # COCO's areas between small, medium and large


@dataclass(frozen=True)
class BoxClass:
    """One class. Shares are in [0, 1]; nan where they are of nothing.

    Attributes:
        pictures: that have it.
        boxes: true ones.
        said: predictions at the threshold.
        precision: share of those that are right.
        recall: share of the true boxes that were found.
        f1: harmonic mean of both.
        ap: COCO's average precision, over IoU of 0.5 to 0.95.
        ap50: at an IoU of 0.5.
        best_threshold: from which score on its own F1 is highest.
    """

    pictures: int
    boxes: int
    said: int
    precision: float
    recall: float
    f1: float
    ap: float
    ap50: float
    best_threshold: float


def box_classes(answers: BoxAnswers, curves: BoxCurves, threshold: float) -> list[BoxClass]:
    """Of each class; those without a box are nan but for `said`."""
    K, said = answers.num_classes, answers.said(threshold)
    says = np.bincount(answers.found.label[said], minlength=K)
    right = np.bincount(answers.found.label[said & (answers.match >= 0)], minlength=K)
    pictures = np.bincount(np.unique(answers.true.picture * K + answers.true.label) % K, minlength=K)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.stack([right / says, right / answers.boxes, 2 * right / (says + answers.boxes)], axis=1)
    shares[answers.boxes == 0] = np.nan
    columns = (pictures, answers.boxes, says, *shares.T, answers.coco["ap"], answers.coco["ap50"], curves.threshold)
    rows: Any = zip(*(column.tolist() for column in columns), strict=True)
    return [BoxClass(*row) for row in rows]


# ---------------------------------------------------------------- sizes, and all in numbers


@dataclass(frozen=True)
class SizeClass:
    """True boxes of one size, and how well they were found; nan where there are none.

    Attributes:
        size: of `SIZES`.
        boxes: how many.
        ap: COCO's average precision.
        recall: COCO's mean recall, over IoU of 0.5 to 0.95, at any score.
    """

    size: str
    boxes: int
    ap: float
    recall: float


def size_classes(answers: BoxAnswers) -> list[SizeClass]:
    """Small, medium and large."""
    counts = np.bincount(np.searchsorted(EDGES, answers.area, side="left"), minlength=len(SIZES)).tolist()
    values = answers.coco
    return [SizeClass(s, n, float(values[f"map_{s}"]), float(values[f"mar_{s}"])) for s, n in zip(SIZES, counts, strict=True)]


def box_results(answers: BoxAnswers, curves: BoxCurves, threshold: float) -> dict[str, float | None]:
    """Flat names for `result.json`: COCO's, then `precision`, `recall` and `f1`, means over classes at `threshold`. None is of no box."""
    found = {name: float(value) for name, value in answers.coco.items() if value.ndim == 0}
    classes = [c for c in box_classes(answers, curves, threshold) if c.boxes]
    for name in ("precision", "recall", "f1"):
        values = [getattr(c, name) for c in classes]
        # of a class that was never said there is no precision; it would flatter to leave the class out
        found[name] = float(np.mean(np.nan_to_num(values))) if values else float("nan")
    found["threshold"] = threshold
    return {name: None if value != value else value for name, value in found.items()}


# ---------------------------------------------------------------- what is taken for what


def box_confusion(answers: BoxAnswers, threshold: float) -> np.ndarray:
    """`(K + 1, K + 1)`: rows are what is there, columns what was said, K is nothing.

    The diagonal holds what is right. Of the rest, predictions and true boxes of two classes that overlap by half or more are taken for each
    other, the highest score first; then a prediction is of nothing, and a true box is missed.
    """
    K, said = answers.num_classes, answers.said(threshold)
    matrix = np.zeros((K + 1, K + 1), dtype=np.int64)
    match = np.where(said, answers.match, WRONG)
    missed = answers.missed(threshold)
    pairs = overlapping(answers.found, answers.true, 0.5)
    pairs = pairs.take((said & (match == WRONG))[pairs.found] & missed[pairs.true])
    second = greedy(pairs, places(answers.score, answers.found.offsets), len(answers.true))
    match = np.where(match >= 0, match, second)
    hit = said & (match >= 0)
    np.add.at(matrix, (answers.true.label[match[hit]], answers.found.label[hit]), 1)
    matrix[K, :K] = np.bincount(answers.found.label[said & (match < 0)], minlength=K)
    missed[match[hit]] = False
    matrix[:K, K] = np.bincount(answers.true.label[missed], minlength=K)
    return matrix


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True, eq=False)
class BoxCase:
    """One picture to look at, at a threshold.

    Attributes:
        picture: its number.
        truth: its boxes.
        missed: `(M,)` bool, which of them were not found.
        found: what was said, with scores, the highest first.
        right: `(D,)` bool, which of it is right.
        crowd: boxes that count for nothing.
    """

    picture: int
    truth: Boxes
    missed: np.ndarray
    found: Boxes
    right: np.ndarray
    crowd: Boxes

    @property
    def mistakes(self) -> int:
        """Wrong predictions and missed boxes."""
        return int(self.missed.sum() + (~self.right).sum())


def box_case(answers: BoxAnswers, picture: int, threshold: float) -> BoxCase:
    """What to draw of a picture."""
    rows, true = answers.found.rows(picture), answers.true.rows(picture)
    keep = np.flatnonzero(answers.said(threshold)[rows])
    keep = keep[np.argsort(-answers.score[rows][keep], kind="stable")] + rows.start
    crowd = answers.crowd.rows(picture)
    return BoxCase(
        picture,
        _some(answers.true, true),
        answers.missed(threshold)[true],
        replace(_some(answers.found, keep), scores=torch.from_numpy(answers.score[keep]).float()),
        answers.match[keep] >= 0,
        _some(answers.crowd, crowd),
    )


def _some(arrays: BoxArrays, which: slice | np.ndarray) -> Boxes:
    return Boxes(torch.from_numpy(arrays.xyxy[which]).float(), torch.from_numpy(arrays.label[which]))


def worst_pictures(answers: BoxAnswers, threshold: float, most: int = 8) -> list[BoxCase]:
    """Those with most wrong predictions and missed boxes; of equal ones those with fewer right. Pictures without a mistake are none."""
    said = answers.said(threshold)
    hit = said & (answers.match >= 0)
    wrong, right = (np.bincount(answers.found.picture[w], minlength=answers.N) for w in (said & ~hit, hit))
    missed = np.bincount(answers.true.picture[answers.missed(threshold)], minlength=answers.N)
    order = np.lexsort((np.arange(answers.N), right, -(wrong + missed)))
    return [box_case(answers, i, threshold) for i in order[:most].tolist() if wrong[i] + missed[i]]
