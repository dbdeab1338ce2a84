"""An average of the weights over the training, which is what is judged and kept. Polyak and Juditsky 1992; Izmailov et al. 2018 (arXiv
1803.05407) on why it generalises.
"""

import copy

import torch
from torch import nn

from visiontune import optim
from visiontune.finetune.parts import batch_norms


def average_of(network: nn.Module) -> nn.Module:
    """A copy to be averaged into: never trained, always as in evaluation."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def momentum_at(step: int, momentum: float) -> float:
    """Share of the old average after `step` optimiser steps: at first a plain mean's, so that the start is forgotten.

    A function of the step alone. As TensorFlow's ExponentialMovingAverage with `num_updates`, which the EfficientNets were trained with.

    >>> [round(momentum_at(s, 0.999), 3) for s in (0, 90, 8990, 100_000)]
    [0.1, 0.91, 0.999, 0.999]
    """
    return min(momentum, (1 + step) / (10 + step))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, momentum: float, taken: torch.Tensor | None = None) -> None:
    """One step: all weights in one call, and the running statistics of batch norms likewise. Nothing where it was not `taken`, which is 1.
    or 0. on the device; None: it was.

    Averaged statistics rather than copied ones: a copy would be those of the newest weights, which the average is not. timm's ModelEmaV3
    does the same.
    """
    optim.ema_update(average, network, momentum, taken)
    kept, new = [], []
    for old, norm in zip(batch_norms(average), batch_norms(network), strict=True):
        if norm.running_mean is not None:
            kept += [old.running_mean, old.running_var]
            new += [norm.running_mean, norm.running_var]
            old.num_batches_tracked.copy_(norm.num_batches_tracked)
    optim.lerp_all(kept, new, 1 - momentum, taken)
