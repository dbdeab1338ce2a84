"""Low-rank adapters: `W + alpha / rank * B A` in place of the weights of attention and of the layers between. Hu et al. 2021 (arXiv
2106.09685).

The sum is the layer's `weight` itself, and not made in its forward: timm's families use these weights in ways of their own (BEiT, EVA and
Swin v2 read `qkv.weight` and never call `qkv`), and each of them meets the adapted one.
"""

import math
from typing import Any

from torch import Tensor, nn

from visiontune.errors import UserError

# timm's names of the linear layers of attention and of the network behind it, gated ones included.
ATTENTION = ("qkv", "q", "kv", "k", "v", "q_proj", "k_proj", "v_proj", "proj", "out_proj")
BETWEEN = ("fc1", "fc2", "fc1_g", "fc1_x", "w1", "w2", "w3", "w12")


class LowRankLinear(nn.Linear):
    """A linear layer of weight `base + scale * lora_b @ lora_a`; made of a plain one by `adapt`, and turned into one by `merge`.

    (torch's parametrisations would do the same, but a copy of one shares its class, and loses its weight when the first is merged.)
    """

    base: nn.Parameter  # (out, in), frozen
    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank); zero at first, so that the weight is at first what it was
    scale: float

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.base + self.scale * (self.lora_b @ self.lora_a)


def adapt(layer: nn.Linear, rank: int, alpha: float) -> list[nn.Parameter]:
    """Turn a plain layer into an adapted one; its new parameters."""
    base, bias = (layer._parameters.pop(name) for name in ("weight", "bias"))
    assert base is not None
    layer.__class__ = LowRankLinear
    adapted: Any = layer
    adapted.base, adapted.scale = base, alpha / rank
    adapted.lora_a = nn.Parameter(base.new_empty(rank, layer.in_features))
    adapted.lora_b = nn.Parameter(base.new_zeros(layer.out_features, rank))
    nn.init.kaiming_uniform_(adapted.lora_a, a=math.sqrt(5))  # as the authors' code
    layer.register_parameter("bias", bias)
    return [adapted.lora_a, adapted.lora_b]


def merge(layer: LowRankLinear) -> None:
    """Turn an adapted layer into a plain one of the same weight."""
    weight, bias = nn.Parameter(layer.weight.detach()), layer.bias
    layer._parameters.clear()
    del layer.scale
    layer.__class__ = nn.Linear  # type: ignore[assignment]
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias)


def adaptable(backbone: nn.Module) -> list[nn.Linear]:
    """Linear layers of attention and of what lies between, whose weights are not adapted yet."""
    found = []
    for name, layer in backbone.named_modules():
        if type(layer) is nn.Linear and name.rpartition(".")[2] in ATTENTION + BETWEEN:
            found.append(layer)
    return found


def add_adapters(backbone: nn.Module, *, rank: int, alpha: float) -> list[nn.Parameter]:
    """Put adapters in; their parameters.

    Raises:
        UserError: if the backbone has no such layers, or the rank is no smaller than their width.
    """
    layers = adaptable(backbone)
    if not layers:
        raise UserError(
            f"tune: got lora, but {type(backbone).__name__} has no linear layers of attention or between to adapt; "
            "take last:N, head_then_full or full"
        )
    narrowest = min(min(layer.weight.shape) for layer in layers)
    if rank >= narrowest:
        raise UserError(
            f"head.lora_rank: got {rank}, no less than the narrowest layer of {type(backbone).__name__}, {narrowest}; take less"
        )
    return [parameter for layer in layers for parameter in adapt(layer, rank, alpha)]


def merge_adapters(backbone: nn.Module) -> None:
    """Add the adapters to their weights and take them out: timm's module, with the same outputs."""
    for layer in backbone.modules():
        if isinstance(layer, LowRankLinear):
            merge(layer)
