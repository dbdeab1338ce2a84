"""Losses of a classifier against labels, with what is done about classes of very different size.

B pictures, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def label_loss(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None, adjustment: Tensor | None = None
) -> Tensor:
    """Cross entropy of one label a picture, mean over the batch.

    Args:
        logits: `(B, K)`.
        targets: `(B,)` class indices, or `(B, K)` shares that add up to 1.
        smoothing: share of the target that is spread over all classes.
        weights: `(K,)` of each class's part of the loss. The mean is over pictures, not weights: a batch of rare classes counts for more.
        adjustment: `(K,)` added to the logits, see `log_priors`.
    """
    logits = logits.float()  # a softmax of half precision loses small losses
    if adjustment is not None:
        logits = logits + adjustment
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum") / len(targets)


def multi_label_loss(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, positive_weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of K answers a picture, mean over all.

    Args:
        logits: `(B, K)`.
        targets: `(B, K)` from 0 to 1.
        smoothing: share of each target that becomes a half.
        positive_weights: `(K,)` of what a class's pictures count, beside 1 for those without it.
    """
    targets = targets.float()
    if smoothing:
        targets = torch.lerp(targets, torch.full_like(targets, 0.5), smoothing)
    return F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=positive_weights)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights with which all classes count the same, `(K,)`: the mean over all pictures is 1.

    >>> balanced_weights([30, 10])
    tensor([0.6667, 2.0000])
    """
    n = torch.tensor(counts, dtype=torch.float32)
    return n.sum() / (len(counts) * n)


def balanced_positive_weights(counts: Sequence[int], pictures: int) -> Tensor:
    """For several labels a picture: weights with which a class's pictures count as much as those without it, `(K,)`.

    >>> balanced_positive_weights([30, 10], 40)
    tensor([0.3333, 3.0000])
    """
    n = torch.tensor(counts, dtype=torch.float32)
    return (pictures - n) / n


def log_priors(counts: Sequence[int]) -> Tensor:
    """Logarithms of the classes' shares, `(K,)`: added to the logits in training, they leave a model that scores all classes as if they
    were equally frequent. Menon et al. 2020 (arXiv 2007.07314), equation 10, with tau = 1.
    """
    n = torch.tensor(counts, dtype=torch.float64)
    return (n / n.sum()).log().float()
