"""Pictures that show what a module sees and makes, for the same eight training pictures at every report."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from visiontune.module import is_sharded


class Pictures(L.Callback):
    """Saves `pictures/NAME.png` from a module's `pictures(images)`, where it has that method: at the start, then about ten times.

    Args:
        images: `(8, 3, H, W)` uint8, clean.
        folder: where they go.
        epochs: of the run.
        draw: saves named rows of pictures as one PNG.
    """

    def __init__(self, images: Tensor, folder: Path, *, epochs: int, draw: Callable[[dict[str, Tensor], Path], None]) -> None:
        self.images, self.folder, self.draw = images, folder, draw
        self.every = max(1, epochs // 10)
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        here = trainer.is_global_zero
        # where each process holds a part of the weights, all of them compute for the one that draws
        if (done % self.every and done != self.epochs) or not hasattr(pl_module, "pictures") or not (here or is_sharded(trainer)):
            return
        training = pl_module.training
        pl_module.eval()
        with trainer.precision_plugin.forward_context():
            generator = torch.Generator(pl_module.device).manual_seed(0)  # the same masks at every report
            rows = pl_module.pictures(self.images.to(pl_module.device), generator)
        pl_module.train(training)
        if not here:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.draw(rows, self.folder / f"epoch_{done:04d}.png")
