"""Make a convnet of timm sparse, and try whether it is.

Which layers need another class is told by their types; whether that was enough is not believed but tried, so families that nobody has
looked at are either right or refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visiontune.backbones.face import has_attention, undisturbed
from visiontune.backbones.install import Change, install, restore
from visiontune.backbones.sparse import Active, AfterPool, Masked, MaskedBatchNorm, MaskedGate, MaskedGroupNorm, pooled
from visiontune.errors import UserError

# By class name, since several families have their own class of the same name and meaning.
GATES = ("SEModule", "SqueezeExcite", "EffectiveSEModule", "EcaModule", "CecaModule", "EseModule", "GatherExcite")
AFTER_POOL = {"SplitAttn": "fc1", "SelectiveKernelAttn": "fc_reduce"}
ON_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)
LAST_DIM = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def install_masks(model: nn.Module, active: Active) -> None:
    """Change every layer of a convnet that needs it, once.

    Raises:
        NotSparse: if one takes statistics that cannot leave hidden positions out.
    """
    for name, layer in list(model.named_modules()):
        kind = type(layer).__name__
        if isinstance(layer, Change):
            continue
        if kind in AFTER_POOL:
            install(getattr(layer, AFTER_POOL[kind]), AfterPool, active=active)
            install(layer, Masked, active=active)
        elif kind == "GlobalContext" and getattr(layer, "conv_attn", None) is not None:
            # attention over positions: hidden ones at minus infinity
            install(layer.conv_attn, Masked, active=active, fill=float("-inf"))  # type: ignore[arg-type]
            install(layer, Masked, active=active)
        elif kind in GATES and not (kind == "GatherExcite" and getattr(layer, "extent", 0)):
            install(layer, MaskedGate, active=active)
        elif isinstance(layer, nn.BatchNorm2d):
            install(layer, MaskedBatchNorm, active=active)
        elif isinstance(layer, nn.GroupNorm):
            install(layer, MaskedGroupNorm, active=active)
        elif isinstance(layer, ON_MAPS) or "2d" in kind or kind == "SpaceToDepth":  # LayerNorm2d, RmsNorm2d, BlurPool2d, ...
            install(layer, Masked, active=active)
        elif kind == "GlobalResponseNorm":  # its norm is a sum: zeros do not count; its bias does
            install(layer, Masked, active=active, channels_last=layer.channel_dim == -1)
        elif isinstance(layer, LAST_DIM):
            install(layer, Masked, active=active, channels_last=True)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm) or kind.startswith(
            ("EvoNorm", "FilterResponseNorm", "InplaceAbn", "InPlaceABN")
        ):
            raise NotSparse(f"{name} ({kind}) takes statistics over positions in a way that cannot leave hidden ones out")


# ---------------------------------------------------------------- does it hold?


class NotSparse(Exception):
    """The end of a sentence about why a network cannot keep hidden positions out."""


def make_sparse(
    model: nn.Module, active: Active, grid: tuple[int, int], levels: Callable[[Tensor], Sequence[Tensor]], blank: Tensor
) -> None:
    """Change a convnet's layers, and try whether it is sparse then. Leaves weights, statistics and random state as they were.

    It is tried with all parameters shifted, for biases and scales that start at zero say nothing, in two ways. Every layer's input
    and output must be zero where hidden; one that fills positions by parameters of its own is changed too. And a canvas twice as
    high, of which the rest is hidden, must give the same maps: whatever attends to, pools or counts hidden positions gives others.

    Args:
        model: a timm backbone.
        active: what the changed layers will read.
        grid: rows and columns of its coarsest map.
        levels: images to feature maps.
        blank: `(1, C, H, W)`, for its size, type and device.

    Raises:
        NotSparse: it is none; all layers are restored then.
        UserError: if pictures of this size do not fit its strides; likewise.
    """
    images = torch.randn(blank.shape, generator=torch.Generator().manual_seed(0)).to(blank)
    try:
        with undisturbed(model), torch.no_grad(), _Shifted(model):
            install_masks(model, active)
            _show_top(active, grid)
            _fill_up(model, active, lambda: levels(images * active.map(_size(images)).to(images.dtype)))
            sizes = set(active.sizes)
            _check_sizes(model, sizes, grid, _size(images))
            _check_layers(model, active, grid, lambda: levels(images * active.map(_size(images)).to(images.dtype)))
            _check_canvas(active, grid, levels, images)
    except Exception:
        restore(model)
        raise
    finally:
        active.clear()
    active.sizes = sizes


def _size(x: Tensor) -> tuple[int, int]:
    return (x.shape[-2], x.shape[-1])


class _Shifted:
    """All parameters a little elsewhere, for as long as it lasts."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p in self.parameters]
        for p in self.parameters:
            # weights by about what keeps the size of a signal: at their first values some branches are too faint to be seen
            p.add_(torch.randn_like(p) * (0.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.05))

    def __exit__(self, *_: Any) -> None:
        for p, old in zip(self.parameters, self.kept, strict=True):
            p.copy_(old)


