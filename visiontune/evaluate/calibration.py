"""What a score is worth: reliability, temperature scaling, and thresholds of several labels a picture.

N pictures, K classes, M distinct scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of Guo et al. 2017, section 3, and of torchmetrics
# A score of a few wrong pictures can ask for a temperature without end; beyond this, softmax has nothing left to say.
COLDEST, HOTTEST = 0.05, 100.0


@dataclass(frozen=True)
class Reliability:
    """Scores in bins of equal width, and what they were worth.

    Attributes:
        count: pictures in each bin, `(BINS,)`.
        score: their mean score; nan in an empty bin.
        right: the share of them that was right; likewise.
    """

    count: np.ndarray
    score: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of score and share, weighted by pictures. nan without pictures."""
        filled = self.count > 0
        distance = np.abs(self.score - self.right)[filled]
        return float((self.count[filled] * distance).sum() / self.count.sum()) if filled.any() else float("nan")


def reliability(scores: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equations 2 to 4.

    Args:
        scores: in [0, 1], `(N,)`.
        right: whether what was said with that score is true, `(N,)`.
        bins: number of them; each holds its upper edge, as in the paper.
    """
    place = np.clip(np.ceil(np.nan_to_num(scores) * bins).astype(int) - 1, 0, bins - 1)  # nan is no index; it stays in the sums
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(place, weights=np.asarray(w, dtype=np.float64), minlength=bins) for w in (scores, right))
        score, share = (s / count for s in sums)
    return Reliability(count, score, share)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that makes `softmax(logits / T)` most likely: temperature scaling, section 4.2 of the same paper. No answer changes.

    Args:
        logits: `(N, K)`.
        labels: `(N,)` int64.

    Returns:
        T, rounded to four digits; 1 where every picture is right, for then no finite T is best.
    """
    N = len(logits)
    if not N or bool((logits.argmax(dim=1) == labels).all()):
        return 1.0
    log_T = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_T], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part, truth in zip(logits.split(4096), labels.split(4096), strict=True):  # float64 of all at once would be large
            loss = F.cross_entropy(part.double() * torch.exp(-log_T), truth, reduction="sum") / N
            loss.backward()
            total += loss.detach()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return round(float(np.clip(log_T.exp().item(), COLDEST, HOTTEST)), 4)


@dataclass(frozen=True)
class Cuts:
    """One class's answers for every threshold that makes a difference, from the strictest on.

    Attributes:
        scores: the distinct ones, falling, `(M,)`; at each the answer is yes from that score upward.
        said: pictures with the answer yes.
        right: those of them that have the class.
        positives: pictures that have it.
        total: N.
    """

    scores: np.ndarray
    said: np.ndarray
    right: np.ndarray
    positives: int
    total: int

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray) -> "Cuts":
        """From scores `(N,)` and whether each picture has the class, `(N,)`."""
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each group of equal scores
        right = np.cumsum(truth[order].astype(np.int64))
        return cls(falling[last], last + 1, right[last], int(right[-1]), len(scores))

    @property
    def average_precision(self) -> float:
        """Precision, averaged over the steps of recall (scikit-learn's definition); nan without positives, and where a score is nan."""
        if not self.positives or np.isnan(self.scores[-1]):  # nan sorts last
            return float("nan")
        return float((np.diff(self.right, prepend=0) / self.positives * self.right / self.said).sum())

    @property
    def auroc(self) -> float:
        """Probability that a picture of the class scores higher than another one; nan where there is none of either, or a score is nan."""
        negatives = self.total - self.positives
        if not self.positives or not negatives or np.isnan(self.scores[-1]):
            return float("nan")
        wrong = self.said - self.right
        middle = (self.right + np.append(0, self.right[:-1])) / 2  # equal scores count half
        return float((np.diff(wrong, prepend=0) / negatives * middle / self.positives).sum())

    @property
    def best_threshold(self) -> float:
        """From which score on to say yes for the highest F1, halfway to the next lower score; 0.5 where no F1 can be told."""
        if not self.positives or np.isnan(self.scores[-1]):
            return 0.5
        best = int(np.argmax(2 * self.right / (self.said + self.positives)))
        below = self.scores[best + 1] if best + 1 < len(self.scores) else 0.0
        middle = (self.scores[best] + below) / 2
        rounded = float(f"{middle:.6g}")  # as it is saved
        return rounded if below < rounded <= self.scores[best] else float(self.scores[best])


def best_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """A threshold a class, `(K,)`, with the highest F1 on these pictures. Chosen and judged on the same few, it flatters.

    Args:
        scores: in [0, 1], `(N, K)`.
        targets: 1 where a picture has the class, `(N, K)`.
    """
    return np.array([Cuts.of(s, t).best_threshold for s, t in zip(scores.T, targets.T, strict=True)])
