"""InfoNCE as MoCo uses it: a query against keys that carry no gradient.

- `info_nce`: MoCo v3. Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers" (arXiv 2104.02057),
  algorithm 1. The negatives are the other pictures' keys in the batch of all processes.
- `info_nce_queue`: MoCo v1 and v2. He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning"
  (arXiv 1911.05722), algorithm 1. The negatives are a queue of earlier batches' keys.

B pictures on this process, G pictures on all processes, D width, L keys in the queue.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import gather_with_grad


def info_nce(q: Tensor, k: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo v3's contrastive loss: which of all processes' keys is of the same picture as the query?

    One half of the symmetric loss `info_nce(q0, k1) + info_nce(q1, k0)`. The mean over processes is the loss of the joined batch.

    Args:
        q: queries, `(B, D)`; they are normalised here. Only they get a gradient.
        k: keys of the momentum encoder for the other views of the same pictures, `(B, D)`; normalised here and gathered from all
            processes, with B the same on each.
        temperature: the paper's tau: 0.2 with a vision transformer, 1 with a ResNet.

    Returns:
        The mean over the B queries of this process times `2 * temperature` (which makes the gradient's size nearly independent of the
        temperature), a scalar in float32 (float64 for float64). With all rows equal it is `2 * temperature * log(G)`.

    Raises:
        ValueError: if the shapes differ, or `temperature` is not positive.

    >>> q = torch.ones(8, 4)
    >>> round(info_nce(q, q, temperature=0.5).item(), 4)  # log(8)
    2.0794
    """
    _check(q, k, temperature)
    # fp32: logits reach 1 / temperature, and half precision has three digits there
    with torch.autocast(device_type=q.device.type, enabled=False):
        q, k = _unit(q), _unit(k.detach())
        keys = gather_with_grad(k)  # (G, D)
        first = dist.get_rank() * len(k) if len(keys) > len(k) else 0  # this process's first key among all
        logits = q @ keys.T / temperature  # (B, G)
        return 2 * temperature * F.cross_entropy(logits, torch.arange(first, first + len(q), device=q.device))


def info_nce_queue(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.07) -> Tensor:
    """MoCo's contrastive loss: the key of the same picture against a queue of keys of other pictures.

    Args:
        q: queries, `(B, D)`; they are normalised here. Only they get a gradient.
        k: keys of the momentum encoder for the other views of the same pictures, `(B, D)`; normalised here.
        queue: keys of earlier batches, `(L, D)`, already of length one; the same on every process, and without this batch's keys.
        temperature: the paper's tau: 0.07 in v1, 0.2 in v2.

    Returns:
        The mean over the B queries of this process, a scalar in float32 (float64 for float64). With all rows equal it is `log(1 + L)`.

    Raises:
        ValueError: if the shapes differ, or `temperature` is not positive.

    >>> q, queue = torch.ones(2, 4), torch.full((7, 4), 0.5)
    >>> round(info_nce_queue(q, q, queue).item(), 4)  # log(8)
    2.0794
    """
    _check(q, k, temperature)
    if queue.ndim != 2 or queue.shape[1] != q.shape[1]:
        raise ValueError(f"Expected `queue` to be of shape (L, {q.shape[1]}) but got {tuple(queue.shape)}.")
    # fp32: logits reach 1 / temperature, and half precision has three digits there
    with torch.autocast(device_type=q.device.type, enabled=False):
        q, k = _unit(q), _unit(k.detach())
        positive = (q * k).sum(dim=1) / temperature  # (B,)
        negative = q @ queue.detach().to(q.dtype).T / temperature  # (B, L)
        # cross entropy with the positive first, without a second (B, L) to hold both
        return (torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive).mean()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def _check(q: Tensor, k: Tensor, temperature: float) -> None:
    if q.shape != k.shape or q.ndim != 2:
        raise ValueError(f"Expected `q` and `k` to be of one shape (B, D) but got {tuple(q.shape)} and {tuple(k.shape)}.")
    if not temperature > 0:
        raise ValueError(f"Expected argument `temperature` to be positive but got {temperature}.")
