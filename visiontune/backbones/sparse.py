"""A dense convnet that sees only a part of each picture, as a sparse one would: SparK's encoder for any timm convnet.

Tian et al. 2023, "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (arXiv 2301.03580), section 3.1.
The authors' observation: a submanifold sparse convolution equals a dense one on zeros whose output is set to zero again wherever
nothing is visible. So every layer keeps its own arithmetic and its output is masked; only what takes statistics over positions
(batch and group norm, global pooling) counts the visible ones alone. Sizes are constant, and nothing is gathered.

The layers are changed once, by class (see `install`), and read the mask from one `Active` that the method owns.

B pictures, C channels, h x w positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visiontune.backbones.install import Change, install
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
        self.pooling = 0  # depth of layers whose pooling is rescaled; for `_Watch`
        self._maps: dict[tuple[int, int], Tensor] = {}

    def show(self, active: Tensor, share: float) -> None:
        """From now on only `active` `(B, h, w)` bool, at the coarsest resolution, of which `share` is True, is seen."""
        self._coarse = active.unsqueeze(1).float()
        self.on, self.share = True, share
        self._maps = {size: self._at(size) for size in sorted(self.sizes)}

    def clear(self) -> None:
        """Whole pictures again: every layer as timm made it."""
        self.on, self.share = False, 1.0
        self._maps = {}

    def map(self, size: tuple[int, int]) -> Tensor:
        """1 where visible, 0 where hidden, `(B, 1, h, w)`."""
        if size not in self._maps:
            self.sizes.add(size)
            self._maps[size] = self._at(size)
        return self._maps[size]

    def _at(self, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self._coarse, size=size, mode="nearest")

    def hide(self, x: Tensor, *, channels_last: bool = False, fill: float = 0.0) -> Tensor:
        """A feature map with its hidden positions at zero (or `fill`); vectors and globally pooled maps pass through."""
        if not self.on or x.ndim != 4:
            return x
        h, w = x.shape[1:3] if channels_last else x.shape[2:]
        if h * w == 1 and self._coarse.shape[2:].numel() > 1:  # pooled
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
    """Batch norm whose statistics, and what it remembers of them, are of visible positions."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        active = self.active
        if not active.on or x.ndim != 4 or not layer.training or x.shape[2] * x.shape[3] == 1:
            return active.hide(super().forward(x))  # type: ignore[misc]
        visible = active.map((x.shape[2], x.shape[3]))  # (B, 1, h, w)
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
        if not active.on or x.ndim != 4 or x.shape[2] * x.shape[3] == 1:
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
        share = self.active.share
        self.active.pooling += 1
        out = super().forward(x / share, *rest) * share if self.active.on else super().forward(x, *rest)  # type: ignore[misc]
        self.active.pooling -= 1
        return out


class AfterPool(Change):
    """The layer behind a global mean that is no module of its own (split attention, selective kernels): its input is enlarged."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.active.share if self.active.on else x)  # type: ignore[misc]


class MaskedContext(Change):
    """Global context: attention over positions, with hidden ones at minus infinity (its `conv_attn` fills them so)."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        self.active.pooling += 1
        out = super().forward(x)  # type: ignore[misc]
        self.active.pooling -= 1
        return self.active.hide(out)


class PooledInside(Change):
    """A block that pools in its own forward, with an `AfterPool` layer behind it."""

    active: Active

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        self.active.pooling += 1
        out = super().forward(x, *rest)  # type: ignore[misc]
        self.active.pooling -= 1
        return self.active.hide(out)


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
AFTER_POOL = {"SplitAttn": ("fc1",), "SelectiveKernelAttn": ("fc_reduce",)}
PER_POSITION = ("LayerNorm2d", "LayerNorm2dFp32", "RmsNorm2d", "RmsNorm2dFp32", "SimpleNorm2d", "SimpleNorm2dFp32", "LayerNormAct2d",
                "LayerNormAct2dFp32", "RmsNormAct2d", "RmsNormAct2dFp32", "FrozenBatchNorm2d", "FrozenBatchNormAct2d", "BlurPool2d",
                "AvgPool2dSame", "MaxPool2dSame", "SpaceToDepth", "LayerNormExp2d")  # fmt: skip
ON_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)
LAST_DIM = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def install_masks(model: nn.Module, active: Active) -> None:
    """Change every layer of a convnet that needs it, once."""
    for name, layer in list(model.named_modules()):
        kind = type(layer).__name__
        if isinstance(layer, Change):
            continue
        if kind in AFTER_POOL:
            for child in AFTER_POOL[kind]:
                install(getattr(layer, child), AfterPool, active=active)
            install(layer, PooledInside, active=active)
        elif kind == "GlobalContext":
            if isinstance(part := getattr(layer, "conv_attn", None), nn.Module):
                install(part, Masked, active=active, fill=float("-inf"))
                install(layer, MaskedContext, active=active)
        elif kind in GATES and not (kind == "GatherExcite" and getattr(layer, "extent", 0)):
            install(layer, MaskedGate, active=active)
        elif isinstance(layer, nn.BatchNorm2d):
            install(layer, MaskedBatchNorm, active=active)
        elif isinstance(layer, nn.GroupNorm):
            install(layer, MaskedGroupNorm, active=active)
        elif kind in PER_POSITION or isinstance(layer, ON_MAPS):
            install(layer, Masked, active=active)
        elif kind == "GlobalResponseNorm":  # its norm is a sum: zeros do not count; its bias does
            install(layer, Masked, active=active, channels_last=layer.channel_dim == -1)
        elif isinstance(layer, LAST_DIM):
            install(layer, Masked, active=active, channels_last=True)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm) or kind.startswith(
            ("EvoNorm", "FilterResponseNorm", "InplaceAbn", "InPlaceABN")
        ):
            raise UserError(f"{name} ({kind}) takes statistics over positions in a way that cannot leave hidden ones out")


class _Watch(TorchFunctionMode):
    """Notes what mixes all positions in a function of its own, where no layer can be changed: global pooling, attention."""

    POOLS = ("mean", "adaptive_avg_pool2d", "adaptive_max_pool2d", "amax", "avg_pool2d")

    def __init__(self, active: Active) -> None:
        self.active = active
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if self.active.pooling or x is None:
            return out
        if name == "scaled_dot_product_attention" or (name == "softmax" and x.ndim >= 3 and x.shape[-1] > 1 and x.shape[-2] > 1):
            self.found = "attends over all positions"
        elif name in self.POOLS and isinstance(out, Tensor) and _pooled(x, out):
            self.found = f"pools all positions ({name})"
        return out


def _pooled(x: Tensor, out: Tensor) -> bool:
    """Whether a map lost both its spatial dimensions, in either layout."""
    if x.ndim != 4 or not out.numel() or x.numel() // out.numel() < 4:
        return False
    nchw = x.shape[2] > 1 and x.shape[3] > 1 and tuple(out.shape) in {(*x.shape[:2],), (*x.shape[:2], 1, 1)}
    nhwc = x.shape[1] > 1 and x.shape[2] > 1 and tuple(out.shape) in {(x.shape[0], x.shape[3]), (x.shape[0], 1, 1, x.shape[3])}
    return nchw or nhwc


def watch(active: Active) -> _Watch:
    """`with watch(active) as w: ...; w.found` says in words what a changed network still mixes over hidden positions."""
    return _Watch(active)
