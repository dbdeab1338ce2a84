"""What a classifier's scores are worth: one collection of metrics for training, evaluation and comparison alike.

Everything is counted: states are sums of a size that does not grow with the pictures, over processes they add up, and an update never
waits for the device. Classes that the truth does not hold are left out of means over classes instead of counting as 0. Where the scores of
a picture are not numbers (a network that diverged, half precision that ran over), no answer can be read off them, and results are nan.

B pictures, K classes, T bins.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from visiontune.errors import UserError

Labels = Literal["single", "multi"]
LOWER_IS_BETTER = ("loss", "ece")
CALIBRATION_BINS = 15  # Guo et al. 2017 (arXiv 1706.04599), section 5


def classification_metrics(num_classes: int, labels: Labels = "single", prefix: str = "") -> MetricCollection:
    """Metrics over logits `(B, K)` and labels `(B,)`, or for `multi` targets `(B, K)` of 0 and 1.

    Single: `top1`, `top5` (K > 5), `balanced_accuracy`, `macro_f1`, `auroc` (one class against the rest, mean over classes), `ece`.
    Multi: `macro_ap`, `micro_f1`, `macro_f1` and `exact` (all K right) at a score of one half, `auroc`.

    Args:
        num_classes: K.
        labels: `single`: one class a picture; `multi`: any number.
        prefix: of the names, `val/` say.

    Raises:
        UserError: for other `labels`.
    """
    if labels not in ("single", "multi"):
        raise UserError(f"labels: got {labels!r}; allowed: single, multi")
    K = num_classes
    metrics: dict[str, Metric]
    if labels == "single":
        metrics = {"top1": TopAccuracy(1)}
        if K > 5:
            metrics["top5"] = TopAccuracy(5)
        metrics |= {"balanced_accuracy": BalancedAccuracy(K), "macro_f1": F1(K), "auroc": Auroc(K), "ece": CalibrationError()}
    else:
        metrics = {"macro_ap": AveragePrecision(K, multi=True), "micro_f1": F1(K, multi=True, micro=True), "macro_f1": F1(K, multi=True)}
        metrics |= {"auroc": Auroc(K, multi=True), "exact": ExactMatch()}
    # Those with the same sums (recall and F1, say) keep and update one of them.
    return MetricCollection(metrics, prefix=prefix, compute_groups=groups_of(metrics))


def higher_is_better(metric: str) -> bool:
    """Of a metric by its name, with or without a prefix.

    >>> higher_is_better("val/top1"), higher_is_better("val/loss"), higher_is_better("ece")
    (True, False, False)
    """
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER


def groups_of(metrics: dict[str, Metric]) -> list[list[str]]:
    """Names of metrics that add up the same sums."""
    groups: dict[Any, list[str]] = {}
    for name, metric in metrics.items():
        groups.setdefault((type(metric).update, getattr(metric, "k", None)), []).append(name)
    return list(groups.values())


def lost(logits: Tensor, *, multi: bool = False) -> Tensor:
    """Which pictures have scores that are not numbers, `(B,)` bool, from logits `(B, K)`: their softmax, or for `multi` a sigmoid, is nan.

    >>> lost(torch.tensor([[1.0, float("-inf")], [0.0, float("nan")], [float("inf"), 0.0]]))
    tensor([False,  True,  True])
    """
    return logits.isnan().any(dim=1) if multi else ~logits.amax(dim=1).isfinite()


class _Counted(Metric):
    """Sums over pictures, and how many of them have no scores."""

    full_state_update = False
    higher_is_better = True
    lost: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lost", torch.tensor(0), dist_reduce_fx="sum")

    def told(self, value: Tensor) -> Tensor:
        """The result, or nan if a picture had no scores."""
        return value.masked_fill(self.lost > 0, float("nan"))


class Exact(Metric):
    """Sums of float32, also in a module that is made half precision whole: Lightning's `bf16-true` would make its metrics so, too."""

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def keeping(x: Tensor) -> Tensor:
            return fn(x).to(x.dtype)

        return super()._apply(keeping, *args, **kwargs)


