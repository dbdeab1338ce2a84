"""What a training by `python -m visiontune.fit` costs above a bare PyTorch loop on the same model and batches, and what Lightning does.

    python benchmarks/trainer_overhead.py [--backbone test_resnet] [--image-size 64] [--ms 40] [--steps 100] [--rounds 7] [--quick]

Four contenders train the same classifier from the same weights (seed 0) on the same batches, which lie in memory: reading and decoding
takes no part. The mathematics are the same: uint8 pictures normalised, cross entropy, fused AdamW, a schedule by the step.
- bare: a loop of a few lines.
- lightning barebones: `Trainer(barebones=True)`.
- lightning: its default logging and checkpoints, two `self.log` a step.
- visiontune: trainer, module and callbacks as `visiontune.fit` makes them of a recipe, with its default logging and checkpoints; only
  `train_dataloader` is replaced.

They take turns in one process, and each round begins with another one. There are three epochs of --steps each: the time counts from the
sixth step to the beginning of the last epoch, with the checkpoints of two epochs' ends in it, but no validation, of which the bare loop has
none. `ms` is that time by its steps, `step_ms` the median of single steps, which leaves the epochs' ends out. The batch is chosen so that a
bare step takes about --ms. That a training on the CPU keeps freed memory (benchmarks/cpu_memory.py) is switched on for all: it is no
trainer's doing. The mean loss of the first steps is asserted to be the same in the bare loop and in visiontune.

A row a contender: contender, ms, ms_low, ms_high, step_ms, overhead_ms, overhead_low, overhead_high, overhead_percent (over the bare loop
of the same round, medians of rounds), backbone, image_size, batch, steps, rounds, threads, lightning's version and the machine.
"""

import argparse
import copy
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from common import machine, parse, write_rows
from PIL import Image
from torch import Tensor, nn

import visiontune.fit  # which asks torch for large pages, for all contenders alike
from visiontune import build
from visiontune.callbacks.metrics import read_metrics
from visiontune.data.datamodule import PictureData
from visiontune.finish import silence
from visiontune.optim import cosine_with_warmup
from visiontune.recipe import parse_recipe
from visiontune.run import Run

CLASSES, EPOCHS, WARM = 10, 3, 5
LR, DECAY = 1e-3, 0.05


class Clock:
    """The same batches in every epoch, and when each was asked for: the time between two is that of a step with all that belongs to it."""

    def __init__(self, steps: int, batch: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (steps, batch, size, size, 3)  # in memory as decoded pictures lie
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 1, 4, 2, 3)
        self.labels = torch.randint(CLASSES, (steps, batch), generator=generator)
        self.asked: list[float] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for images, labels in zip(self.images, self.labels, strict=True):
            self.asked.append(time.perf_counter())
            yield [images, labels]

    def ms(self) -> tuple[float, float]:
        """A step's share of the whole time, epochs' ends in it, and the median of steps alone."""
        asked = self.asked[WARM : (EPOCHS - 1) * len(self) + 1]
        ends = {e * len(self) - 1 - WARM for e in range(1, EPOCHS)}
        each = [b - a for i, (a, b) in enumerate(itertools.pairwise(asked)) if i not in ends]
        return 1000 * (asked[-1] - asked[0]) / (len(asked) - 1), 1000 * statistics.median(each)


class Plain(L.LightningModule):
    """As one writes it who has read Lightning's first page."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, total: int, *, logs: bool) -> None:
        super().__init__()
        self.network, self.total, self.logs = network, total, logs
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images.float().sub_(self.mean).div_(self.std))
        loss = F.cross_entropy(logits, labels)
        if self.logs:
            self.log("loss", loss)
            self.log("mean logit", logits.detach().mean())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = optimizer_of(self.network, self.total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def optimizer_of(network: nn.Module, total: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW as the package makes it: no decay of biases and norms, one kernel for all parameters."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warmup(total, 0))


# ---------------------------------------------------------------- contenders: each trains, and gives its losses if it tells them


def bare(network: nn.Module, mean: Tensor, std: Tensor, clock: Clock, epochs: int = EPOCHS) -> list[Tensor]:
    losses = []
    optimizer, scheduler = optimizer_of(network.train(), epochs * len(clock))
    for _ in range(epochs):
        for images, labels in clock:
            loss = F.cross_entropy(network(images.float().sub_(mean).div_(std)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            losses.append(loss.detach())
    return losses


def plain(network: nn.Module, mean: Tensor, std: Tensor, clock: Clock, folder: Path, *, barebones: bool) -> None:
    module = Plain(network.train(), mean, std, EPOCHS * len(clock), logs=not barebones)
    own: dict[str, Any] = {"barebones": True} if barebones else {"default_root_dir": folder, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, **own).fit(module, clock)


def ours(prepared: build.Prepared, clock: Clock, folder: Path) -> float:
    """The first mean loss that it reported."""
    run = Run.create(folder)
    with mock.patch.object(PictureData, "train_dataloader", return_value=clock):
        assert visiontune.fit.fit(run, prepared) == 0
    return float(read_metrics(run.metrics_file)[0]["train/loss"])


# ---------------------------------------------------------------- what they train on


def recipe_of(args: argparse.Namespace, batch: int, folder: Path) -> Any:
    """Everything that would make the mathematics another is said; the rest is a run's own."""
    train, val = folder / "train", folder / "val"
    if not train.is_dir():  # only how many there are counts; none of them is read but to be shown
        rng = np.random.default_rng(0)
        for label in range(CLASSES):
            for part in (train, val):
                (part / str(label)).mkdir(parents=True)
            first = val / str(label) / "0.png"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(first)
            for i in range(label, args.steps * batch, CLASSES):
                os.link(first, train / str(label) / f"{i}.png")
    return parse_recipe(
        {
            "task": "classify",
            "backbone": {"name": args.backbone, "weights": "random"},
            "head": {"label_smoothing": 0, "mixup": 0},
            "data": {"train": str(train), "val": str(val), "image_size": args.image_size, "batch_size": batch, "workers": 0},
            "optim": {"name": "adamw", "lr": LR, "weight_decay": DECAY, "warmup_epochs": 0},
            "epochs": EPOCHS,
            "seed": 0,
            "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "check_val_every_n_epoch": EPOCHS},
        }
    ).single


