"""Patches of pixels, and the loss on those that were hidden. He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"
(arXiv 2111.06377), section 3, "Reconstruction target".

B pictures, C channels, H x W pixels, N = h * w patches of p x q pixels.
"""

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


def pixel_loss(predicted: Tensor, target: Tensor, *, normalize: bool = True) -> Tensor:
    """Mean squared error over hidden patches.

    Args:
        predicted: `(B, M, P)`, the hidden patches as painted by the decoder.
        target: `(B, M, P)`, the same patches of the picture.
        normalize: compare with each target patch normalised by its own mean and variance (the paper's better variant).

    Returns:
        A scalar in float32. Predicting zeros (each patch's mean) scores about 1 when `normalize` is set.
    """
    # fp32: the variance of a flat patch is near eps
    with torch.autocast(device_type=predicted.device.type, enabled=False):
        target = target.float() if target.dtype != torch.float64 else target
        if normalize:
            target = normalize_patches(target)
        return F.mse_loss(predicted.to(target.dtype), target)
