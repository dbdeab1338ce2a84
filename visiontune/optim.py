"""Parameter groups, layer-wise decay, schedules, optimisers, averages of weights, steps that fp16 leaves out."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from visiontune.backbones import layer_order
from visiontune.errors import UserError, near

OPTIMISERS = ("adamw", "adam", "sgd", "lars")


def cosine_with_warmup(total_steps: int, warmup_steps: int = 0, min_factor: float = 0.0, start: int = 0) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear from near 0 to 1 over the warm-up, then half a cosine to `min_factor`.

    A function of the step alone, so a resumed run needs no other state. The warm-up begins at step `start` and is as much shorter as what
    is left of the steps.

    >>> factor = cosine_with_warmup(100, warmup_steps=10)
    >>> [round(factor(s), 3) for s in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    left = max(1, total_steps - start)
    warmup = warmup_steps if start == 0 else round(warmup_steps * left / total_steps)

    def factor(step: int) -> float:
        step = max(0, step - start)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, left - warmup))
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def linear(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at `steps` and behind it, in a line.

    >>> [linear(s, 10, 0.9, 1.0) for s in (0, 5, 10, 11)]
    [0.9, 0.95, 1.0, 1.0]
    """
    return start + (end - start) * min(1.0, step / max(1, steps))


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Likewise along half a cosine. Source: BYOL (arXiv 2006.07733), section 3.3, for the momentum of an average.

    >>> [round(cosine(s, 10, 0.9, 1.0), 3) for s in (0, 5, 10, 11)]
    [0.9, 0.95, 1.0, 1.0]
    """
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


@torch.no_grad()
def ema_update(average: nn.Module, online: nn.Module, momentum: float, taken: Tensor | None = None) -> None:
    """`average = momentum * average + (1 - momentum) * online` for all parameters in one call; buffers are the average's own.

    Args:
        average: changed.
        online: of the same parameters.
        momentum: share of the old.
        taken: on the device, 1. or 0.: whether the optimiser made its step (`SkippedSteps`); None: it did.
    """
    lerp_all(list(average.parameters()), list(online.parameters()), 1 - momentum, taken)


@torch.no_grad()
def lerp_all(kept: list[Tensor], new: list[Tensor], weight: float, taken: Tensor | None = None) -> None:
    """`kept += weight * (new - kept)` in a few calls for all of them; nothing where `taken` is 0., without asking the device."""
    if not kept:  # a part may have none
        return
    if taken is None:
        torch._foreach_lerp_(kept, new, weight)
        return
    moves = torch._foreach_sub(new, kept)
    torch._foreach_mul_(moves, taken * weight)
    torch._foreach_add_(kept, moves)


class SkippedSteps:
    """Steps that a gradient scaler left out because fp16 gradients were not finite: the weights stayed, and so do averages and schedules.

    Whether a step was made is known on the device alone. Averages of weights need it there. Schedules are the host's, which hears of a step
    when the next one is on its way: the device has finished it by then, and nobody waits. They stand still one step after.

    Attributes:
        count: steps left out that the host has heard of.
        latest: whether the last one that it has heard of was left out.
    """

    def __init__(self) -> None:
        self.count, self.latest = 0, False
        self._told: Tensor | None = None  # whether the newest step was made, 1. or 0., to be read once `_arrived`
        self._arrived: Any = None

    @staticmethod
    def scale(scaler: Any) -> Tensor | float:
        """What losses are multiplied with now, a copy on the device: it falls when a step is left out, and only then."""
        now = scaler._get_scale_async()
        return scaler.get_scale() if now is None else now.clone()  # before the first step it is still the host's

    def tell(self, taken: Tensor) -> None:
        """Hear of the step before, and keep for the next time what became of this one."""
        before = self._read()
        if before is not None:
            self.latest = not before
            self.count += self.latest
        self._told, self._arrived = taken, None
        if taken.device.type == "cuda":
            self._told = torch.empty((), dtype=taken.dtype, pin_memory=True).copy_(taken, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def _read(self) -> bool | None:
        if self._told is None:
            return None
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._told)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "latest": self.latest, "told": self._read()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.latest, self._arrived = state["count"], state["latest"], None
        self._told = None if state["told"] is None else torch.tensor(float(state["told"]))


def scale_lr(lr: float, batch_size: int, rule: str) -> float:
    """`lr`, meant for a batch of 256, at another batch size: `linear` (Goyal et al. 2017, arXiv 1706.02677), `sqrt`, or `none`."""
    factors = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size / 256), "none": 1.0}
    return lr * factors[rule]


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    lr: float,
    backbone: nn.Module | None = None,
    layer_decay: float | None = None,
    backbone_factor: float = 1.0,
    steady: Iterable[nn.Parameter] = (),
    late: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Few, merged groups: with and without weight decay, and with `layer_decay` one pair for each depth of the backbone.

    One-dimensional parameters (biases, norms) and what the backbone names in timm's `no_weight_decay` (position embeddings,
    tokens) are not decayed. With layer decay the learning rate of depth `d` of `L` is `lr * layer_decay ** (L - d)`; everything
    outside the backbone has the full one. Source: BEiT (arXiv 2106.08254), section 3.2; MAE, appendix A. That of all of the
    backbone is multiplied by `backbone_factor`, too. Groups of `steady` parameters are marked so: their learning rate is not to fall.
    Likewise those of `late` ones, which are trained from a later step on.

    Raises:
        UserError: if no parameter requires a gradient.
    """
    undecayed: set[int] = set()
    for part in module.modules():
        if callable(names := getattr(part, "no_weight_decay", None)):
            undecayed |= {id(p) for n, p in part.named_parameters() if n in names()}
    depth: dict[int, int] = {}
    deepest = 0
    if backbone is not None and layer_decay is not None and layer_decay != 1.0:
        order = layer_order(backbone)
        depth = {id(p): order[n] for n, p in backbone.named_parameters()}
        deepest = max(order.values())

    slower = set() if backbone is None else {id(p) for p in backbone.parameters()}
    even, joining = {id(p) for p in steady}, {id(p) for p in late}
    groups: dict[tuple[float, float, bool, bool, bool], dict[str, Any]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        adapt = parameter.ndim > 1 and id(parameter) not in undecayed
        decay = weight_decay if adapt else 0.0
        scale = layer_decay ** (deepest - depth[id(parameter)]) if layer_decay and id(parameter) in depth else 1.0
        scale *= backbone_factor if id(parameter) in slower else 1.0
        key = (decay, scale, adapt, id(parameter) in even, id(parameter) in joining)
        marks = {"adapt": adapt, "steady": key[3], "late": key[4]}
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "lr": lr * scale, **marks})
        group["params"].append(parameter)
    if not groups:
        raise UserError("optim: nothing to train, every parameter is frozen")
    return list(groups.values())


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """An optimiser of torch (fused where the caller found it safe), or LARS.

    Raises:
        UserError: for a name that is none of `OPTIMISERS`.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=betas, fused=fused)
    if name == "sgd":
        # Fused SGD fails where a parameter gets its first gradient later than others: prototypes that are frozen at first.
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, foreach=True)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum)
    raise UserError(f"optim.name: got {name!r}; allowed: {', '.join(OPTIMISERS)}{near(name, OPTIMISERS)}")


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling for large batches. You et al. 2017 (arXiv 1708.03888).

    The convention is that of SimCLR's code and of solo-learn: the learning rate multiplies the gradient after the momentum
    buffer (`p -= lr * buffer`), the trust ratio is `trust * |p| / |g + wd * p|`, and groups marked `adapt: False` (biases,
    norms) take plain momentum steps without a trust ratio, whatever the weight decay of the others.
    """

    def __init__(self, params: Iterable, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates: Any = [p.grad for p in parameters]
            if group["adapt"]:
                updates = torch._foreach_add(updates, parameters, alpha=group["weight_decay"])
                # no host synchronisation: the ratios stay tensors on the device
                ratios = []
                for p_norm, u_norm in zip(torch._foreach_norm(parameters), torch._foreach_norm(updates), strict=True):
                    both = (p_norm > 0) & (u_norm > 0)
                    ratios.append(torch.where(both, group["trust"] * p_norm / u_norm, torch.ones_like(p_norm)))
                updates = torch._foreach_mul(updates, ratios)
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(parameters, buffers, alpha=-group["lr"])
        return loss
