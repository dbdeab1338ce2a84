"""How many directions an embedding uses. Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained
Self-Supervised Representations by Their Rank" (arXiv 2210.02885).

N pictures, D width.
"""

import torch
from torch import Tensor


def rank_me(z: Tensor) -> Tensor:
    """The effective rank of an embedding, equation 1: `exp` of the entropy of its normalised singular values. No labels are needed.

    Embeddings are not centred: where all pictures look alike, one direction is left and the rank is 1. The most it can be is the
    smaller of N and D, so values compare for one N only.

    Args:
        z: `(N, D)`.

    Returns:
        A scalar, float32 (float64 for float64).

    Raises:
        ValueError: if `z` is not a matrix.

    >>> round(rank_me(torch.eye(8)).item(), 4), round(rank_me(torch.ones(8, 4)).item(), 3)
    (8.0, 1.0)
    """
    if z.ndim != 2:
        raise ValueError(f"Expected `z` to be of shape (N, D) but got {tuple(z.shape)}.")
    with torch.autocast(device_type=z.device.type, enabled=False):  # fp32: there is no SVD in half precision
        sigma = torch.linalg.svdvals(z if z.dtype == torch.float64 else z.float())
        p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7  # the paper's epsilon
        return (-(p * p.log()).sum()).exp()
