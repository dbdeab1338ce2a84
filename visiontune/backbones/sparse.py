"""A dense convnet that sees only a part of each picture, as a sparse one would: SparK's encoder for any timm convnet.

Tian et al. 2023, "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (arXiv 2301.03580), section 3.1.
The authors' observation: a submanifold sparse convolution equals a dense one on zeros whose output is set to zero again wherever
nothing is visible. So every layer keeps its own arithmetic and its output is masked; only what takes statistics over positions
(batch and group norm, global pooling) counts the visible ones alone. Sizes are constant, and nothing is gathered.

The layers are changed once, by class (see `install`), and read the mask from one `Active` that the method owns.

B pictures, C channels, h x w positions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.backbones.face import undisturbed
from visiontune.backbones.install import Change, install, restore
from visiontune.errors import UserError
from visiontune.losses.gather import gather_with_grad


class Active:
    """Which positions may be seen, at every resolution that the network works at.

    Attributes:
        on: whether anything is hidden at all.
        share: visible positions as a share of all; the same in every picture and at every resolution.
        sizes: resolutions at which layers asked.
        everywhere: statistics of batch norms are taken over all processes.
    """

    def __init__(self) -> None:
        self.on = False
        self.share = 1.0
        self.sizes: set[tuple[int, int]] = set()
        self.everywhere = False
        self._coarse = torch.ones(1, 1, 1, 1)
        self._maps: dict[tuple[int, int], Tensor] = {}

    def show(self, active: Tensor, share: float) -> None:
        """From now on only `active` `(B, h, w)` bool, at the coarsest resolution, of which `share` is True, is seen."""
        self._coarse = active.unsqueeze(1).float()
        self.on, self.share = True, share
        self._maps = {size: self.at(size) for size in sorted(self.sizes)}

    def clear(self) -> None:
        """Whole pictures again: every layer as timm made it."""
        self.on, self.share = False, 1.0
        self._maps = {}

    def clear_after(self, loss: Tensor) -> None:
        """Clear when the backward pass of this loss is over: activation checkpointing runs layers once more within it."""
        if not loss.requires_grad:
            return self.clear()
        engine: Any = torch.autograd.Variable._execution_engine
        loss.register_hook(lambda _: engine.queue_callback(self.clear))
        return None

    def map(self, size: tuple[int, int]) -> Tensor:
        """1 where visible, 0 where hidden, `(B, 1, h, w)`."""
        if size not in self._maps:
            self.sizes.add(size)
            self._maps[size] = self.at(size)
        return self._maps[size]

    def pooled(self, x: Tensor) -> bool:
        """Whether a map `(B, C, h, w)` has one position left; at least 2x2 of them are hidden or not."""
        return x.shape[2] * x.shape[3] == 1

    def at(self, size: tuple[int, int]) -> Tensor:
        """As `map`, without keeping it."""
        return F.interpolate(self._coarse, size=size, mode="nearest")

    def hide(self, x: Tensor, *, channels_last: bool = False, fill: float = 0.0) -> Tensor:
        """A feature map with its hidden positions at zero (or `fill`); vectors and globally pooled maps pass through."""
        if not self.on or x.ndim != 4:
            return x
        h, w = x.shape[1:3] if channels_last else x.shape[2:]
        if h * w == 1:  # pooled
            return x
        visible = self.map((h, w))
        if channels_last:
            visible = visible.permute(0, 2, 3, 1)
        return x * visible.to(x.dtype) if fill == 0 else x.masked_fill(visible == 0, fill)


# ---------------------------------------------------------------- layers


class Masked(Change):
    """Its own arithmetic, the output masked: convolutions, norms of single positions, pooling, linear layers on maps."""

    active: Active
    channels_last = False
    fill: float = 0.0

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        out = super().forward(x, *rest, **named)  # type: ignore[misc]
        return self.active.hide(out, channels_last=self.channels_last, fill=self.fill)


class MaskedBatchNorm(Change):
    """Batch norm whose statistics, and what it remembers of them, are of visible positions.

    Of vectors and pooled maps (inside squeeze-excite) every position is visible.

    Raises:
        ValueError: as torch does, where there is one value a channel only.
    """

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        active = self.active
        pooled = x.ndim == 4 and active.pooled(x)
        if not active.on or x.ndim != 4 or not layer.training or (pooled and not active.everywhere):
            return active.hide(super().forward(x))  # type: ignore[misc]
        share = 1.0 if pooled else active.share
        if round(share * x.numel() / x.shape[1]) < 2:
            raise ValueError(f"Expected more than 1 visible value per channel when training, got input size {tuple(x.shape)}")
        visible = torch.ones_like(x[:, :1]) if pooled else active.map((x.shape[2], x.shape[3]))  # (B, 1, h, w)
        with torch.autocast(device_type=x.device.type, enabled=False):  # fp32: sums over whole batches
            wide = x if x.dtype == torch.float64 else x.float()
            visible = visible.to(wide.dtype)
            count = visible.sum()
            total = wide.sum((0, 2, 3))  # (C,); hidden positions come as zeros, from the layer before
            if active.everywhere:
                count, total = _over_processes(count, total)
            mean = total / count
            centred = (wide - mean.view(1, -1, 1, 1)) * visible
            squares = centred.square().sum((0, 2, 3))
            if active.everywhere:
                _, squares = _over_processes(count, squares)
            var = squares / count
            if layer.track_running_stats and layer.running_mean is not None:
                with torch.no_grad():
                    layer.num_batches_tracked.add_(1)
                    momentum = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
                    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
                    layer.running_var.lerp_((squares / (count - 1)).to(layer.running_var.dtype), momentum)
            scale = (var + layer.eps).rsqrt()
            if layer.weight is not None:
                scale = scale * layer.weight
            out = centred * scale.view(1, -1, 1, 1)
            if layer.bias is not None:
                out = out + layer.bias.view(1, -1, 1, 1)
        return _then_activate(layer, out.to(x.dtype), active)


class MaskedGroupNorm(Change):
    """Group norm (also with one group) over the visible positions of each picture."""

    active: Active

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        layer: Any = self
        active = self.active
        if not active.on or x.ndim != 4 or active.pooled(x):
            return active.hide(super().forward(x, *rest))  # type: ignore[misc]
        B, C, h, w = x.shape
        G = layer.num_groups
        with torch.autocast(device_type=x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            visible = active.map((h, w)).to(wide.dtype).unsqueeze(2)  # (B, 1, 1, h, w)
            count = visible.sum((3, 4), keepdim=True) * (C // G)
            groups = wide.reshape(B, G, C // G, h, w)  # hidden positions come as zeros, from the layer before
            mean = groups.sum((2, 3, 4), keepdim=True) / count
            centred = (groups - mean) * visible
            var = centred.square().sum((2, 3, 4), keepdim=True) / count
            out = (centred * (var + layer.eps).rsqrt()).view(B, C, h, w)
            if layer.weight is not None:
                out = out * layer.weight.view(1, C, 1, 1) + layer.bias.view(1, C, 1, 1)
        return _then_activate(layer, out.to(x.dtype), active)


class MaskedGate(Change):
    """Squeeze-excite and its kin, `x * g(mean(x))`: the mean over all positions is made that over visible ones.

    A mean over all counts hidden positions as zeros, so it is too small by the visible share, which is a constant: the input is
    enlarged by its inverse and the output made small again, and the layer itself stays as it is.
    """

    active: Active

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if not self.active.on:
            return super().forward(x, *rest)  # type: ignore[misc]
        share = self.active.share
        return super().forward(x / share, *rest) * share  # type: ignore[misc]


class AfterPool(Change):
    """The layer behind a global mean that is no module of its own (split attention, selective kernels): its input is enlarged."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.active.share if self.active.on else x)  # type: ignore[misc]


def _then_activate(layer: Any, out: Tensor, active: Active) -> Tensor:
    """timm's norms activate too, where they are called so."""
    if hasattr(layer, "act") and hasattr(layer, "drop"):
        out = layer.act(layer.drop(out))
    return active.hide(out)


def _over_processes(count: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    both = gather_with_grad(torch.cat([sums, count.view(1).to(sums.dtype)]).unsqueeze(0)).sum(0)
    return both[-1].detach(), both[:-1]


# ---------------------------------------------------------------- installing

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
            _check_sizes(sizes, grid, _size(images))
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
    return active.pooled(x) or not bool((x * (1 - active.at(_size(x)).to(x))).any())


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


def _check_sizes(sizes: set[tuple[int, int]], grid: tuple[int, int], picture: tuple[int, int]) -> None:
    odd = sorted(s for s in sizes if any(n % g for n, g in zip(s, grid, strict=True)))
    if odd:
        stride = 1 << max(0, round(picture[0] / grid[0]) - 1).bit_length()
        near_size = max(2, round(picture[0] / stride)) * stride
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
