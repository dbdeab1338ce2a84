"""What the rest of the package asks of a backbone, whatever its family.

B pictures, N patches or positions, D width, h x w grid.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import group_parameters, is_model_in_modules
from timm.models.eva import Eva
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


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Try a network in evaluation mode; modes of all its parts and torch's random state are afterwards as before."""
    modes = {part: part.training for part in model.modules()}
    parameter = next(model.parameters())
    for part in modes:
        part.training = False  # not `eval()`, which modules override
    try:
        with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """`(B, C, H, W)` -> one vector a picture, `(B, D)`: what timm's classifier would see."""
    return model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)


def embed_and_tokens(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """`embed` and `tokens` of one forward: `(B, D)` and `(B, D', h, w)`."""
    if not hasattr(model, "forward_intermediates"):
        last = model.forward_features(images)
        return model.forward_head(last, pre_logits=True).flatten(1), _as_map(model, last, None)
    last, maps = model.forward_intermediates(images, indices=1, output_fmt="NCHW")
    return model.forward_head(last, pre_logits=True).flatten(1), _as_map(model, last, maps[-1])


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """`(B, C, H, W)` -> last feature map without class and register tokens, as a grid `(B, D, h, w)`."""
    return levels(model, images)[-1]


def features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """`(B, C, H, W)` -> feature maps `(B, D_i, h_i, w_i)`, the deepest of each stride, fine to coarse; a plain ViT gives one.

    Raises:
        UserError: if the family has no intermediate features in timm.
    """
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"backbone.name: {type(model).__name__} gives no intermediate features in timm; take another backbone")
    return _deepest(model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW"))


def levels(model: nn.Module, images: Tensor) -> list[Tensor]:
    """As `features`, but the coarsest map is the one that the embedding is pooled from, behind the last layers and norms.

    Families without intermediate features in timm give this one alone.
    """
    if not hasattr(model, "forward_intermediates"):
        last = model.forward_features(images)
        return [_as_map(model, last, None)]
    last, maps = model.forward_intermediates(images, output_fmt="NCHW")
    return _deepest([*maps, _as_map(model, last, maps[-1])])


def _as_map(model: nn.Module, x: Tensor, like: Tensor | None) -> Tensor:
    """What a family calls its last features, `(B, prefix + N, D)`, `(B, h, w, D)` or `(B, D, h, w)`, as `(B, D, h, w)`.

    `like` is timm's own map of the same features; where the two do not belong together (more pooling behind it), it is taken itself.
    """
    if x.ndim == 4:
        nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC" or (like is not None and x.shape[1:3] == like.shape[2:] != x.shape[2:])
        return x.permute(0, 3, 1, 2) if nhwc else x
    x = x[:, getattr(model, "num_prefix_tokens", 0) :]
    patches: Any = getattr(model, "patch_embed", None)
    h, w = like.shape[2:] if like is not None else patches.grid_size
    if like is not None and x.shape[1] != h * w:
        return like
    return x.transpose(1, 2).unflatten(2, (h, w))


def _deepest(maps: list[Tensor]) -> list[Tensor]:
    return list({tuple(m.shape[-2:]): m for m in maps}.values())  # a later map of the same size replaces an earlier one


def describe(model: nn.Module, image_size: int | tuple[int, int], channels: int = 3) -> Face:
    """Try the backbone on one blank picture and note what comes out. Leaves weights, statistics and random state as they were.

    Raises:
        UserError: if the backbone cannot take pictures of this size.
    """
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
    parameter = next(model.parameters())
    try:
        with undisturbed(model), torch.no_grad():
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
            f"data.image_size: got {H}x{W}, and {type(model).__name__} cannot take pictures of that size "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); try a larger size, or a multiple of 32 or of the patch size"
        ) from error
    return Face(
        width=width,
        token_width=grid[1] if grid else None,
        grid=(grid[2], grid[3]) if grid else None,
        strides=tuple(H // m.shape[-2] for m in levels),
        widths=tuple(m.shape[1] for m in levels),
    )


def is_plain_vit(model: nn.Module | str) -> bool:
    """Whether this (or what timm makes by this name) is a plain vision transformer: one sequence of patches that do not overlap."""
    if isinstance(model, str):
        return is_model_in_modules(model.split(".", 1)[0], ("vision_transformer", "deit", "eva"))
    return isinstance(model, VisionTransformer | Eva) and isinstance(model.patch_embed, PatchEmbed)


def mean_of_patches(name: str) -> dict[str, Any]:
    """Arguments with which a plain ViT's embedding is the mean of its normed patch tokens, also when plain timm loads the weights.

    None at all for names of other families, and for DeiT's distilled ones, which have to read their two tokens.
    """
    if not is_plain_vit(name) or "distilled" in name:
        return {}
    norm = "use_fc_norm" if is_model_in_modules(name.split(".", 1)[0], ("eva",)) else "fc_norm"
    return {"global_pool": "avg", norm: False}


def any_size(name: str) -> dict[str, Any]:
    """Arguments with which a backbone takes pictures of several sizes, as multi-crop gives them; none where it needs none."""
    return {"dynamic_img_size": True} if is_plain_vit(name) else {}


def has_attention(model: nn.Module) -> bool:
    """Whether positions attend to each other anywhere in it."""
    return any(hasattr(m, "qkv") or hasattr(m, "num_heads") or isinstance(m, nn.MultiheadAttention) for m in model.modules())


def fitting_masked_methods(model: nn.Module) -> str:
    """Which masked methods suit a backbone, for the end of an error sentence."""
    if is_plain_vit(model):
        return "method: mae, ijepa or simmim"
    return "method: simmim" if has_attention(model) else "method: spark"


def reached(outputs: Sequence[Tensor]) -> set[int]:
    """`id` of every parameter that these outputs depend on, from autograd's graph; nothing is computed."""
    found: set[int] = set()
    todo: list[Any] = [x.grad_fn for x in outputs]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return found


def layer_order(model: nn.Module) -> dict[str, int]:
    """Parameter name -> depth, 0 at the picture, rising to the head, by timm's own grouping of the family."""
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks, or stages of blocks, that timm's networks are stacked of and that are called as modules; none where it has no such."""
    parts = (getattr(model, name, None) for name in ("blocks", "stages", "layer1", "layer2", "layer3", "layer4", "layers"))
    return [block for part in parts if part is not None for block in part.children()]


# Channels below which torch 2.14's 1x1 convolutions with a stride write beyond their memory on a CPU, in channels_last and training.
FEW_CHANNELS = 8


def to_channels_last(model: nn.Module) -> nn.Module:
    """The memory format in which convolutions are faster, in place, but for those that it makes end the process (RepVGG's, MobileOne's and
    FastViT's first one): they are given plain pictures on a CPU."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for conv in model.modules():
        strided = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
        if strided and conv.in_channels < FEW_CHANNELS:
            conv.weight.data = conv.weight.data.clone(memory_format=torch.contiguous_format)
            if _plain_on_cpu not in conv._forward_pre_hooks.values():
                conv.register_forward_pre_hook(_plain_on_cpu)
    return model


def _plain_on_cpu(conv: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    return tuple(x.contiguous() for x in inputs) if inputs[0].device.type == "cpu" else None
