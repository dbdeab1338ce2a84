"""VICReg. Bardes et al. 2021, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (arXiv 2105.04906).

B pictures of this process, N of all processes, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.gather import sum_with_grad, world_size
from visiontune.losses.precision import full_precision


@full_precision
def vicreg_parts(z0: Tensor, z1: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance, equations 1 to 4, over the joined batch of all processes.

    Args:
        z0: projections of the first views, `(B, D)`.
        z1: projections of the second views, `(B, D)`.
        eps: added to the variance.

    Returns:
        Mean squared distance of the views (of this process's pictures: its mean over processes is that of all); mean shortfall of the
        standard deviations below 1, averaged over both views; squared covariances off the diagonal over D, summed over both views.

    Raises:
        ValueError: if the shapes differ, or there is one picture alone.
    """
    if z0.shape != z1.shape or z0.ndim != 2:
        raise ValueError(f"Expected `z0` and `z1` to be of one shape (B, D) but got {tuple(z0.shape)} and {tuple(z1.shape)}.")
    N, D = z0.shape[0] * world_size(), z0.shape[1]
    if N < 2:
        raise ValueError("Expected at least 2 pictures in a batch but got 1: one picture has no variance.")
    invariance = F.mse_loss(z0, z1)
    z = torch.stack([z0, z1])  # (2, B, D)
    z = z - sum_with_grad(z.sum(dim=1, keepdim=True)) / N
    covariance = sum_with_grad(z.transpose(1, 2) @ z) / (N - 1)  # (2, D, D)
    variances = covariance.diagonal(dim1=1, dim2=2)  # (2, D)
    variance = F.relu(1 - (variances + eps).sqrt()).mean()
    off_diagonal = covariance.square().sum() - variances.square().sum()
    return invariance, variance, off_diagonal / D


def vicreg(z0: Tensor, z1: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """The three parts weighted, equation 6; a scalar."""
    i, v, c = vicreg_parts(z0, z1)
    return invariance * i + variance * v + covariance * c
