"""A teacher: copies of the student's parts whose weights are an average of the student's over the training.

Called momentum encoder (MoCo, arXiv 1911.05722), target network (BYOL, arXiv 2006.07733) or teacher (DINO, arXiv 2104.14294).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from visiontune import optim


class Teacher(nn.Module):
    """Follows the student once an optimiser step; gets no gradient.

    Batch norms see the batch as the student's do while it trains, and keep statistics of their own; dropout and drop path are off.

    Args:
        momentum: share of the old weights in the average, at the first step and at the last.
        schedule: how it gets from one to the other, `optim.cosine` or `optim.linear`.
        parts: the student's, by name; each copy is an attribute of that name.
    """

    def __init__(
        self,
        *,
        momentum: tuple[float, float] = (0.996, 1.0),
        schedule: Callable[[int, int, float, float], float] = optim.cosine,
        **parts: nn.Module,
    ) -> None:
        super().__init__()
        self.momentum, self.schedule = momentum, schedule
        self.students = (parts,)  # in a tuple they are no part of the teacher
        for name, part in parts.items():
            self.add_module(name, copy.deepcopy(part).requires_grad_(False))
        self.train()

    def momentum_at(self, step: int, steps: int) -> float:
        return self.schedule(step, steps, *self.momentum)

    def follow(self, step: int, steps: int, taken: torch.Tensor | None = None) -> None:
        """One optimiser step of the student later, if it was `taken` (None: it was); a function of the step, so that a resumed run needs no
        state."""
        for name, student in self.students[0].items():
            optim.ema_update(getattr(self, name), student, self.momentum_at(step, steps), taken)

    def restart(self) -> None:
        """Take the student's weights as they are, after others were loaded into it."""
        for name, student in self.students[0].items():
            getattr(self, name).load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> "Teacher":
        super().train(False)
        self.training = mode
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.training = mode
        return self

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError("a teacher is used by its parts, under torch.no_grad()")


@torch.no_grad()
def entropies(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a teacher says, `(B, K)` -> the mean entropy of a picture, and that of the batch's mean; both over log K, in [0, 1].

    All pictures the same and undecided: both are 1. All pictures one prototype: both are 0. Healthy: the first well below the second.
    """
    p = probabilities.float()
    both = torch.stack([torch.special.entr(p).sum(dim=-1).mean(), torch.special.entr(p.mean(dim=0)).sum()])
    one, mean = (both / math.log(p.shape[-1])).unbind()
    return one, mean
