"""Where the runs of a comparison are made: CUDA devices, or shares of the cores."""

from collections.abc import Sequence

import torch

from visiontune.data.parallel import available_cores
from visiontune.errors import UserError, counted
from visiontune.jobs import Slot
from visiontune.recipe import Judged


def make_slots(jobs: int | None, devices: Sequence[str], recipe: Judged) -> tuple[list[Slot], str]:
    """A slot for each run at a time, and why there are so many.

    Args:
        jobs: how many; None: one for each device, else one.
        devices: numbers of CUDA devices; empty: all there are.
        recipe: whose `trainer` and `data.workers` are obeyed.

    Raises:
        UserError: for devices that are not there, or fewer than one job.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: got {jobs}; expected 1 or more")
    trainer = recipe.trainer
    there = [str(i) for i in range(torch.cuda.device_count())] if trainer.accelerator in ("auto", "gpu", "cuda") else []
    for device in devices:
        if device not in there:
            raise UserError(f"--devices: got {device}; {'CUDA devices here: ' + ', '.join(there) if there else 'there is no CUDA device'}")
    chosen = list(devices) or there
    if trainer.devices != "auto" and not devices and chosen:  # the recipe says how many it wants: each run has them all
        chosen = [",".join(there)]
    count = jobs or max(1, len(chosen))
    share = max(1, available_cores() // count)
    workers: tuple[str, ...] = ()
    if recipe.data.workers == "auto" and count > 1:
        workers = (f"data.workers={max(1, min(16, share - 1)) if chosen else 0 if share == 1 else 1}",)
    if chosen:
        slots = [Slot({"CUDA_VISIBLE_DEVICES": chosen[i % len(chosen)]}, workers) for i in range(count)]
        return slots, f"{counted(count, 'run')} at a time on CUDA {counted(len(chosen), 'device')} {', '.join(chosen)}"
    threads = {"OMP_NUM_THREADS": str(share)} if count > 1 else {}
    return [Slot(threads, workers)] * count, f"{counted(count, 'run')} at a time, {counted(share, 'core')} each"
