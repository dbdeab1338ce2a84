"""What two processes make of a batch together, as DistributedDataParallel does: the mean of their losses and gradients."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

LossOf = Callable[[str, slice], tuple[Tensor, Tensor]]  # name and rows of the batch -> loss and gradient; a function of a module


def means(loss_of: LossOf, names: Iterable[str], rows: int, folder: Path) -> dict[str, list[Tensor]]:
    """Of each name loss and gradient, of two gloo processes with so many rows each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        mp.spawn(_half, args=(loss_of, list(names), rows, str(folder / "meet"), str(folder / "out")), nprocs=2)
    return torch.load(folder / "out")


def _half(rank: int, loss_of: LossOf, names: list[str], rows: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = {}
    for name in names:
        values = [v.clone() for v in loss_of(name, slice(rank * rows, rank * rows + rows))]
        for value in values:
            dist.all_reduce(value)
            value /= 2
        found[name] = values
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()
