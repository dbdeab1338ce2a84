"""Pictures of a run for Lightning's Trainer: loaders by rank, and the account of broken pictures."""

import csv as csv_module
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from visiontune.data.folder import PictureTable
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder, TrainOrder
from visiontune.errors import UserError, some


class Broken:
    """Pictures that could not be read: each is listed once in `broken.csv` with its cause; beyond a share the run stops.

    Args:
        csv: the file; None keeps the account in memory only.
        limit: largest share of broken pictures.
        total: pictures in the folder.
    """

    def __init__(self, csv: Path | None, *, limit: float, total: int) -> None:
        self.csv, self.limit, self.total = csv, limit, total
        self.causes: dict[str, str] = {}
        if csv is not None and csv.exists():
            with csv.open(newline="", errors="surrogateescape") as file:
                self.causes = {row["path"]: row["cause"] for row in csv_module.DictReader(file)}

    def note(self, broken: list[tuple[str, str]]) -> None:
        """List pictures, each once."""
        for path, cause in broken:
            if path in self.causes:
                continue
            self.causes[path] = cause
            if self.csv is not None:
                new = not self.csv.exists()
                with self.csv.open("a", newline="", errors="surrogateescape") as file:
                    writer = csv_module.writer(file)
                    writer.writerows([["path", "cause"]] * new + [[path, cause]])

    def add(self, broken: list[tuple[str, str]], *, got_any: bool, world_size: int = 1) -> None:
        """List pictures of a batch, and stop the run beyond the limit.

        Args:
            broken: path and cause of each.
            got_any: whether the batch has any picture left.
            world_size: processes, of which this one meets its share of the folder.
        """
        self.note(broken)
        # Five are forgiven in any folder: one bad file among seventy is no reason to stop.
        if (len(self.causes) * world_size > max(5, self.limit * self.total)) or not got_any:
            listed = some((f"{p} ({c})" for p, c in self.causes.items()), 5)
            where = f"; all are in {self.csv}" if self.csv else ""
            raise UserError(
                f"data: {len(self.causes)} of {self.total} pictures cannot be read, more than data.max_broken allows ({self.limit:g}): "
                f"{listed}{where}. Repair or remove them, or raise data.max_broken"
            )


class PictureData(L.LightningDataModule):
    """Loaders of a run.

    Args:
        train: training pictures.
        train_transform: their views.
        val: labelled validation pictures, or None.
        val_transform: their one clean view.
        batch_size: pictures per optimiser step over all processes and accumulation.
        workers: loader processes.
        seed: of the run.
        broken: account of broken pictures in training.
        labelled: give `[images, labels]` batches instead of views.
    """

    def __init__(
        self,
        train: PictureTable,
        train_transform: Callable,
        *,
        val: PictureTable | None = None,
        val_transform: Callable | None = None,
        batch_size: int,
        workers: int,
        seed: int,
        broken: Broken,
        labelled: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.train_transform = train, train_transform
        self.val, self.val_transform = val, val_transform
        self.batch_size, self.workers, self.seed, self.broken, self.labelled = batch_size, workers, seed, broken, labelled

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        order = TrainOrder(
            n=len(self.train),
            batch_size=self.batch_size,
            seed=self.seed,
            step=lambda: self.trainer.global_step,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        dataset = Pictures(self.train, self.train_transform, seed=self.seed, replace=True)
        return make_loader(dataset, order, workers=self.workers)

    def val_dataloader(self) -> DataLoader | list:
        assert self.trainer is not None
        if self.val is None:
            return []
        order = EvalOrder(n=len(self.val), batch_size=self._eval_batch(), rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return make_loader(Pictures(self.val, self.val_transform or self.train_transform), order, workers=self.workers)

    def _eval_batch(self) -> int:
        assert self.trainer is not None
        return max(1, self.batch_size // (self.trainer.world_size * self.trainer.accumulate_grad_batches))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the account of broken pictures out of the batch: what the module sees is tensors."""
        if not isinstance(batch, dict):
            return batch
        training = self.trainer is None or self.trainer.training
        if batch["broken"]:
            self.broken.add(
                batch["broken"], got_any=bool(batch["images"]) or not training, world_size=self.trainer.world_size if self.trainer else 1
            )
        if self.labelled:
            images = batch["images"] or [torch.empty(0, 3, 1, 1, dtype=torch.uint8)]
            return [images[0], batch["labels"]]
        return batch["images"]
