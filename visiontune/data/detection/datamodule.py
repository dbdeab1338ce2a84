"""Pictures with boxes for Lightning's Trainer: loaders by rank, and the account of broken pictures."""

from typing import Any

import numpy as np

from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.decode import Reading
from visiontune.data.detection.augment import BoxAugment
from visiontune.data.detection.loader import BoxPictures, make_box_loader
from visiontune.data.detection.order import Size, SizedOrder, multi_scale, sizes_between
from visiontune.data.detection.table import BoxTable
from visiontune.data.detection.views import BoxView
from visiontune.data.order import EvalOrder


class BoxData(PictureData):
    """Loaders of a run of detection. What the module sees is the batch of `loader.collate_boxes` without what was `broken`.

    Args:
        train: training pictures.
        view: what happens to them.
        image_size: `(height, width)` in pixels.
        val: validation pictures, or None.
        epochs: of the run: its last ones are without mosaic and mixup, see `BoxView.plain_end`.
        batch_size: pictures per optimiser step over all processes and accumulation.
        workers: loader processes.
        seed: of the run.
        broken: account of broken pictures in training.
        reading: how files become pixels.
    """

    def __init__(
        self,
        train: BoxTable,
        view: BoxView,
        image_size: Size,
        *,
        val: BoxTable | None = None,
        epochs: int,
        batch_size: int,
        workers: int,
        seed: int,
        broken: Broken,
        reading: Reading = Reading(),  # noqa: B008 (frozen)
    ) -> None:
        augment = BoxAugment(view)
        super().__init__(
            train.pictures,
            augment,
            val=None if val is None else val.pictures,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            broken=broken,
            reading=reading,
        )
        self.train_boxes, self.val_boxes, self.augment, self.image_size, self.epochs = train, val, augment, image_size, epochs

    @property
    def largest_size(self) -> Size:
        """Of a training batch."""
        return max(sizes_between(self.image_size, self.augment.view.sizes))

    @property
    def most_boxes(self) -> int:
        """That a training sample may have: those of four pictures in a mosaic, of twice as many where another is laid over it."""
        view = self.augment.view
        times = (4 if view.mosaic else 1) * (2 if view.mixup else 1)
        return times * int(np.diff(self.train_boxes.offsets).max(initial=1))

    def _fingerprint(self) -> str:
        return "; ".join(table.fingerprint() for table in (self.train_boxes, self.val_boxes) if table is not None)

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        order = SizedOrder(
            n=len(self.train),
            batch_size=self.batch_size,
            seed=self.seed,
            step=lambda: self.trainer.global_step,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            sizes=multi_scale(self.image_size, self.augment.view.sizes, seed=self.seed),
        )
        self.close()
        self._training = make_box_loader(self.training_set(), order, workers=self.workers)
        return self._training

    def training_set(self) -> BoxPictures:
        """Training pictures as they are augmented."""
        return BoxPictures(
            self.train_boxes,
            self.image_size,
            augment=self.augment,
            seed=self.seed,
            replace=True,
            reading=self.reading,
            mixed_epochs=self.augment.view.mixed_epochs(self.epochs),
        )

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        if self.val_boxes is None:
            return []
        trainer = self.trainer
        order = EvalOrder(n=len(self.val_boxes), batch_size=self.val_batch, rank=trainer.global_rank, world_size=trainer.world_size)
        return make_box_loader(BoxPictures(self.val_boxes, self.image_size, reading=self.reading), order, workers=self.workers)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the account of broken pictures out of the batch."""
        if not isinstance(batch, dict) or "broken" not in batch:
            return batch
        if batch["broken"]:
            if self.trainer is None or self.trainer.training:
                self.broken.add(batch["broken"], got_any=len(batch["images"]) > 0)
            else:
                self.broken.note(batch["broken"])
        return {name: value for name, value in batch.items() if name != "broken"}
