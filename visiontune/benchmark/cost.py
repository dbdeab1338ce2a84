"""What one picture costs in a network, counted: parameters, multiplications, activations. No clock, so the same on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from visiontune import backbones

aten = torch.ops.aten
# What convolutions and linear layers come down to. Products of two activations (attention) are bmm, and not among them.
LAYERS = (aten.convolution, aten._convolution, aten.addmm, aten.mm)


@dataclass(frozen=True)
class Cost:
    """Attributes:
    parameters: numbers that can be learned.
    macs: multiply-accumulates of one picture, forward, in convolutions and products of matrices, those of attention included. Papers
        say GFLOPs or GMACs for a billion of them; norms, activation functions and sums are not counted.
    activations: numbers that convolutions and linear layers put out for one picture, as timm's tables count them; what a convnet's
        speed follows more closely than its multiplications (Dollár et al. 2021, arXiv 2103.06877).
    """

    parameters: int
    macs: int
    activations: int


def count(network: nn.Module, size: tuple[int, int], channels: int = 3) -> Cost:
    """The cost of one picture; the network may be on the `meta` device, where nothing is computed.

    Args:
        network: takes `(1, channels, H, W)`; in evaluation meanwhile, and afterwards as before.
        size: height and width in pixels.
        channels: of the pictures.
    """
    parameter = next(network.parameters())
    picture = torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
    outputs, flops = _Outputs(), FlopCounterMode(display=False)
    # attention in single products: its fused kernels are not counted on every device
    with backbones.undisturbed(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), outputs, flops:
        network(picture)
    return Cost(sum(p.numel() for p in network.parameters()), flops.get_total_flops() // 2, outputs.elements)


class _Outputs(TorchDispatchMode):
    """Counts the elements that `LAYERS` put out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in LAYERS:
            self.elements += out.numel()
        return out