def find_batch(args: argparse.Namespace, folder: Path) -> int:
    """Pictures with which a bare step takes about `--ms`."""
    batch = 8
    for _ in range(2):  # the first guess is far off, and time is no straight line of the batch
        module = build.prepare(recipe_of(args, batch, folder / f"batch_{batch}")).module
        clock = Clock(8, batch, args.image_size)
        bare(module.backbone, 255 * module.mean, 255 * module.std, clock, epochs=EPOCHS)
        batch = max(2, round(batch * args.ms / clock.ms()[1]))
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="test_resnet", help="small, for a step of two pictures to be short on slow cores, too")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--ms", type=float, default=40, help="of a bare step, about")
    parser.add_argument("--steps", type=int, default=100, help="of each of three epochs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round of 3 x 12 steps on few pictures, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.steps, args.rounds, args.ms = 12, 1, 10
    silence()
    build.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[dict[str, Any]] = []
        for row in measure(Path(scratch), args):
            rows.append(row | machine())
            write_rows(args.csv, rows)


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    batch = find_batch(args, folder)
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(args.rounds):
        prepared = build.prepare(recipe_of(args, batch, folder / "pictures"))
        network, mean, std = prepared.module.backbone, 255 * prepared.module.mean, 255 * prepared.module.std
        copies = iter([copy.deepcopy(network) for _ in range(3)])  # before one of them is trained
        place = folder / f"round_{turn}"
        told: dict[str, float] = {}

        def run_bare(clock: Clock) -> None:
            losses = bare(next(copies), mean, std, clock)  # noqa: B023
            told["bare"] = float(torch.stack(losses[: prepared.recipe.trainer.log_every_n_steps]).mean())  # noqa: B023

        def run_ours(clock: Clock) -> None:
            told["visiontune"] = ours(prepared, clock, place / "ours")  # noqa: B023

        contenders: dict[str, Callable[[Clock], None]] = {
            "bare": run_bare,
            "lightning barebones": lambda clock: plain(next(copies), mean, std, clock, place, barebones=True),  # noqa: B023
            "lightning": lambda clock: plain(next(copies), mean, std, clock, place, barebones=False),  # noqa: B023
            "visiontune": run_ours,
        }
        names = list(contenders)
        for name in [*names[turn % 4 :], *names[: turn % 4]]:
            clock = Clock(args.steps, batch, args.image_size)
            contenders[name](clock)
            found.setdefault(name, []).append(clock.ms())
            print(f"round {turn + 1}: {name}: {clock.ms()[0]:.2f} ms a step", flush=True)
        assert abs(told["bare"] - told["visiontune"]) < 1e-3 * told["bare"], f"not the same mathematics: {told}"
    about = {"backbone": args.backbone, "image_size": args.image_size, "batch": batch, "steps": EPOCHS * args.steps}
    about |= {"rounds": args.rounds, "threads": torch.get_num_threads()}
    return [row_of(name, found[name], found["bare"]) | about | {"lightning": L.__version__} for name in contenders]


def row_of(name: str, taken: list[tuple[float, float]], bare_took: list[tuple[float, float]]) -> dict[str, Any]:
    """Of one contender, beside the bare loop in the same rounds."""
    whole = [ms for ms, _ in taken]
    above = [mine - theirs for (mine, _), (theirs, _) in zip(taken, bare_took, strict=True)]
    percent = statistics.median(100 * a / ms for a, (ms, _) in zip(above, bare_took, strict=True))
    row: dict[str, Any] = {"contender": name, "ms": round(statistics.median(whole), 2)}
    row |= {"ms_low": round(min(whole), 2), "ms_high": round(max(whole), 2), "step_ms": round(statistics.median(s for _, s in taken), 2)}
    row |= {"overhead_ms": round(statistics.median(above), 2), "overhead_low": round(min(above), 2), "overhead_high": round(max(above), 2)}
    return row | {"overhead_percent": round(percent, 1)}


if __name__ == "__main__":
    main()
