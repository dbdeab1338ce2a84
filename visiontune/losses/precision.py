"""Islands of full precision in mixed-precision training."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Compute a loss in float32 (float64 stays), whatever autocast says: half precision has three digits."""

    @functools.wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device_type=first.device.type, enabled=False):
            return loss(*(_raise(x) for x in args), **{k: _raise(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return computed


def _raise(x: object) -> object:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x
