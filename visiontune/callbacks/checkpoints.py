"""Checkpoints that lose nothing, and a resumed run that meets the unbroken one's numbers.

Three parts make that exact: the position is the number of optimiser steps (the data's order and Lightning's counters are computed
from it), every random generator is seeded anew from (seed, step, rank) before each batch, and everything else is in the checkpoint.
"""

import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from visiontune.errors import UserError, counted
from visiontune.metrics import higher_is_better


class Reseed(L.Callback):
    """Seeds torch, numpy and random from (seed, batch, rank) before each batch: masks, drop path and mixup then resume by themselves."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        part = batch_idx % trainer.accumulate_grad_batches
        mixed = np.random.SeedSequence((self.seed, trainer.global_step, part, trainer.global_rank)).generate_state(2)
        seed_torch(int(mixed[0]), trainer.strategy.root_device)
        np.random.seed(int(mixed[1]))
        random.seed(int(mixed[1]))


def seed_torch(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, of the CPU and of this device alone: that one notes a traceback for every kind of device that is not in use,
    three in a build for CUDA, which on a slow core takes milliseconds of every step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


class Checkpoints(Checkpoint):
    """`last.ckpt` at every epoch's end, at SIGTERM and every few minutes; `best.ckpt` where the monitored metric was best so far.

    A file is written beside and renamed, so a kill leaves the old one whole. The best score travels in both: a resumed run never
    overwrites a better one, also where the kill came between the two files.

    Args:
        folder: where they go.
        steps_per_epoch: optimiser steps.
        minutes: between checkpoints within an epoch.
        monitor: metric that the best is chosen by, the lowest of a loss and of `ece`, else the highest; None keeps `last.ckpt` alone.
        patience: epochs without a better one after which the run ends, at the next validation; None: never.
        pictures: fingerprint of the training folder; a resumed run must find the same.
        say: where to tell.

    Attributes:
        best: the best score so far; `best_step` and `best_metrics`: optimiser steps and validation metrics then.
        latest: training and validation metrics at the end of the last epoch.
        stopped: why the run ended before its last epoch, or None.
        first_step: at which this process began.
    """

    KEPT = ("best", "best_step", "best_metrics", "latest", "stopped", "pictures")

    def __init__(
        self,
        folder: Path,
        *,
        steps_per_epoch: int,
        minutes: float,
        monitor: str | None,
        patience: int | None = None,
        pictures: str,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.steps_per_epoch, self.seconds, self.monitor, self.say = folder, steps_per_epoch, minutes * 60, monitor, say
        self.patience, self.pictures = patience, pictures
        self.best: float | None = None
        self.best_step = 0
        self.best_metrics: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.stopped: str | None = None
        self.first_step = 0
        self.ask_every = 10  # steps
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest, self.stopped = state_dict["latest"], state_dict["stopped"]
        self._take_best(state_dict)
        if self.monitor and (self.folder / "best.ckpt").is_file():  # it may be of an epoch that `last.ckpt` does not know
            saved = torch.load(self.folder / "best.ckpt", map_location="cpu", weights_only=True, mmap=True)
            self._take_best(saved["callbacks"][self.state_key])
        if state_dict["pictures"] != self.pictures:
            raise UserError(
                f"--resume: the training pictures have changed since the run began ({state_dict['pictures']}; now {self.pictures}), so its "
                "order cannot go on. Bring the folder back to what it was, or start a new run from this one's backbone"
            )

    def _is_better(self, score: float | None) -> bool:
        if score is None or math.isnan(score):
            return False
        return self.best is None or (score > self.best if higher_is_better(str(self.monitor)) else score < self.best)

    def _take_best(self, state: dict[str, Any]) -> None:
        if self._is_better(state["best"]):
            self.best, self.best_step, self.best_metrics = state["best"], state["best_step"], state["best_metrics"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_step = trainer.global_step
        trainer.should_stop = self.stopped is not None  # it had ended, and was killed before its weights were exported

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning decides by a counter of its own when metrics are due; a skipped validation after a resume can put it off by one.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        inside = trainer.global_step % self.steps_per_epoch != 0  # an epoch's end has its own checkpoint, after validation
        if not whole or not inside:
            return
        due = time.monotonic() - self._saved > self.seconds
        if trainer.world_size > 1:  # clocks differ, and asking the others costs a wait: the first process decides now and then
            due = trainer.global_step % self.ask_every == 0 and trainer.strategy.broadcast(due)
        if due:
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.latest |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))}
        score = self.latest.get(self.monitor) if self.monitor else None
        if score is not None and math.isnan(score):
            done = trainer.global_step // self.steps_per_epoch
            self.say(f"warning: {self.monitor} after epoch {done} is not a number (scores are not finite, or there is nothing to count)")
        if score is not None and self._is_better(score):
            self.best, self.best_step = score, trainer.global_step
            self.best_metrics = {k: v for k, v in self.latest.items() if k.startswith("val/")}
            self._save(trainer, "best.ckpt")
        self._stop_if_no_better(trainer)
        self._save(trainer, "last.ckpt")

    def _stop_if_no_better(self, trainer: L.Trainer) -> None:
        """From the steps alone: a resumed run ends where the unbroken one does. Right after a validation: what it ends with is judged."""
        done, best = trainer.global_step // self.steps_per_epoch, self.best_step // self.steps_per_epoch
        if self.patience is None or done - best < self.patience or done == trainer.max_epochs:
            return
        if done % (trainer.check_val_every_n_epoch or 1):  # this epoch was not validated
            return
        score = "none" if self.best is None else f"{self.best:.4g}"
        self.stopped = (
            f"stopped after epoch {done} of {trainer.max_epochs}: {self.monitor} has not got better than {score}, of epoch {best}, for "
            f"{counted(done - best, 'epoch')} (patience {self.patience})"
        )
        self.say(self.stopped)
        trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.global_step > 0:
            self._save(trainer, "last.ckpt")
            self.say(f"stopped by SIGTERM at step {trainer.global_step}, checkpoint saved")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{name}.tmp"
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            os.replace(beside, self.folder / name)
        trainer.strategy.barrier("checkpoint")
        self._saved = time.monotonic()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's own counters say what it had fetched and half done; write what the step count says instead."""
        step = checkpoint["global_step"]
        place_counters(checkpoint["loops"]["fit_loop"], step, self.steps_per_epoch, trainer.accumulate_grad_batches)


def place_counters(fit_loop: dict[str, Any], step: int, steps_per_epoch: int, accumulate: int) -> None:
    """Set the counters of Lightning's fit loop to "`step` optimiser steps done, nothing else begun", for any number of devices."""
    epoch, inside = divmod(step, steps_per_epoch)
    batches = inside * accumulate
    began = epoch + (1 if inside else 0)
    fit_loop["epoch_progress"]["total"].update(ready=began, started=began, processed=epoch, completed=epoch)
    fit_loop["epoch_progress"]["current"].update(ready=began, started=began, processed=epoch, completed=epoch)
    every = step * accumulate
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["total"].update(ready=every, started=every, processed=every, completed=every)
    progress["current"].update(ready=batches, started=batches, processed=batches, completed=batches)
    progress["is_last_batch"] = False
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counter in optimizer.values():
        counter["total"].update(dict.fromkeys(counter["total"], step))
        counter["current"].update(dict.fromkeys(counter["current"], inside))
