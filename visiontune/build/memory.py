"""Memory: kept where a CPU trains; and what to do when it is too short for a batch, which is the same steps, of smaller batches."""

import ctypes
import gc
import os
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from visiontune.errors import UserError, counted
from visiontune.module import Module
from visiontune.recipe import Recipe, Validated

# Steps of this process in which it counts as not having fitted from the beginning: the optimiser's state comes with the first, other
# shapes and cuDNN's choices with the next.
FIRST_STEPS = 10


@dataclass(frozen=True)
class Smaller:
    """A recipe that takes less memory, and what was changed, in words."""

    recipe: Recipe
    words: str


def is_out_of_memory(error: BaseException) -> bool:
    """Of a device, or of the CPU, for which torch has no exception of its own."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def with_smaller_batches(recipe: Recipe, module: Module, trainer: L.Trainer, folder: Path, *, steps: int) -> Smaller:
    """Half of the pictures at a time and twice as many accumulated: a step sees as many as before.

    Args:
        recipe: that ran out of memory, derived.
        module: of it.
        trainer: likewise.
        folder: of the run.
        steps: that this process has done.

    Raises:
        UserError: where the run cannot begin again by itself, with what to do: after its first steps, of several processes (the others
            wait in the middle of theirs), of a loss that needs the whole batch, and when one picture at a time is too many.
    """
    t, world = recipe.trainer, trainer.world_size
    now = recipe.data.batch_size // (world * t.accumulate_grad_batches)
    parts = next(
        (a for a in range(2 * t.accumulate_grad_batches, recipe.data.batch_size + 1) if recipe.data.batch_size % (world * a) == 0), 0
    )
    what = f"training: out of memory with {counted(now, 'picture')} of {_size(recipe)} at a time on each device"
    if not parts:
        raise UserError(f"{what}, the fewest that there can be; take smaller pictures (data.image_size) or a smaller backbone")
    less, setting = recipe.data.batch_size // (world * parts), f"trainer.accumulate_grad_batches={parts}"
    if not isinstance(recipe, Validated):
        raise UserError(
            f"{what}; set {setting} ({less} at a time, and a loss that compares pictures compares these), or data.batch_size lower"
        )
    if steps >= FIRST_STEPS or world > 1:
        raise UserError(f"{what}, at step {trainer.global_step}; go on with {less}: python -m visiontune.fit --resume {folder} {setting}")
    smaller = recipe.model_copy(deep=True)
    smaller.trainer.accumulate_grad_batches = parts
    norms = any(isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad for m in module.backbone.modules())
    seen = f"; its batch norms see {less} at a time" if norms else ""
    same = f"a step still takes {recipe.data.batch_size}, so learning rate and epochs hold"
    return Smaller(smaller, f"{what}: it begins again with {less} ({setting}); {same}{seen}")


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for a training on the CPU. Returns whether it will: elsewhere, and where the environment has settings
    for malloc, nothing is done.

    A step frees and takes the same large tensors again and again. By default each goes back to the system at once, and comes back as pages
    that are to be cleared first: benchmarks/cpu_memory.py measures what that costs, and what keeping takes.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    trim_threshold, mmap_max = -1, -4  # <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_MAX
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def free_memory() -> None:
    """What the run that did not fit has left: its activations hang on the error, which must be gone by then."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _size(recipe: Recipe) -> str:
    size = recipe.data.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return f"{height}x{width}"
