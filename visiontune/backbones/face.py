"""What the rest of the package asks of a backbone, whatever its family.

B pictures, N patches or positions, D width, h x w grid.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.models import group_parameters, is_model_in_modules
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visiontune.errors import UserError


@dataclass(frozen=True)
class Face:
    """What a backbone was found to give, by trying: timm's own figures (`num_features`, `feature_info`) are not always true.

    Attributes:
        width: D of the embedding.
        token_width: D of `tokens`; None for a family without a grid of tokens.
        grid: rows and columns of `tokens`, likewise.
        strides: pixels per position of each level of `features`; empty where the family has no intermediate levels.
        widths: channels of each level.
    """

    width: int
    token_width: int | None
    grid: tuple[int, int] | None
    strides: tuple[int, ...]
    widths: tuple[int, ...]


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """`(B, C, H, W)` -> one vector a picture, `(B, D)`: what timm's classifier would see."""
    return model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """`(B, C, H, W)` -> last feature map without class and register tokens, as a grid `(B, D, h, w)`."""
    x = model.forward_features(images)
    if x.ndim == 3:  # (B, prefix + N, D)
        x = x[:, getattr(model, "num_prefix_tokens", 0) :]
        patches: Any = model.patch_embed
        h, w = patches.grid_size
        return x.transpose(1, 2).unflatten(2, (h, w))
    return x.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else x


def features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """`(B, C, H, W)` -> feature maps `(B, D_i, h_i, w_i)`, the deepest of each stride, fine to coarse; a plain ViT gives one.

    Raises:
        UserError: if the family has no intermediate features in timm.
    """
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"backbone.name: {type(model).__name__} gives no intermediate features in timm; take another backbone")
    maps = model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    by_size = {tuple(m.shape[-2:]): m for m in maps}  # a later map of the same size replaces an earlier one
    return list(by_size.values())


def describe(model: nn.Module, image_size: int | tuple[int, int], channels: int = 3) -> Face:
    """Try the backbone on one blank picture and note what comes out. Leaves weights, statistics and random state as they were.

    Raises:
        UserError: if the backbone cannot take pictures of this size.
    """
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            blank = torch.zeros(1, channels, H, W, device=parameter.device, dtype=parameter.dtype)
            width = embed(model, blank).shape[1]
            # A family need not have a grid of tokens or levels to give an embedding (LeViT, Mixer, Hiera, ...).
            try:
                grid = tuple(tokens(model, blank).shape)
            except (RuntimeError, AttributeError, ValueError, TypeError):
                grid = None
            try:
                levels = features(model, blank)
            except (RuntimeError, AttributeError, ValueError, TypeError):  # UserError is a ValueError
                levels = []
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"data.image_size: got {H}x{W}, and {type(model).__name__} cannot take pictures of that size ({str(error).splitlines()[0]}); "
            "try a larger size, or a multiple of 32 or of the patch size"
        ) from error
    finally:
        model.train(training)
    return Face(
        width=width,
        token_width=grid[1] if grid else None,
        grid=(grid[2], grid[3]) if grid else None,
        strides=tuple(H // m.shape[-2] for m in levels),
        widths=tuple(m.shape[1] for m in levels),
    )


def is_plain_vit(model: nn.Module | str) -> bool:
    """Whether this (or what timm makes by this name) is a plain vision transformer: one resolution, a list of blocks."""
    if isinstance(model, str):
        return is_model_in_modules(model.split(".", 1)[0], ("vision_transformer", "deit"))
    return isinstance(model, VisionTransformer)


def layer_order(model: nn.Module) -> dict[str, int]:
    """Parameter name -> depth, 0 at the picture, rising to the head, by timm's own grouping of the family."""
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
