"""Tables of boxes to batches, in this process or in workers.

B pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from visiontune.boxes import Boxes, BoxList, Letterbox, LetterboxList
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection.augment import BoxAugment
from visiontune.data.detection.order import Size
from visiontune.data.detection.place import Source, Unreadable, fit
from visiontune.data.detection.table import BoxTable
from visiontune.data.loader import TRIES, make_loader, stacked
from visiontune.data.read import read_bytes


@dataclass(frozen=True, eq=False)
class Item:
    """A sample on its way into a batch.

    Attributes:
        pixels: `(H, W, C)` uint8; None for a picture that cannot be read.
        boxes: in its pixels, without those of a crowd.
        crowd: those of a crowd, in evaluation.
        letterbox: how it was made to fit; None in training, where there is no way back.
        index: the number of the picture.
        broken: paths and causes of what was met on the way.
    """

    pixels: np.ndarray | None
    boxes: Boxes
    letterbox: Letterbox | None
    index: int
    broken: list[tuple[str, str]]
    crowd: Boxes = field(default_factory=Boxes.none)


class BoxPictures(Dataset):
    """Samples by (index, epoch) or (index, epoch, size). What comes out depends on the seed and the key alone, not on the worker.

    Args:
        table: what there is.
        size: `(height, width)` of samples whose key does not say it.
        augment: for training; None fits the whole picture in, for evaluation.
        seed: of the run.
        replace: in training, take another picture where one is broken, the same one each time; else leave it out.
        reading: how files become pixels.
        mixed_epochs: how many epochs, the first ones, have mosaic and mixup.
    """

    repeats = 1

    def __init__(
        self,
        table: BoxTable,
        size: Size,
        *,
        augment: BoxAugment | None = None,
        seed: int = 0,
        replace: bool = False,
        reading: Reading = Reading(),  # noqa: B008 (frozen)
        mixed_epochs: int = 0,
    ) -> None:
        self.table, self.size, self.augment, self.seed = table, size, augment, seed
        self.replace, self.reading, self.mixed_epochs = replace, reading, mixed_epochs

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[Any, ...]) -> Item:
        index, epoch, size = key if len(key) == 3 else (*key, self.size)
        bad: dict[int, str] = {}
        # A sample is made anew without what turned out to be broken; of a mosaic each of the pictures may.
        while self._stand_in(index, bad) is not None and len(bad) < 2 * TRIES:
            try:
                item = self._sample(index, epoch, size, bad)
            except Unreadable as error:
                if error.index in bad:  # nothing is left to stand in for one of a mosaic: the next try would be the same
                    break
                bad[error.index] = str(error)
                continue
            return replace(item, broken=self._told(bad))
        return Item(None, Boxes.none(), None, index, self._told(bad))

    def _sample(self, index: int, epoch: int, size: Size, bad: dict[int, str]) -> Item:
        source = self._open(index, bad)
        if self.augment is None:
            pixels, box = fit(source, size)
            return Item(pixels, box.inside(source.boxes), box, source.index, [], box.inside(self.table.crowd_of(source.index)))
        rng = np.random.default_rng((self.seed, epoch, index, 0))
        another = partial(self._another, bad) if epoch < self.mixed_epochs else None
        pixels, boxes = self.augment(source, size, rng, another=another)
        return Item(pixels, boxes, None, source.index, [])

    def _another(self, bad: dict[int, str], rng: np.random.Generator) -> Source:
        return self._open(int(rng.integers(len(self.table))), bad)

    def _open(self, index: int, bad: dict[int, str]) -> Source:
        """A picture, or what stands in for it, up to its header."""
        found = self._stand_in(index, bad)
        if found is None:
            raise Unreadable(index, bad[index])
        try:
            picture = Picture(read_bytes(self.table.pictures, found), self.reading)
        except BrokenPicture as error:
            raise Unreadable(found, str(error)) from error
        height, width = self.table.sizes[found].tolist()
        if height and (height, width) != (picture.height, picture.width):
            # its boxes would lie anywhere: some tool turned or resized the picture, or the annotation is another's
            raise Unreadable(
                found, f"other size than annotated: {picture.width}x{picture.height} pixels, its boxes are in {width}x{height}"
            )
        return Source(picture, self.table.boxes_of(found), found)

    def _stand_in(self, index: int, bad: dict[int, str]) -> int | None:
        return next((i for i in self._candidates(index) if i not in bad), None)

    def _candidates(self, index: int) -> Iterator[int]:
        """The picture itself, then those that replace it: drawn by its number, since neighbours in a folder often broke together."""
        yield index
        if self.replace:
            yield from map(int, np.random.default_rng((self.seed, index)).integers(len(self.table), size=TRIES))

    def _told(self, bad: dict[int, str]) -> list[tuple[str, str]]:
        return [(self.table.pictures.path(i), cause) for i, cause in bad.items()]


def collate_boxes(items: list[Item], *, channels: int = 3) -> dict[str, Any]:
    """Items to a batch.

    Returns:
        `images` `(B, C, H, W)` uint8, channels-last in memory; `boxes`, a list of `Boxes` in pixels of these; `crowd`, likewise those of
        crowds, in training none; `letterbox`, a list of `Letterbox`, in training an empty one; `index` `(B,)` int64, numbers of the
        pictures in the table; `broken`, a list of paths and causes. Pictures that cannot be read are in none of the others; B may be 0.
    """
    kept = [item for item in items if item.pixels is not None]
    views = [[item.pixels for item in kept if item.pixels is not None]]
    return {
        "images": stacked(views)[0] if kept else torch.empty(0, channels, 1, 1, dtype=torch.uint8),
        "boxes": BoxList(item.boxes for item in kept),
        "crowd": BoxList(item.crowd for item in kept),
        "letterbox": LetterboxList(item.letterbox for item in kept if item.letterbox is not None),
        "index": torch.tensor([item.index for item in kept], dtype=torch.int64),
        "broken": [told for item in items for told in item.broken],
    }


def make_box_loader(dataset: BoxPictures, order: Any, *, workers: int) -> Any:
    """Batches in an order; those of training start where the run is."""
    return make_loader(dataset, order, workers=workers, collate_fn=partial(collate_boxes, channels=dataset.reading.channels))
