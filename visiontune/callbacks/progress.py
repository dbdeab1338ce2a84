"""How far a run is: a bar on a terminal, timed lines elsewhere; and what it has cost."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar


class Progress(L.Callback):
    """Timed lines: at most one in `seconds`, and one at each epoch's end if that much time has passed.

    Args:
        say: where to tell.
        total_steps: optimiser steps of the run.
        steps_per_epoch: likewise of an epoch.
        batch_size: pictures per optimiser step over all devices.
        seconds: least time between lines.
    """

    def __init__(
        self, say: Callable[[str], None], *, total_steps: int, steps_per_epoch: int, batch_size: int, seconds: float = 10.0
    ) -> None:
        self.say, self.total_steps, self.steps_per_epoch = say, total_steps, steps_per_epoch
        self.batch_size, self.seconds = batch_size, seconds
        self._from_step, self._began, self._told = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._from_step, self._began = trainer.global_step, time.monotonic()
        self._told = self._began

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._told >= self.seconds:
            self._tell(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._from_step:
            self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> None:
        now, step = time.monotonic(), trainer.global_step
        self._told = now
        speed = (step - self._from_step) / max(1e-9, now - self._began)  # steps a second
        left = (self.total_steps - step) / speed if speed else 0
        epochs = self.total_steps // self.steps_per_epoch
        epoch = min(epochs, step // self.steps_per_epoch + 1)
        # reading a metric waits for the device: here it is once in ten seconds
        shown = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("train/loss", "val/top1", "val/macro_ap")}
        metrics = "".join(f"  {k} {v:.4f}" for k, v in shown.items())
        self.say(
            f"epoch {epoch}/{epochs}  step {step}/{self.total_steps}{metrics}  {speed * self.batch_size:.0f} pictures/s  "
            f"{clock(now - self._began)} gone, {clock(left)} left"
        )


def progress_callbacks(say: Callable[[str], None], **sizes: int) -> list[L.Callback]:
    if sys.stdout.isatty():
        return [RichProgressBar(leave=False)]
    return [Progress(say, **sizes)]


def clock(seconds: float) -> str:
    """`75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Cost(L.Callback):
    """Counts what the training took, over all its interruptions.

    Attributes:
        seconds: spent between the start and the end of training, validation and probes included.
        steps: optimiser steps.
    """

    def __init__(self) -> None:
        self.before, self.steps = 0.0, 0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (time.monotonic() - self._began if self._began is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before, self._began = self.seconds, None
        self.steps = trainer.global_step


def peak_memory_bytes() -> int:
    """The most memory held: of the CUDA device if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
