"""Rows, sums and means of every process, with the right gradient."""

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:  # type: ignore[override]
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        # Every process used these rows in a loss of its own: a row's gradient is the sum over all of them. DistributedDataParallel
        # then divides by the number of processes, which turns the sum of the local losses into their mean. Leaving the sum out, or
        # taking it with the local loss divided as well, is wrong by a factor of the world size.
        grad = grad.contiguous().clone()  # autograd may hand the same tensor to others
        dist.all_reduce(grad)
        B = grad.shape[0] // dist.get_world_size()
        return grad[dist.get_rank() * B : (dist.get_rank() + 1) * B]


def gather_with_grad(rows: Tensor) -> Tensor:
    """`(B, D)` on each process -> `(world_size * B, D)` in the order of ranks; unchanged without `torch.distributed`.

    B must be the same on every process. The gradient sums what all processes did with the rows.
    """
    return _AllGather.apply(rows) if world_size() > 1 else rows


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous().clone()  # as above: every process made a loss of the sum
        dist.all_reduce(grad)
        return grad


def sum_with_grad(x: Tensor) -> Tensor:
    """The sum over processes, the same on each; unchanged without `torch.distributed`. The gradient sums what all did with it."""
    return _Sum.apply(x) if world_size() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """Without a gradient; unchanged without `torch.distributed`.

    What a loss is divided by, if it is a sum over as many boxes as there happen to be: DistributedDataParallel's mean of the gradients is
    then that of all pictures together, and no process with few boxes outweighs the others.
    """
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def world_size() -> int:
    """Processes that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
