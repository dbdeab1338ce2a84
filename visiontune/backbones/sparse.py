"""A dense convnet that sees only a part of each picture, as a sparse one would: SparK's encoder for any timm convnet.

Tian et al. 2023, "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (arXiv 2301.03580), section 3.1.
The authors' observation: a submanifold sparse convolution equals a dense one on zeros whose output is set to zero again wherever
nothing is visible. So every layer keeps its own arithmetic and its output is masked; only what takes statistics over positions
(batch and group norm, global pooling) counts the visible ones alone. Sizes are constant, and nothing is gathered.

The layers are changed once, by class (see `install`, and `sparsify` for which ones), and read the mask from one `Active` that the method
owns.

B pictures, C channels, h x w positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.backbones.install import Change
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

    def at(self, size: tuple[int, int]) -> Tensor:
        """As `map`, without keeping it."""
        return F.interpolate(self._coarse, size=size, mode="nearest")

    def hide(self, x: Tensor, *, channels_last: bool = False, fill: float = 0.0) -> Tensor:
        """A feature map with its hidden positions at zero (or `fill`); vectors and globally pooled maps pass through."""
        if not self.on or x.ndim != 4:
            return x
        h, w = x.shape[1:3] if channels_last else x.shape[2:]
        if h * w == 1:  # pooled: at least 2x2 positions are hidden or not
            return x
        visible = self.map((h, w))
        if channels_last:
            visible = visible.permute(0, 2, 3, 1)
        return x * visible.to(x.dtype) if fill == 0 else x.masked_fill(visible == 0, fill)


def pooled(x: Tensor) -> bool:
    """Whether a map `(B, C, h, w)` has one position left."""
    return x.shape[2] * x.shape[3] == 1


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
        whole = x.ndim == 4 and pooled(x)
        if not active.on or x.ndim != 4 or not layer.training or (whole and not active.everywhere):
            return active.hide(super().forward(x))  # type: ignore[misc]
        share = 1.0 if whole else active.share
        if round(share * x.numel() / x.shape[1]) < 2:
            raise ValueError(f"Expected more than 1 visible value per channel when training, got input size {tuple(x.shape)}")
        visible = torch.ones_like(x[:, :1]) if whole else active.map((x.shape[2], x.shape[3]))  # (B, 1, h, w)
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
        if not active.on or x.ndim != 4 or pooled(x):
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
                out = out * layer.weight.view(1, C, 1, 1)
            if layer.bias is not None:
                out = out + layer.bias.view(1, C, 1, 1)
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
