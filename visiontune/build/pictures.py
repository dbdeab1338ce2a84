"""The pictures that a recipe names: tables of them, how they are read and viewed, their loaders, mean and standard deviation."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.build.detecting import box_tables, box_view
from visiontune.build.labelled import labelled_tables, probe_tables
from visiontune.build.tuning import divided
from visiontune.data import user_transforms
from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection.datamodule import BoxData
from visiontune.data.detection.table import BoxTable
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder, permute
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable
from visiontune.data.views import Augment, CenterCrop, Views
from visiontune.errors import UserError, counted, some
from visiontune.recipe import ClassifyRecipe, DetectRecipe, PretrainRecipe, Recipe
from visiontune.recipe.options import named_views
from visiontune.recipe.schema import options_of, table_settings


@dataclass(frozen=True)
class Tables:
    """The pictures of a run.

    Attributes:
        train: to train on.
        val: to validate on, or None.
        probe: labelled training and validation pictures of the probe, or None.
        notes: what was decided, in words.
        boxes: the boxes in `train` and in `val`, where there are some.
    """

    train: PictureTable
    val: PictureTable | None
    probe: tuple[PictureTable, PictureTable] | None
    notes: list[str]
    boxes: tuple[BoxTable, BoxTable] | None = None

    def absolute(self) -> "Tables":
        """With absolute folders: a run that is resumed, from its own absolute recipe, calls a picture what it called it before."""

        def moved(table: PictureTable) -> PictureTable:
            return replace(table, root=os.path.abspath(table.root))

        val = None if self.val is None else moved(self.val)
        probe = self.probe and (moved(self.probe[0]), moved(self.probe[1]))
        boxes = self.boxes and (
            replace(self.boxes[0], pictures=moved(self.boxes[0].pictures)),
            replace(self.boxes[1], pictures=moved(self.boxes[1].pictures)),
        )
        return Tables(moved(self.train), val, probe, self.notes, boxes)

    def fingerprint(self) -> str:
        """Changes when what is trained on does."""
        return self.train.fingerprint() if self.boxes is None else self.boxes[0].fingerprint()


def find_pictures(recipe: Recipe) -> Tables:
    """List the folders and tables that a recipe names.

    Raises:
        UserError: if one is missing, empty, not as it should be, or too small for the batch that the recipe gives.
    """
    notes: list[str] = []
    val: PictureTable | None = None
    probe = None
    boxes = None
    if isinstance(recipe, ClassifyRecipe):
        train, val, notes = labelled_tables(recipe)
    elif isinstance(recipe, DetectRecipe):
        *boxes, notes = box_tables(recipe, reading_of(recipe))
        train, val = (table.pictures for table in boxes)
    else:
        data = recipe.data
        train = list_pictures(data.train, settings=table_settings(data), max_broken=data.max_broken)
        notes += train.notes
        notes.append(f"pictures: {len(train)} without labels in {data.train}")
        if recipe.probe:
            labelled, judged = probe = probe_tables(recipe.probe, data.max_broken)
            notes += (*labelled.notes, *judged.notes)
            notes.append(f"probe: {counted(len(labelled), 'labelled picture')} to fit, {len(judged)} to score")
    given = "batch_size" in recipe.data.model_fields_set  # else it follows from how many there are
    if given and len(train) < recipe.data.batch_size:
        raise UserError(
            f"data.batch_size: got {recipe.data.batch_size}, but there are no more than {counted(len(train), 'picture')} to train on; "
            f"give at most that, e.g. data.batch_size={max(1, len(train) // 2)}"
        )
    return Tables(train, val, probe, notes, boxes and tuple(boxes))


def fill_batch(recipe: PretrainRecipe | ClassifyRecipe, pictures: int, *, parts: int) -> list[str]:
    """Fill in, in place, a batch of all pictures where the default would hold more and the recipe gives none; in words what was decided.

    Args:
        recipe: whose number of devices is known.
        pictures: to train on.
        parts: devices and accumulated batches that share a batch.

    Raises:
        UserError: if there are fewer pictures than these.
    """
    usual = recipe.data.batch_size
    if "batch_size" in recipe.data.model_fields_set or pictures >= usual:
        return []
    recipe.data.batch_size = divided(usual, pictures, parts)
    return [f"batches of {recipe.data.batch_size}: there are {counted(pictures, 'picture')} to train on, and {usual} is for more"]


def picture_size(recipe: Recipe) -> tuple[int, int]:
    size = recipe.data.image_size
    assert size is not None, "derive() comes first"
    return (size, size) if isinstance(size, int) else size


def reading_of(recipe: Recipe) -> Reading:
    data = recipe.data
    return Reading(data.channels, data.background, data.value_range)


def base_views(recipe: PretrainRecipe | ClassifyRecipe) -> dict[str, Any]:
    """Keys of the views that a recipe's own are laid on: those of the pipeline that it names, else of its method or task."""
    pipeline = recipe.data.augment.pipeline
    return named_views()[pipeline] if pipeline else options_of(recipe).views


