"""How good a classifier's answers are, from its logits of all pictures: numbers, classes, confusions, mistakes.

N pictures, K classes. A class that no picture has is left out of every mean, and nan by itself. Where pictures have scores that are not
numbers, all numbers are nan: `Answers.lost` says which those are.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.errors import counted
from visiontune.evaluate.calibration import Cuts, Reliability, reliability
from visiontune.metrics import Labels, classification_metrics, log_odds, lost

CHUNK = 4096  # pictures looked at together, to bound memory


@dataclass(frozen=True, eq=False)
class Answers:
    """A classifier's answers to labelled pictures.

    Attributes:
        logits: `(N, K)` float32, on the CPU.
        truth: one class a picture, `(N,)` int64; several, `(N, K)` uint8 of 0 and 1.
        temperature: scores are `softmax(logits / temperature)` of one class a picture, `sigmoid` of several.
        thresholds: score from which on each of several classes is said, `(K,)`; None means one half.
    """

    logits: Tensor
    truth: Tensor
    temperature: float = 1.0
    thresholds: np.ndarray | None = None

    @property
    def labels(self) -> Labels:
        return "single" if self.truth.ndim == 1 else "multi"

    @property
    def N(self) -> int:
        return len(self.logits)

    @property
    def K(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def lost(self) -> np.ndarray:
        """Pictures whose scores are not numbers, `(N,)` bool."""
        return torch.cat([lost(x, multi=self.truth.ndim == 2) for x in self.logits.split(CHUNK)]).numpy()

    @property
    def words_on_lost(self) -> str:
        """How many there are and what that means; empty where there are none."""
        if not (count := int(self.lost.sum())):
            return ""
        return f"the scores of {counted(count, 'picture', ',')} of {self.N:,} are not finite numbers, so every number over pictures is n/a"

    @cached_property
    def label(self) -> np.ndarray:
        """The most likely class, `(N,)`."""
        return self.logits.argmax(dim=1).numpy()

    @cached_property
    def score(self) -> np.ndarray:
        """Its score, `(N,)`."""
        return self.top_score(self.temperature)

    def top_score(self, temperature: float) -> np.ndarray:
        """Score of the most likely class, `(N,)`, at another temperature; float64, for fp32 calls many scores 1."""
        parts = [(x.double() / temperature).softmax(dim=1).max(dim=1).values for x in self.logits.split(CHUNK)]
        return torch.cat(parts).numpy()

    @cached_property
    def scores(self) -> np.ndarray:
        """Of several labels a picture, each one's score, `(N, K)`."""
        return (self.logits.double() / self.temperature).sigmoid().numpy()

    @cached_property
    def said(self) -> np.ndarray:
        """Of several labels a picture, whether each is said, `(N, K)`."""
        return self.scores >= (0.5 if self.thresholds is None else self.thresholds)

    @cached_property
    def odds(self) -> np.ndarray:
        """What ranks pictures by how likely each class is, `(N, K)`: log-odds, which do not run into 0 and 1 as scores do."""
        if self.labels == "multi":
            return self.logits.numpy()
        return torch.cat([log_odds(x) for x in self.logits.split(CHUNK)]).numpy()

    def has(self, k: int) -> np.ndarray:
        """Which pictures have class `k`, `(N,)` bool."""
        return ((self.truth == k) if self.truth.ndim == 1 else self.truth[:, k] > 0).numpy()

    def says(self, k: int) -> np.ndarray:
        """For which pictures class `k` is said, `(N,)` bool."""
        return (self.label == k) & ~self.lost if self.truth.ndim == 1 else self.said[:, k]


@dataclass(frozen=True)
class ClassResult:
    """One class. Shares are in [0, 1]; nan where they are of nothing.

    Attributes:
        pictures: that have it.
        said: pictures of which it is said.
        precision: share of those that have it.
        recall: share of the pictures that have it, of which it is said.
        f1: harmonic mean of both.
        ap: average precision.
        auroc: chance that a picture of it scores above one that is not.
        threshold: score from which on it is said; nan where the most likely class is said.
    """

    pictures: int
    said: int
    precision: float
    recall: float
    f1: float
    ap: float
    auroc: float
    threshold: float


def class_results(answers: Answers) -> list[ClassResult]:
    """Of each class; those without a picture, and all where pictures have no scores, are nan but for `said`."""
    rows, whole = [], not answers.lost.any()
    for k in range(answers.K):
        has, says = answers.has(k), answers.says(k)
        pictures, said, both = int(has.sum()), int(says.sum()), int((has & says).sum())
        cuts = Cuts.of(answers.odds[:, k], has)
        threshold = float("nan")
        if answers.labels == "multi":
            threshold = 0.5 if answers.thresholds is None else float(answers.thresholds[k])
        nothing = float("nan")
        rows.append(
            ClassResult(
                pictures=pictures,
                said=said,
                precision=both / said if pictures and said and whole else nothing,
                recall=both / pictures if pictures and whole else nothing,
                f1=2 * both / (pictures + said) if pictures and whole else nothing,
                ap=cuts.average_precision if whole else nothing,
                auroc=cuts.auroc if whole else nothing,
                threshold=threshold,
            )
        )
    return rows


