"""Pictures of a run for Lightning's Trainer: loaders by rank, and the account of broken pictures."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from visiontune.data.balance import ClassSampling, Sampling
from visiontune.data.broken import Broken
from visiontune.data.decode import Reading
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder, TrainOrder
from visiontune.data.shard_order import ShardShuffle
from visiontune.data.table import PictureTable
from visiontune.errors import UserError


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
        labelled: give `[images, labels]` batches instead of views; labels `(B,)` int64, or `(B, K)` float32 where there are several.
        reading: how files become pixels.
        repeats: steps in a row that take other crops of the same pictures, which are then read and decoded once.
        sampling: `natural`: each picture once an epoch; `balanced`: each class equally often; `sqrt`: by the root of its pictures.
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
        reading: Reading = Reading(),  # noqa: B008 (frozen)
        repeats: int = 1,
        sampling: Sampling = "natural",
    ) -> None:
        super().__init__()
        self.train, self.train_transform = train, train_transform
        self.val, self.val_transform = val, val_transform
        self.batch_size, self.workers, self.seed, self.broken, self.labelled = batch_size, workers, seed, broken, labelled
        self.reading, self.repeats, self.sampling = reading, repeats, sampling
        self._training: Any = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size * self.repeats

    def setup(self, stage: str) -> None:
        """Every process must have listed the same pictures: a folder that grows while they start would leave them waiting for each other.

        Raises:
            UserError: if they differ.
        """
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return
        mine = self._fingerprint()
        theirs = trainer.strategy.broadcast(mine)
        alike = trainer.strategy.reduce_boolean_decision(mine == theirs, all=True)
        if not alike:
            raise UserError(
                f"data: the training processes found different pictures in {self.train.root} or for validation ({mine} here, {theirs} "
                "in the first one): it changed while they started; start again when nothing writes to it"
            )

    def _fingerprint(self) -> str:
        return "; ".join(table.fingerprint() for table in (self.train, self.val) if table is not None)

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        together = self.train.members is not None and self.train.members.mixed
        sampled = len(self.train) // self.batch_size * self.batch_size
        order = TrainOrder(
            n=len(self.train),
            batch_size=self.batch_size,
            seed=self.seed,
            step=lambda: self.trainer.global_step,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            repeats=self.repeats,
            shuffle=ShardShuffle(self.train, self.seed) if together else None,
            sampling=None if self.sampling == "natural" else ClassSampling(self.train, self.sampling, seed=self.seed, per_epoch=sampled),
        )
        dataset = Pictures(self.train, self.train_transform, seed=self.seed, replace=True, reading=self.reading, repeats=self.repeats)
        self.close()
        self._training = make_loader(dataset, order, workers=self.workers)
        return self._training

    def close(self) -> None:
        """End the training's loader processes."""
        if self._training is not None:
            self._training.close()
            self._training = None

    def teardown(self, stage: str) -> None:
        self.close()

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        if self.val is None:
            return []
        order = EvalOrder(n=len(self.val), batch_size=self.val_batch, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        dataset = Pictures(self.val, self.val_transform or self.train_transform, reading=self.reading)
        return make_loader(dataset, order, workers=self.workers)

    @property
    def val_batch(self) -> int:
        """Validation pictures at a time on each device: as many as training takes."""
        assert self.trainer is not None
        return max(1, self.batch_size // (self.trainer.world_size * self.trainer.accumulate_grad_batches))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the account of broken pictures out of the batch: what the module sees is tensors."""
        if not isinstance(batch, dict):
            return batch
        training = self.trainer is None or self.trainer.training
        if batch["broken"]:
            if training:
                self.broken.add(batch["broken"], got_any=bool(batch["images"]))
            else:
                self.broken.note(batch["broken"])
        if self.labelled:
            images = batch["images"] or [torch.empty(0, self.reading.channels, 1, 1, dtype=torch.uint8)]
            return [images[0], batch["labels"]]
        return batch["images"]