class Mean(Exact):
    """Mean over pictures of what is nan where it is: torchmetrics' own leaves that out, with a warning."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, pictures: int) -> None:
        self.total += value.float() * pictures
        self.count += pictures

    def compute(self) -> Tensor:
        return self.total / self.count


class Agreed(Metric):
    """A number that every process has already, to be logged as it is: what `compute` of a metric gives has been added up over processes.

    A bare tensor Lightning wants to reduce once more (`sync_dist`), which costs a round for each name, and warns where it may not.
    """

    full_state_update = False
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("value", torch.full_like(value, float("nan")))
        self.update(value)

    def update(self, value: Tensor) -> None:
        self.value = value

    def compute(self) -> Tensor:
        return self.value


# ---------------------------------------------------------------- shares of right pictures


class _Share(_Counted):
    """Right pictures over all pictures."""

    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.told(self.right / self.count)


class TopAccuracy(_Share):
    """The true class is among the `k` most likely."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.right += (logits.topk(self.k, dim=1).indices == labels[:, None]).sum()
        self.count += len(labels)
        self.lost += lost(logits).sum()


class ExactMatch(_Share):
    """All K answers of a picture are right, at a score of one half."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.right += ((logits > 0) == (targets > 0.5)).all(dim=1).sum()
        self.count += len(targets)
        self.lost += lost(logits, multi=True).sum()


# ---------------------------------------------------------------- counts of each class


class _ClassCounts(_Counted):
    """For each class how often it was true, said, and both."""

    true: Tensor
    said: Tensor
    both: Tensor

    def __init__(self, num_classes: int, *, multi: bool = False) -> None:
        super().__init__()
        self.multi = multi
        for name in ("true", "said", "both"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        self.lost += lost(logits, multi=self.multi).sum()
        if self.multi:
            said, true = logits > 0, truth > 0.5
            self.said += said.sum(dim=0)
            self.true += true.sum(dim=0)
            self.both += (said & true).sum(dim=0)
        else:
            said = logits.argmax(dim=1)
            # index_add, not bincount, which asks the device for the largest index
            self.said.index_add_(0, said, torch.ones_like(said))
            self.true.index_add_(0, truth, torch.ones_like(truth))
            self.both.index_add_(0, truth, (said == truth).to(truth.dtype))


class BalancedAccuracy(_ClassCounts):
    """Mean over classes of the share of its pictures that were recognised."""

    def compute(self) -> Tensor:
        there = self.true > 0
        return self.told((self.both[there] / self.true[there]).mean())


class F1(_ClassCounts):
    """Harmonic mean of precision and recall: the mean of the classes', or (`micro`) that of all answers together."""

    def __init__(self, num_classes: int, *, multi: bool = False, micro: bool = False) -> None:
        super().__init__(num_classes, multi=multi)
        self.micro = micro

    def compute(self) -> Tensor:
        both, answers = self.both, self.true + self.said
        if self.micro:
            return self.told(2 * both.sum() / answers.sum())
        there = self.true > 0
        return self.told((2 * both[there] / answers[there]).mean())


# ---------------------------------------------------------------- histograms of each class's scores