def _show_top(active: Active, grid: tuple[int, int], height: int = 1) -> None:
    """Show every second square of the upper half, of a canvas `height` times as high."""
    h, w = grid
    seen, top = torch.zeros(1, h * height, w, dtype=torch.bool), max(1, h // 2)
    seen[:, :top] = (torch.arange(top * w) % 2 == 0).view(1, top, w)
    active.show(seen, float(seen.float().mean()))


def _empty(active: Active, x: Tensor, *, channels_last: bool = False) -> bool:
    """Whether hidden positions of a map are zero."""
    x = x.permute(0, 3, 1, 2) if channels_last else x
    return pooled(x) or not bool((x * (1 - active.at(_size(x)).to(x))).any())


def _fill_up(model: nn.Module, active: Active, run: Callable[[], Any]) -> None:
    """Change what fills hidden positions although they came in empty: parametrised activations, affine layers, biases of blocks."""
    found: dict[nn.Module, bool] = {}  # and whether its channels are last

    def look(layer: nn.Module, inputs: Any, out: Any) -> Any:
        x = inputs[0] if inputs else None
        if isinstance(layer, Change) or not (isinstance(x, Tensor) and isinstance(out, Tensor) and x.ndim == out.ndim == 4):
            return None
        last = not _empty(active, x) and _empty(active, x, channels_last=True)
        if not (last or _empty(active, x)) or _empty(active, out, channels_last=last):
            return None
        found[layer] = last
        return active.hide(out, channels_last=last)

    hooks = [layer.register_forward_hook(look) for layer in model.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, last in found.items():
        install(layer, Masked, active=active, channels_last=last)


def nearest_size(picture: tuple[int, int], grid: tuple[int, int]) -> int:
    """Pixels of a side near the picture's that are a whole number of strides, at least two."""
    stride = 2 ** math.ceil(math.log2(picture[0] / grid[0]))  # maps are rounded up: the true stride is not below this
    stride = max(stride, 32) if grid[0] == 1 else stride
    return max(2, round(picture[0] / stride)) * stride


def _check_sizes(model: nn.Module, sizes: set[tuple[int, int]], grid: tuple[int, int], picture: tuple[int, int]) -> None:
    odd = sorted(s for s in sizes if any(n % g for n, g in zip(s, grid, strict=True)))
    if odd:
        near_size = nearest_size(picture, grid)
        if has_attention(model):  # what looks like odd maps are its heads and windows
            raise NotSparse("in this one positions attend to each other")
        if near_size == picture[0] == picture[1]:
            raise NotSparse(f"this one has maps of {odd[-1][0]}x{odd[-1][1]} positions above its last of {grid[0]}x{grid[1]}")
        raise UserError(
            f"data.image_size: got {picture[0]}x{picture[1]}; maps of {odd[-1][0]}x{odd[-1][1]} positions in this backbone are no whole "
            f"multiple of its last one's {grid[0]}x{grid[1]}, whose squares are what spark hides; try {near_size}"
        )


def _check_layers(model: nn.Module, active: Active, grid: tuple[int, int], run: Callable[[], Sequence[Tensor]]) -> None:
    names = {layer: name for name, layer in model.named_modules()}
    filled: list[str] = []

    def look(layer: nn.Module, inputs: Any) -> None:
        x, last = inputs[0], getattr(layer, "channels_last", False)
        if x.ndim != 4 or any(n % g for n, g in zip(x.shape[1:3] if last else x.shape[2:], grid, strict=True)):
            return  # a vector, or a map that is padded for this layer alone
        if not _empty(active, x, channels_last=last):
            filled.append(f"{names[layer]} ({layer.original.__name__})")  # type: ignore[union-attr]

    hooks = [layer.register_forward_pre_hook(look) for layer in model.modules() if isinstance(layer, Change)]
    try:
        maps = run()
    finally:
        for hook in hooks:
            hook.remove()
    if filled:
        raise NotSparse(f"in this one something is put into hidden positions before {filled[0]}")
    for m in maps:
        if not _empty(active, m):
            raise NotSparse(f"this one fills hidden positions of its map of {m.shape[-2]}x{m.shape[-1]}")


def _check_canvas(active: Active, grid: tuple[int, int], levels: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> None:
    seen = images * active.map(_size(images)).to(images.dtype)
    maps = levels(seen)
    _show_top(active, grid, height=2)
    try:
        higher = levels(torch.cat([seen, torch.zeros_like(seen)], dim=2))
    except Exception as error:  # families refuse another size in ways of their own
        raise NotSparse(f"this one takes pictures of one size only, so that it cannot be tried ({type(error).__name__})") from error
    for a, b in zip(maps, higher, strict=True):
        # measured: sparse families agree to 1e-6 of the largest value, those that pool or attend differ by 1e-4 and more
        if not torch.allclose(a, b[:, :, : a.shape[2]], rtol=0, atol=2e-5 * float(a.abs().max())):
            raise NotSparse(f"this one mixes hidden positions into its map of {a.shape[-2]}x{a.shape[-1]}, by attention or pooling")
