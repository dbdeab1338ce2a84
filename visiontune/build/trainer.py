"""Lightning's Trainer from the recipe's `trainer` section."""

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted
from visiontune.module import Module
from visiontune.recipe import ClassifyRecipe, PretrainRecipe, Recipe, Validated


def make_trainer(recipe: Recipe, folder: Path, *, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer from the recipe's `trainer` section."""
    t = recipe.trainer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if t.tf32 is not None:
            torch.set_float32_matmul_precision("high" if t.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = t.tf32
        return _trainer(
            accelerator=t.accelerator,
            devices=t.devices,
            strategy=_strategy(recipe),
            num_nodes=t.num_nodes,
            precision=t.precision,
            max_epochs=recipe.epochs,
            accumulate_grad_batches=t.accumulate_grad_batches,
            check_val_every_n_epoch=t.check_val_every_n_epoch,
            log_every_n_steps=t.log_every_n_steps,
            deterministic=t.deterministic,
            use_distributed_sampler=False,  # our order knows ranks itself
            num_sanity_val_steps=0,
            enable_checkpointing=True,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
        )


def _strategy(recipe: Recipe) -> str | ParallelStrategy:
    """Of several processes DDP that copies no gradient into its buckets, or FSDP2; else Lightning's by name.

    DDP waits for a gradient of every parameter, unless it is told that some steps have none: `head_then_full` at first. It need not look
    which ones a step has where that never changes: no pretraining method goes other ways from one step to the next. But it would learn
    their order from the first batch, and of several whose gradients are added up only the last one's are sent. A detector's ways may depend
    on its boxes.
    """
    t = recipe.trainer
    processes = processes_here(recipe) * t.num_nodes
    if t.strategy == "fsdp":
        if isinstance(recipe, ClassifyRecipe) and recipe.tune == "head_then_full":  # its checkpoints want a state of every parameter
            raise UserError("trainer.strategy: got fsdp with tune: head_then_full, whose first part could not be resumed; take tune: full")
        # Lightning's `fsdp` is torch's first one: on CUDA alone, and with flat parameters, of which none would be decayed.
        return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)
    unused = isinstance(recipe, ClassifyRecipe) and recipe.tune == "head_then_full"
    automatic = t.strategy == "auto" and processes > 1 and t.accelerator in ("auto", "cpu", "gpu", "cuda")
    if automatic and (hasattr(sys, "ps1") or sys.flags.interactive):  # a notebook, where Lightning takes none but its own by name
        return "ddp_notebook_find_unused_parameters_true" if unused else "auto"
    if t.strategy != "ddp" and not automatic:
        return t.strategy
    return DDPStrategy(
        gradient_as_bucket_view=True,
        static_graph=isinstance(recipe, PretrainRecipe) and t.accumulate_grad_batches == 1,
        find_unused_parameters=unused,
    )


def processes_here(recipe: Recipe) -> int:
    """Training processes on this machine: one a device."""
    devices = recipe.trainer.devices
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return devices
    return max(1, torch.cuda.device_count()) if recipe.trainer.accelerator != "cpu" else 1


def tensorboard(folder: Path) -> list[Any]:
    """TensorBoard's logger where it is installed."""
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        return []
    from lightning.pytorch.loggers import TensorBoardLogger

    return [TensorBoardLogger(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)]


def _trainer(**settings: Any) -> L.Trainer:
    try:
        return L.Trainer(**settings)
    except (MisconfigurationException, ValueError, RuntimeError) as error:  # a device, strategy or precision that is not there
        raise UserError(f"trainer: Lightning refuses these settings here: {str(error).strip().splitlines()[0]}") from error


def sync_batch_norms(module: Module, recipe: Recipe, trainer: L.Trainer) -> None:
    """Batch norms over all processes; by default where several CUDA devices train, for torch's synchronised norm refuses the CPU."""
    wanted = recipe.trainer.sync_batchnorm
    if wanted if wanted is not None else trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
        module.sync_batch_norms()


def check_validation(recipe: Recipe) -> None:
    """The last epoch must be a validated one: it is what a run ends with. Patience must outlast the epochs that are not.

    Raises:
        UserError: if they do not.
    """
    every, epochs = recipe.trainer.check_val_every_n_epoch, recipe.epochs
    if isinstance(recipe, Validated) and epochs and epochs % every:
        fits = max(n for n in range(1, min(every, epochs) + 1) if epochs % n == 0)
        raise UserError(
            f"trainer.check_val_every_n_epoch: got {every}, which does not divide {counted(epochs, 'epoch')}, so the last would not be "
            f"validated; try {fits}, or epochs={-(-epochs // every) * every}"
        )
    patience = getattr(recipe, "patience", None)
    if patience is not None and patience < every:
        raise UserError(f"patience: got {patience}, but only one epoch in {every} is validated; give {every} or more")


def check_shares(val: PictureTable | None, world_size: int) -> None:
    """Every process validates something: one without a picture would end, and the others wait for it.

    Raises:
        UserError: if there are too few.
    """
    if val is not None and len(val) < world_size:
        raise UserError(
            f"data.val: {counted(len(val), 'picture')} for {counted(world_size, 'device')}; give one for each, or take fewer devices"
        )


def check_split(recipe: Recipe, world_size: int) -> None:
    """A global batch must divide evenly.

    Raises:
        UserError: if it does not.
    """
    accumulate = recipe.trainer.accumulate_grad_batches
    parts = world_size * accumulate
    if recipe.data.batch_size % parts:
        near_size = max(parts, recipe.data.batch_size // parts * parts)
        raise UserError(
            f"data.batch_size: got {recipe.data.batch_size}, which {counted(world_size, 'device')} x "
            f"{counted(accumulate, 'accumulated batch')} do not divide; "
            f"try data.batch_size={near_size}"
        )
