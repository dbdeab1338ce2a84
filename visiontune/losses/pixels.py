"""Patches of pixels, and the loss on those that were hidden. He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"
(arXiv 2111.06377), section 3, "Reconstruction target".

B pictures, C channels, H x W pixels, N = h * w patches of p x q pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """`(B, C, H, W)` -> `(B, N, p * q * C)`, rows first, the channel running fastest (the authors' layout).

    Raises:
        ValueError: if the picture is not a whole number of patches.
    """
    (B, C, H, W), (p, q) = images.shape, patch_size
    if H % p or W % q:
        raise ValueError(f"Expected `images` to be a whole number of {p}x{q} patches but got {H}x{W} pixels.")
    x = images.reshape(B, C, H // p, p, W // q, q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // q), p * q * C)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """`(B, h * w, p * q * C)` -> `(B, C, h * p, w * q)`, the inverse of `patchify`."""
    (p, q), (h, w) = patch_size, grid
    B, C = patches.shape[0], patches.shape[2] // (p * q)
    x = patches.reshape(B, h, w, p, q, C)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, C, h * p, w * q)


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch by its own mean and (unbiased) variance over pixels and channels, `(B, N, P)` -> `(B, N, P)`."""
    mean = patches.mean(dim=-1, keepdim=True)
    var = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (var + eps) ** 0.5


def pixel_loss(predicted: Tensor | None, target: Tensor, *, normalize: bool = True, power: Literal[1, 2] = 2) -> Tensor:
    """Mean squared (or absolute) error over hidden patches.

    Args:
        predicted: `(B, M, P)`, the hidden patches as painted by the decoder; None for the trivial painter, who gives every patch its
            own mean (with `normalize`) or the mean of all pictures (zero, where pictures are normalised): what a network that learns
            nothing reaches.
        target: `(B, M, P)`, the same patches of the picture.
        normalize: compare with each target patch normalised by its own mean and variance (the paper's better variant).
        power: 2 as in MAE and SparK, 1 as in SimMIM.

    Returns:
        A scalar in float32. The trivial painter scores about 1 with `normalize` and `power` 2.
    """
    # fp32: the variance of a flat patch is near eps
    with torch.autocast(device_type=target.device.type, enabled=False):
        target = target.float() if target.dtype != torch.float64 else target
        if normalize:
            target = normalize_patches(target)
        predicted = torch.zeros_like(target) if predicted is None else predicted.to(target.dtype)
        return F.mse_loss(predicted, target) if power == 2 else F.l1_loss(predicted, target)


def paint(
    images: Tensor, predicted: Tensor, mask: Tensor, patch_size: tuple[int, int], *, normalized: bool, mean: Tensor, std: Tensor
) -> dict[str, Tensor]:
    """Pictures to look at: the original, what of it was seen, what was painted, and the painted pasted where it was hidden.

    Args:
        images: `(B, C, H, W)`, normalised.
        predicted: `(B, N, P)`, all patches as painted.
        mask: `(B, N)`, True where hidden.
        patch_size: rows and columns of a patch, in pixels.
        normalized: predictions are of patches normalised by their own mean and variance, which are taken from the true patch.
        mean: `(1, C, 1, 1)`, likewise `std`: what brings pictures back to [0, 1].

    Returns:
        Four rows of `(B, C, H, W)` in [0, 1].
    """
    grid = (images.shape[2] // patch_size[0], images.shape[3] // patch_size[1])
    true = patchify(images, patch_size).float()
    painted = predicted.float()
    if normalized:
        painted = painted * (true.var(dim=-1, keepdim=True) + 1e-6) ** 0.5 + true.mean(dim=-1, keepdim=True)
    at = mask.unsqueeze(-1)
    rows = {"masked": torch.where(at, 0, true), "painted": painted, "pasted": torch.where(at, painted, true)}
    shown = {"original": images.float()} | {name: unpatchify(x, patch_size, grid) for name, x in rows.items()}
    return {name: (x * std + mean).clamp(0, 1) for name, x in shown.items()}
