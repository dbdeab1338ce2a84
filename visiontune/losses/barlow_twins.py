"""Barlow Twins. Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv 2103.03230), equation 1.

B pictures of this process, N of all processes, D width.
"""

import torch
from torch import Tensor

from visiontune.losses.gather import sum_with_grad, world_size
from visiontune.losses.precision import full_precision


@full_precision
def barlow_twins(z0: Tensor, z1: Tensor, redundancy: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """Make the correlation of two views the identity: each dimension agrees with itself and tells nothing of the others.

    Dimensions are standardised and correlated over the joined batch of all processes, which only sums of it travel for.

    Args:
        z0: projections of the first views, `(B, D)`.
        z1: projections of the second views, `(B, D)`.
        redundancy: weight of the terms off the diagonal, the paper's lambda.
        eps: added to the (biased) variance, as a batch norm does.

    Returns:
        A scalar, the same on every process; 0 where the correlation is the identity.

    Raises:
        ValueError: if the shapes differ.
    """
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"Expected `z0` and `z1` to be of one shape (B, D) but got {tuple(z0.shape)} and {tuple(z1.shape)}.")
    N = z0.shape[0] * world_size()
    z = torch.stack([z0, z1])  # (2, B, D)
    z = z - sum_with_grad(z.sum(dim=1, keepdim=True)) / N
    variance = sum_with_grad(z.square().sum(dim=1, keepdim=True)) / N
    z = z * (variance + eps).rsqrt()
    correlation = sum_with_grad(z[0].T @ z[1]) / N  # (D, D)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * off_diagonal
