"""Teaching by shares of prototypes: DINO, iBOT, SwAV.

B pictures, V views, K prototypes.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import world_size
from visiontune.losses.precision import full_precision


@full_precision
def cross_entropy_between_views(student: Tensor, teacher: Tensor) -> Tensor:
    """Each view of the student tells what the teacher says of every other view of the picture.

    DINO (Caron et al. 2021, arXiv 2104.14294), equation 3; SwAV (Caron et al. 2020, arXiv 2006.09882), equation 1 and multi-crop.

    Args:
        student: logits over its temperature, `(V, B, K)`.
        teacher: probabilities, `(V', B, K)`, of the first V' of these views; no gradient is wanted.

    Returns:
        The mean over pictures and pairs of different views; log K where both are undecided.
    """
    V, T = student.shape[0], teacher.shape[0]
    log_p = F.log_softmax(student, dim=-1)
    # sum over pairs i != j of t_i . log p_j, without forming the pairs
    told = (teacher.sum(dim=0) * log_p.sum(dim=0)).sum() - (teacher * log_p[:T]).sum()
    return -told / (student.shape[1] * (T * V - T))


@full_precision
def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Of logits over their temperature with probabilities, both `(..., K)`: the mean over all but the last. iBOT's loss of a patch."""
    return -(teacher * F.log_softmax(student, dim=-1)).sum(dim=-1).mean()


@torch.no_grad()
@full_precision
def sinkhorn(logits: Tensor, temperature: float | Tensor = 0.05, iterations: int = 3) -> Tensor:
    """Shares of prototypes for each row such that all prototypes are used alike over the joined batch, `(B, K)` -> `(B, K)`.

    Sinkhorn-Knopp of SwAV (arXiv 2006.09882), section 3.1 and the authors' code; also the teacher's centring in DINOv2 (arXiv
    2304.07193). Rows sum to 1; for many iterations columns sum to N / K over all N rows. In logarithms: exp(1 / 0.05) overflows half
    precision, and with a sharper temperature single precision, too.
    """
    Q = logits / temperature
    N, K = logits.shape[0] * world_size(), logits.shape[1]
    log_n, log_k = math.log(N), math.log(K)
    for _ in range(iterations):
        Q = Q - _logsumexp_of_all(Q) - log_k
        Q = Q - torch.logsumexp(Q, dim=1, keepdim=True) - log_n
    return (Q + log_n).exp()


def _logsumexp_of_all(Q: Tensor) -> Tensor:
    """Over the rows of all processes, `(B, K)` -> `(1, K)`."""
    if world_size() == 1:
        return torch.logsumexp(Q, dim=0, keepdim=True)
    largest = Q.amax(dim=0, keepdim=True)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    total = (Q - largest).exp().sum(dim=0, keepdim=True)
    dist.all_reduce(total)
    return largest + total.log()


@torch.no_grad()
def mean_over_processes(rows: Tensor) -> Tensor:
    """`(..., D)` -> the mean row over all processes, `(D,)`, in float32 or wider."""
    mean = (rows if rows.dtype == torch.float64 else rows.float()).flatten(0, -2).mean(dim=0)
    if world_size() > 1:
        dist.all_reduce(mean)
        mean /= world_size()
    return mean