def results(answers: Answers, classes: list[ClassResult]) -> dict[str, float]:
    """The numbers of `classification_metrics` and more, by flat names.

    Scores are taken before temperature, as during training, but for `ece_scaled`; `macro_ap` and `auroc` are exact where training counts
    in bins. Of several labels a picture, `micro_f1`, `macro_f1` and `exact` are at scores of one half, `*_thresholds` at the thresholds.
    """
    metrics = classification_metrics(answers.K, answers.labels)
    for metric in metrics.values(copy_state=False):
        # These are all answers: where several processes trained, the first one counts alone.
        metric.distributed_available_fn = lambda: False
    loss = 0.0
    for x, y in zip(answers.logits.split(CHUNK), answers.truth.split(CHUNK), strict=True):
        if answers.labels == "single":
            metrics.update(x, y)
            loss += F.cross_entropy(x, y, reduction="sum").item()
        else:
            metrics.update(x, y.float())
            loss += F.binary_cross_entropy_with_logits(x, y.float()).item() * len(x)
    found = {name: float(value) for name, value in metrics.compute().items()}
    found["auroc"] = mean_of([c.auroc for c in classes])
    if answers.labels == "single":
        found["ece"] = calibration(answers, temperature=1.0).error  # as the collection's, of whose bins this is the picture
        found["ece_scaled"] = calibration(answers).error
        found["temperature"] = answers.temperature
    else:
        found["macro_ap"] = mean_of([c.ap for c in classes])
        both = sum(int((answers.has(k) & answers.says(k)).sum()) for k in range(answers.K))
        answered = sum(c.pictures + c.said for c in classes)
        found["micro_f1_thresholds"] = 2 * both / answered if answered and not answers.lost.any() else float("nan")
        found["macro_f1_thresholds"] = mean_of([c.f1 for c in classes])
    found["cross_entropy"] = loss / answers.N
    return found


def mean_of(values: list[float]) -> float:
    """Of those that are not nan; nan if there are none."""
    there = [v for v in values if v == v]
    return sum(there) / len(there) if there else float("nan")


def calibration(answers: Answers, *, temperature: float | None = None) -> Reliability:
    """Scores and what they were worth: of the most likely class, or of several labels a picture all K answers together."""
    if answers.labels == "multi":
        return reliability(answers.scores.ravel(), (answers.truth > 0).numpy().ravel())
    T = answers.temperature if temperature is None else temperature
    return reliability(answers.top_score(T), answers.label == answers.truth.numpy())


@dataclass(frozen=True)
class Confusion:
    """Pictures of one class that were called by one name.

    Attributes:
        truth: number of the class.
        label: what was said.
        pictures: how many.
        share: of all pictures of the class.
    """

    truth: int
    label: int
    pictures: int
    share: float


def confusions(answers: Answers) -> list[Confusion]:
    """The confusion matrix without its zeros, by truth and label: of a thousand classes it has few cells that are not empty."""
    truth = answers.truth.numpy()
    of_class = np.bincount(truth, minlength=answers.K)
    cells, counts = np.unique((truth * answers.K + answers.label)[~answers.lost], return_counts=True)
    found = []
    for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
        t, said = divmod(cell, answers.K)
        found.append(Confusion(t, said, count, count / int(of_class[t])))
    return found


def most_confused(cells: list[Confusion], most: int = 10) -> list[Confusion]:
    """The wrong ones with most pictures; of equal ones those with the larger share of their class."""
    wrong = [c for c in cells if c.truth != c.label]
    return sorted(wrong, key=lambda c: (-c.pictures, -c.share, c.truth, c.label))[:most]


@dataclass(frozen=True)
class Case:
    """One answer to look at.

    Attributes:
        picture: its number.
        label: the class that the answer is about.
        score: of that class.
        said: whether the answer is yes; always so where one class a picture is said.
        right: whether it is true.
    """

    picture: int
    label: int
    score: float
    said: bool
    right: bool


def certain_cases(answers: Answers, *, right: bool, most: int, said: bool = True) -> list[Case]:
    """The most certain right answers, or the most certain wrong ones, one a picture.

    Args:
        answers: to look through.
        right: which.
        most: the number of them.
        said: of several labels a picture: a yes, the highest scores first, or a no, the lowest first.
    """
    if answers.labels == "single":
        label, score = answers.label, answers.score
        wanted = ((label == answers.truth.numpy()) == right) & ~answers.lost
        certainty = score
    else:
        fits = (answers.said == said) & ((answers.said == (answers.truth > 0).numpy()) == right)
        certain = np.where(fits, answers.scores if said else 1 - answers.scores, -1.0)
        label = certain.argmax(axis=1)
        score, certainty = answers.scores[np.arange(answers.N), label], certain.max(axis=1)
        wanted = certainty >= 0
    order = np.argsort(-certainty, kind="stable")
    return [Case(i, int(label[i]), float(score[i]), said, right) for i in order[wanted[order]][:most].tolist()]


def fitted(answers: Answers) -> Answers:
    """With the temperature, or the thresholds, that suit these pictures best; as they are where pictures have no scores."""
    from visiontune.evaluate.calibration import best_thresholds, fit_temperature

    if answers.lost.any():
        return answers
    if answers.labels == "single":
        return replace(answers, temperature=fit_temperature(answers.logits, answers.truth))
    return replace(answers, thresholds=best_thresholds(answers.scores, answers.truth.numpy()))
