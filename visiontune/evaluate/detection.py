"""How good a detector's boxes are, from its predictions for all pictures: what found what, and precision, recall and F1 over the scores.

N pictures, D predictions and M true boxes of all of them, K classes, S thresholds, R recalls. A class that has no box is left out of every
mean, and nan by itself. A prediction is right where it overlaps (IoU) a true box of its class by half or more that no better one found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from visiontune.boxes import Boxes
from visiontune.evaluate.calibration import Cuts
from visiontune.evaluate.matching import IGNORED, BoxArrays, match_by_class
from visiontune.metrics.detection import areas_of, coco_metrics

THRESHOLDS = np.linspace(0, 1, 1001)  # S
RECALLS = np.linspace(0, 1, 101)  # R, COCO's


@dataclass(frozen=True, eq=False)
class BoxAnswers:
    """A detector's predictions for annotated pictures.

    Attributes:
        found: the predictions.
        score: `(D,)` float64, of each.
        true: what there is.
        area: `(M,)` float64, square pixels.
        crowd: boxes that count for nothing, whether they are found or not.
        num_classes: K.
        match: `(D,)`, the number of the true box that each prediction found, `WRONG`, or `IGNORED`: a crowd covers it.
        max_detections: see `visiontune.metrics.MeanAveragePrecision`.
    """

    found: BoxArrays
    score: np.ndarray
    true: BoxArrays
    area: np.ndarray
    crowd: BoxArrays
    num_classes: int
    match: np.ndarray
    max_detections: int = 100

    @classmethod
    def of(
        cls,
        found: Sequence[Boxes],
        truth: Sequence[Boxes],
        *,
        num_classes: int,
        crowd: Sequence[Boxes] | None = None,
        area: Sequence[Tensor] | None = None,
        max_detections: int = 100,
    ) -> "BoxAnswers":
        """From the boxes of each picture, in pixels of the original. Arguments as of `visiontune.metrics.MeanAveragePrecision`."""
        assert len(found) == len(truth), "as many predictions as pictures"
        said, true, ignored = (_arrays(x) for x in (found, truth, [Boxes.none()] * len(truth) if crowd is None else crowd))
        score = _column([f.scores if f.scores is not None else torch.zeros(0) for f in found])
        areas = _column([areas_of(t.xyxy) for t in truth] if area is None else area)
        return cls(said, score, true, areas, ignored, num_classes, match_by_class(said, score, true, ignored), max_detections)

    @property
    def N(self) -> int:
        return len(self.true.offsets) - 1

    @cached_property
    def boxes(self) -> np.ndarray:
        """True boxes of each class, `(K,)`."""
        return np.bincount(self.true.label, minlength=self.num_classes)

    @cached_property
    def coco(self) -> dict[str, Tensor]:
        """COCO's numbers, see `visiontune.metrics.coco_metrics`."""
        parts = (_boxes(self.found, self.score), _boxes(self.true), _boxes(self.crowd))
        area = [torch.from_numpy(self.area[self.true.rows(i)]) for i in range(self.N)]
        return coco_metrics(parts[0], parts[1], crowd=parts[2], area=area, num_classes=self.num_classes, max_detections=self.max_detections)

    def said(self, threshold: float) -> np.ndarray:
        """Predictions that count at a threshold: of that score or more, and not ignored; `(D,)` bool."""
        return (self.score >= threshold) & (self.match != IGNORED)

    def missed(self, threshold: float) -> np.ndarray:
        """True boxes that no prediction of that score or more found; `(M,)` bool."""
        missed = np.ones(len(self.true), dtype=bool)
        missed[self.match[self.said(threshold) & (self.match >= 0)]] = False
        return missed


def _arrays(boxes: Sequence[Boxes]) -> BoxArrays:
    everything = [Boxes.none(), *boxes]
    xyxy = torch.cat([b.xyxy.cpu() for b in everything]).double().numpy()
    label = torch.cat([b.labels.cpu() for b in everything]).numpy()
    return BoxArrays(xyxy, label, np.cumsum([0, *map(len, boxes)]))


def _column(values: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([torch.zeros(0), *(v.cpu() for v in values)]).double().numpy()


def _boxes(arrays: BoxArrays, score: np.ndarray | None = None) -> list[Boxes]:
    """Of each picture."""
    counts = np.diff(arrays.offsets).tolist()
    xyxy, label = torch.from_numpy(arrays.xyxy).float().split(counts), torch.from_numpy(arrays.label).split(counts)
    scores = [None] * len(counts) if score is None else torch.from_numpy(score).float().split(counts)
    return [Boxes(*one) for one in zip(xyxy, label, scores, strict=True)]


# ---------------------------------------------------------------- over scores


@dataclass(frozen=True, eq=False)
class BoxCurves:
    """Each class over the scores; a row of nan where it has no box.

    Attributes:
        precision: `(K, R)`, the best precision at that recall or a higher one, at `RECALLS`; its mean is the class's AP50.
        f1: `(K, S)`, at `THRESHOLDS`.
        threshold: `(K,)`, from which score on F1 is highest.
    """

    precision: np.ndarray
    f1: np.ndarray
    threshold: np.ndarray

    @property
    def mean_precision(self) -> np.ndarray:
        """Of the classes that have boxes, `(R,)`."""
        return _mean_rows(self.precision)

    @property
    def mean_f1(self) -> np.ndarray:
        """Of the classes that have boxes, `(S,)`."""
        return _mean_rows(self.f1)

    @property
    def best_threshold(self) -> float:
        """The one threshold with the highest mean F1, in the middle of where it is; 0.5 without boxes."""
        f1 = self.mean_f1
        if np.isnan(f1).all():
            return 0.5
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        run = best[: 1 + int(np.argmax(np.append(np.diff(best) != 1, True)))]  # the first of them that lie side by side
        return float(THRESHOLDS[run[len(run) // 2]])


def box_curves(answers: BoxAnswers) -> BoxCurves:
    """Precision, recall and F1 of each class for every threshold, at an overlap of one half."""
    K = answers.num_classes
    precision, f1, threshold = np.full((K, len(RECALLS)), np.nan), np.full((K, len(THRESHOLDS)), np.nan), np.full(K, np.nan)
    counts = answers.match != IGNORED
    order = np.argsort(answers.found.label[counts], kind="stable")
    score, right = answers.score[counts][order], (answers.match[counts] >= 0)[order]
    ends = np.cumsum(np.bincount(answers.found.label[counts], minlength=K))
    for k in np.flatnonzero(answers.boxes).tolist():
        rows = slice(int(ends[k - 1]) if k else 0, int(ends[k]))
        precision[k], f1[k], threshold[k] = 0, 0, 0.5
        if rows.start == rows.stop:
            continue
        cuts = replace(Cuts.of(score[rows], right[rows]), positives=int(answers.boxes[k]))
        threshold[k] = cuts.best_threshold
        # COCO takes predictions of equal scores one by one, in the order of the pictures
        found = np.cumsum(right[rows][np.argsort(-score[rows], kind="stable")])
        reached = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
        precision[k] = np.append(reached, 0.0)[np.searchsorted(found / cuts.positives, RECALLS)]
        above = np.searchsorted(-cuts.scores, -THRESHOLDS, side="right")  # cuts whose score reaches the threshold
        f1[k] = np.append(0.0, 2 * cuts.right / (cuts.said + cuts.positives))[above]
    return BoxCurves(precision, f1, threshold)


def _mean_rows(rows: np.ndarray) -> np.ndarray:
    there = ~np.isnan(rows).any(axis=1)
    return rows[there].mean(axis=0) if there.any() else np.full(rows.shape[1], np.nan)