class _Histograms(_Counted):
    """For each class a histogram of its scores over the pictures that are of the class, and one over those that are not.

    Bins are of the log-odds squashed, so that they are as fine for one class of a thousand, whose scores are all near 0, as for one of
    two: up to 512 classes two scores share a bin if their log-odds differ by 0.004 near a half, 0.01 near a thousandth, 0.05 near 1e-9.
    """

    positive: Tensor
    negative: Tensor

    def __init__(self, num_classes: int, *, multi: bool = False) -> None:
        super().__init__()
        self.multi = multi
        self.bins = min(4096, max(256, 2**21 // num_classes))  # 16 MB for a thousand classes
        for name in ("positive", "negative"):
            self.add_state(name, torch.zeros(num_classes, self.bins, dtype=torch.int32), dist_reduce_fx="sum")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        K = logits.shape[1]
        self.lost += lost(logits, multi=self.multi).sum()
        odds = logits.float() if self.multi else log_odds(logits)
        # What is lost is counted; here it must only be an index.
        odds = odds.nan_to_num(nan=0.0, posinf=1e4, neginf=-1e4)
        squashed = 0.5 + 0.5 * odds / (8 + odds.abs())
        bins = (squashed * self.bins).long().clamp(max=self.bins - 1)  # (B, K)
        places = (bins + torch.arange(K, device=bins.device) * self.bins).flatten()
        # (B, K), 1 where the picture is of the class
        true = truth > 0.5 if self.multi else torch.zeros_like(bins, dtype=torch.bool).scatter_(1, truth[:, None], True)
        true = true.int().flatten()
        self.positive.view(-1).index_add_(0, places, true)
        self.negative.view(-1).index_add_(0, places, 1 - true)


class Auroc(_Histograms):
    """Area under the ROC curve, each class against the rest; the mean over classes that have pictures on both sides."""

    def compute(self) -> Tensor:
        areas = areas_under_roc(self.positive, self.negative)
        return self.told(areas.nanmean().float().to(self.positive.device))


class AveragePrecision(_Histograms):
    """Mean over classes of the area under the precision-recall curve, as a step function."""

    def compute(self) -> Tensor:
        precisions = average_precisions(self.positive, self.negative)
        return self.told(precisions.nanmean().float().to(self.positive.device))


def areas_under_roc(positive: Tensor, negative: Tensor) -> Tensor:
    """Histograms `(K, T)`, scores rising -> `(K,)`: the chance that a picture of the class scores above one that is not, ties half.

    nan where a class has no picture on one of the sides.

    >>> areas_under_roc(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]]))
    tensor([0.8750], dtype=torch.float64)
    """
    positive, negative = positive.cpu().double(), negative.cpu().double()
    below = negative.cumsum(dim=1) - negative / 2
    return (positive * below).sum(dim=1) / (positive.sum(dim=1) * negative.sum(dim=1))


def average_precisions(positive: Tensor, negative: Tensor) -> Tensor:
    """Histograms `(K, T)`, scores rising -> `(K,)`: the sum over thresholds of precision times the gain in recall; nan without pictures.

    >>> average_precisions(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]]))
    tensor([0.8333], dtype=torch.float64)
    """
    positive, negative = (x.cpu().double().flip(1) for x in (positive, negative))
    right, wrong = positive.cumsum(dim=1), negative.cumsum(dim=1)
    precision = right / (right + wrong).clamp(min=1)
    return (positive * precision).sum(dim=1) / positive.sum(dim=1)


def log_odds(logits: Tensor) -> Tensor:
    """`(B, K)` -> `log(p / (1 - p))` of the softmax of each, finite also where `p` is 1 in fp32; nan where `p` is.

    >>> log_odds(torch.tensor([[100.0, 0.0]]))
    tensor([[ 100., -100.]])
    """
    logp = logits.float().log_softmax(dim=1)
    odds = logp - torch.log1p(-logp.exp().clamp(max=0.75))  # right where p <= 1/2, which all but the largest are
    top = logp.argmax(dim=1, keepdim=True)
    rest = logp.scatter(1, top, float("-inf")).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, logp.gather(1, top) - rest).nan_to_num(nan=float("nan"), posinf=1e4, neginf=-1e4)


# ---------------------------------------------------------------- calibration


class CalibrationError(Exact):
    """Expected calibration error: how far certainty is from accuracy, over 15 bins of the score of the most likely class."""

    full_state_update = False
    higher_is_better = False
    right: Tensor
    certainty: Tensor
    count: Tensor

    def __init__(self, bins: int = CALIBRATION_BINS) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("right", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("certainty", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        score, said = logits.float().softmax(dim=1).max(dim=1)
        # nan is no index; it stays in the sums, so that the error is nan, too
        bins = (score.nan_to_num(nan=0.0) * self.bins).long().clamp(max=self.bins - 1)
        self.right.index_add_(0, bins, (said == labels).float())
        self.certainty.index_add_(0, bins, score)
        self.count.index_add_(0, bins, torch.ones_like(score))

    def compute(self) -> Tensor:
        return (self.right - self.certainty).abs().sum() / self.count.sum()
