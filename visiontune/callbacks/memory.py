"""Whether the largest batch fits, found out before the first step rather than in the night."""

from collections.abc import Callable
from typing import Any

import lightning as L

from visiontune.module import is_sharded


class LargestBatch(L.Callback):
    """Tries the step that takes the most memory before the first one: batches of several sizes meet it at some time.

    Of one process on a GPU: a CPU's memory is not so short, and of several processes none can begin again by itself.

    Args:
        size: the largest `(height, width)` of a batch.
        pictures: of a batch on this device.
        boxes: the most of a picture.
        say: tells people.
        kinds: of devices on which it is worth the time.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pictures: int,
        boxes: int,
        *,
        say: Callable[[str], None],
        kinds: tuple[str, ...] = ("cuda",),
    ) -> None:
        self.size, self.pictures, self.boxes, self.say, self.kinds = size, pictures, boxes, say, kinds

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1 or is_sharded(trainer) or pl_module.device.type not in self.kinds:
            return
        with trainer.precision_plugin.forward_context():
            pl_module.rehearse(self.pictures, self.size, self.boxes)
        self.say(f"memory: a batch of {self.pictures} at {self.size[0]}x{self.size[1]} pixels, the largest there will be, fits")
