"""Low-rank adapters: `W + alpha / rank * B A` in place of the weights of attention and of the layers between. Hu et al. 2021 (arXiv
2106.09685).

They are torch parametrisations of the weight itself, not layers around it: timm's families use these weights in ways of their own (BEiT,
EVA and Swin v2 read `qkv.weight` and never call `qkv`), and each of them meets the adapted one.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from visiontune.errors import UserError

# timm's names of the linear layers of attention and of the network behind it, gated ones included.
ATTENTION = ("qkv", "q", "kv", "k", "v", "q_proj", "k_proj", "v_proj", "proj", "out_proj")
BETWEEN = ("fc1", "fc2", "fc1_g", "fc1_x", "w1", "w2", "w3", "w12")


class LowRank(nn.Module):
    """The parametrisation of one weight `(out, in)`. `b` is zero at first, so that the weight is at first what it was."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out, width = weight.shape
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(rank, width))
        self.b = nn.Parameter(weight.new_zeros(out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as the authors' code

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


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
    added = []
    for layer in layers:
        low_rank = LowRank(layer.weight, rank, alpha)
        parametrize.register_parametrization(layer, "weight", low_rank)
        added += [low_rank.a, low_rank.b]
    return added


def merge_adapters(backbone: nn.Module) -> None:
    """Add the adapters to their weights and take them out: timm's module, with the same outputs."""
    for layer in list(backbone.modules()):
        added: Any = getattr(layer, "parametrizations", {})
        if "weight" in added and isinstance(added["weight"][0], LowRank):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