def views_of(recipe: PretrainRecipe | ClassifyRecipe) -> tuple[Views, list[str]]:
    """The views that a method or task asks for with the recipe's own on top; and in words what was left out of them.

    Raises:
        UserError: for views that do not fit together, or transforms that albumentations does not know.
    """
    own = recipe.data.augment.model_dump(exclude_none=True, exclude={"pipeline"})
    views, dropped = Views.of(base_views(recipe), own).of_channels(recipe.data.channels)
    wanted, name = Views.of(options_of(recipe).views), options_of(recipe).name
    if views.large != wanted.large or (views.small and not wanted.small):
        small = f" and {views.small} small ones" if views.small else ""
        cure = f"set data.augment.views={wanted.large}" + ("" if wanted.small else " and data.augment.local.views=0" if views.small else "")
        raise UserError(f"data.augment: gives {views.large} views{small}; {name} takes {wanted.large}: {cure}")
    if views.albumentations is not None:
        user_transforms.compose(views.albumentations)  # a mistake is found here, not by a loader worker
    notes = [f"views: {', '.join(dropped)} left out, they need RGB and pictures have {recipe.data.channels} channels"] if dropped else []
    return views, notes


def make_data(recipe: Recipe, tables: Tables, broken_csv: Path | None) -> PictureData:
    assert isinstance(recipe.data.workers, int), "derive() comes first"
    broken = Broken(broken_csv, limit=recipe.data.max_broken, total=len(tables.train))
    if isinstance(recipe, DetectRecipe):
        assert tables.boxes is not None
        assert recipe.epochs is not None, "derive() comes first"
        return BoxData(
            tables.boxes[0],
            box_view(recipe),
            picture_size(recipe),
            val=tables.boxes[1],
            epochs=recipe.epochs,
            batch_size=recipe.data.batch_size,
            workers=recipe.data.workers,
            seed=recipe.seed,
            broken=broken,
            reading=reading_of(recipe),
        )
    return PictureData(
        tables.train,
        Augment(views_of(recipe)[0], picture_size(recipe)),
        val=tables.val,
        val_transform=CenterCrop(picture_size(recipe)),
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        seed=recipe.seed,
        broken=broken,
        labelled=isinstance(recipe, ClassifyRecipe),
        reading=reading_of(recipe),
        repeats=recipe.data.repeats,
        sampling=recipe.data.sampling if isinstance(recipe, ClassifyRecipe) else "natural",
    )


def clean_loader(recipe: Recipe, table: PictureTable, batch_size: int) -> Callable[[], Any]:
    """Makes a loader of clean pictures with labels, whole in every process."""

    def loader() -> Any:
        dataset = Pictures(table, CenterCrop(picture_size(recipe)), reading=reading_of(recipe))
        return make_loader(dataset, EvalOrder(len(table), batch_size), workers=0)

    return loader


def some_pictures(recipe: Recipe, table: PictureTable, most: int = 512) -> Callable[[], Any]:
    """Makes a loader of the same few clean pictures each time, drawn by the seed: a part of a small folder, or looks would take long.

    A sixteenth looked at eleven times is two thirds of an epoch of forward passes, a step costs three of them for each view.
    """
    n = len(table)
    count = min(n, most, max(64, n // 16))
    batch = min(64, recipe.data.batch_size)
    return clean_loader(recipe, table.take(permute(np.arange(count), n, seed=recipe.seed, epoch=0).tolist()), batch)


def estimate_statistics(recipe: Recipe, table: PictureTable, pictures: int = 1000) -> tuple[list[float], list[float], int]:
    """Mean and standard deviation of each channel in [0, 1], over some pictures as validation sees them; and how many there were.

    Raises:
        UserError: if none of them can be read.
    """
    view, reading = CenterCrop(picture_size(recipe)), reading_of(recipe)
    sums, squares, count = np.zeros(reading.channels), np.zeros(reading.channels), 0
    causes = []
    n = len(table)
    for index in permute(np.arange(min(pictures, n)), n, seed=recipe.seed, epoch=0).tolist():
        try:
            pixels = view(Picture(read_bytes(table, index), reading))[0].astype(np.float64) / 255
        except BrokenPicture as error:
            causes.append(f"{table.path(index)} ({error})")
            continue
        sums, squares, count = sums + pixels.mean((0, 1)), squares + np.square(pixels).mean((0, 1)), count + 1
    if not count:
        raise UserError(f"data.train: none of the first {counted(len(causes), 'picture')} can be read: {some(causes, 5)}")
    mean = sums / count
    # A channel that never changes is left alone rather than divided by nothing.
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return mean.tolist(), np.where(std < 1e-4, 1.0, std).tolist(), count
