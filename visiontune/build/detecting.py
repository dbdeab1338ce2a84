"""A recipe that detects: its tables of boxes, what training does to them, its head's options, and the numbers that it leaves open.

Sources: FCOS (arXiv 1904.01355) and RetinaNet (1708.02002): 90,000 steps of 16 pictures of COCO, twelve epochs. ImageNet pretraining and
how much longer random weights take: He et al. 2019 (arXiv 1811.08883), section 3. What is ours says so.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

from visiontune.build.tuning import attends, divided
from visiontune.data import user_transforms
from visiontune.data.decode import Reading
from visiontune.data.detection.order import sizes_between
from visiontune.data.detection.parts import few_pictures, split_off_boxes
from visiontune.data.detection.problems import usable
from visiontune.data.detection.read import read_boxes
from visiontune.data.detection.table import BoxTable
from visiontune.data.detection.views import BOX_PIPELINES, BoxView
from visiontune.errors import UserError, counted, some
from visiontune.metrics.detection import find_counter
from visiontune.recipe import DetectRecipe
from visiontune.recipe.detection import BoxSource, own_options
from visiontune.recipe.schema import share_seed

SIZE = {"gpu": 640, "cpu": 320}  # pixels of a side; 640 as YOLO and DETR's fast kin take it, 320 so that a CPU is done
# Pictures seen from pretrained weights, and from random ones, which take three times as many or more (arXiv 1811.08883, section 4). Ours.
SEEN = {"gpu": (40_000, 120_000), "cpu": (8_000, 24_000)}
FEWEST, MOST = 12, 300  # epochs; twelve is the usual schedule for COCO
# Heads on a CPU: with 256 and 4 they take ten times the arithmetic of a small backbone. Ours.
SLIM = {"pyramid_width": 96, "convolutions": 2}
SMALLEST = "n"  # of the DETRs that have it, for the same reason
SHORT = 10_000  # steps, of which a run with fewer takes larger ones
# Steps, of which a run with fewer takes more and smaller ones, and how small at most: 2 where nothing learns from a batch's statistics. (On
# blood cells `map` was 53.8, 51.7 and 46.0 % with batches of 2, 4 and 8 in 10 epochs: benchmarks/detect_bccd.csv.) Ours.
FEW, SMALL_BATCH, SMALL_BATCH_OF_NORMS = 2_000, 2, 8
FINEST = 8  # pixels between two positions of the heads' finest map
UNEVEN = 10  # boxes of the most frequent class for one of the rarest, above which a run says it


def box_tables(recipe: DetectRecipe, reading: Reading) -> tuple[BoxTable, BoxTable, list[str]]:
    """Pictures with boxes to train and to validate on, and in words what was found.

    Raises:
        UserError: if something is missing, cannot be understood, or does not fit together; if nothing is installed that counts.
    """
    find_counter()  # a run ends with what it counts: hours before that is when to say that nothing can
    data = recipe.data
    train = _read(data.train, "data.train", reading)
    notes = list(train.notes)
    if isinstance(data.val, BoxSource):
        val = _read(data.val, "data.val", reading, classes=train.classes)
        notes += val.notes
    else:
        train, val = split_off_boxes(train, data.val, seed=share_seed(recipe))
    total = len(train)
    if data.labels_fraction is not None:
        train = few_pictures(train, seed=recipe.seed, fraction=data.labels_fraction)
    for key, table, least in (("data.train", train, data.min_box), ("data.val", val, 0.0)):
        notes += usable(table, least=least, key=key).notes[len(table.notes) :]
    train, val = usable(train, least=data.min_box), usable(val, least=0.0)
    used = f"{len(train)} of {total}" if len(train) < total else str(total)
    classes = f"{counted(len(train.classes), 'class')}: {some(train.classes, 10)}"
    notes.append(f"pictures: {used} with {len(train.label):,} boxes to train, {len(val)} with {len(val.label):,} to validate, {classes}")
    return train, val, [*notes, *_words_on_counts(train)]


def _read(source: BoxSource, key: str, reading: Reading, classes: Sequence[str] | None = None) -> BoxTable:
    return read_boxes(source.images, source.boxes, split=source.split, classes=classes, key=key, reading=reading)


def _words_on_counts(train: BoxTable) -> list[str]:
    """What a person should know of how many boxes each class has.

    Raises:
        UserError: if no box is left.
    """
    counts = train.class_counts()
    if not counts.sum():
        raise UserError("data.train: no box is left to train on; look at them with `python -m visiontune check`, or lower data.min_box")
    notes = []
    if absent := [name for name, n in zip(train.classes, counts.tolist(), strict=True) if not n]:
        notes.append(f"classes without a training box: {some(absent)}; they cannot be learned")
    most, least = int(counts.argmax()), min((int(n), k) for k, n in enumerate(counts.tolist()) if n)[1]
    if counts[most] > UNEVEN * counts[least]:
        boxes = f"{counted(int(counts[most]), 'box', ',')} of {train.classes[most]}, {int(counts[least]):,} of {train.classes[least]}"
        notes.append(f"imbalance: {boxes}; map is the mean over classes and shows it, look at each class, too")
    return notes


def box_view(recipe: DetectRecipe) -> BoxView:
    """What training does to pictures and boxes: the recipe's keys on those of its pipeline.

    Raises:
        UserError: for transforms that albumentations does not know.
    """
    augment = recipe.data.augment
    assert augment.pipeline is not None, "fill_detection() comes first"
    view = BoxView.of(BOX_PIPELINES[augment.pipeline], augment.model_dump(exclude_none=True, exclude={"pipeline"}))
    if view.albumentations is not None:
        user_transforms.compose(view.albumentations)  # a mistake is found here, not by a loader worker
    return view


def check_sizes(module: Any, recipe: DetectRecipe, size: tuple[int, int]) -> None:
    """Whether the backbone takes the smallest and the largest batch, before one in the middle of the training finds out.

    Raises:
        UserError: if it does not.
    """
    sizes = sizes_between(size, box_view(recipe).sizes)
    for H, W in {min(sizes), max(sizes)} - {size}:
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            with torch.no_grad():
                module.features(torch.zeros(1, module.spec.channels, H, W))
        except Exception as error:  # of many kinds, in timm
            cause = " ".join(str(error).split())[:120]
            raise UserError(
                f"data.augment.sizes: {recipe.backbone.name} takes no pictures of {H}x{W}, as batches of several sizes are ({cause}); "
                "take data.augment.sizes=[1,1], or a backbone without windows or positions of one size"
            ) from error
        finally:
            for part, mode in modes.items():
                part.training = mode


def detector_options(recipe: DetectRecipe, table: BoxTable) -> dict[str, Any]:
    """Keywords of the detector, with those of its head apart."""
    options = recipe.head.model_dump()
    name = options.pop("name")
    inner = options.pop("args") if "args" in type(recipe.head).model_fields else {o.name: options.pop(o.name) for o in own_options(name)}
    return options | {"head": name, "head_args": inner, "num_classes": len(table.classes), "class_names": table.classes}


def fill_size(recipe: DetectRecipe, *, on_cpu: bool) -> list[str]:
    """Fill in, in place, the size of the pictures: detection wants larger ones than its weights were made with."""
    if recipe.data.image_size is not None:
        return []
    recipe.data.image_size = SIZE["cpu" if on_cpu else "gpu"]
    other = f"a GPU would take {SIZE['gpu']}, which shows small things better" if on_cpu else "as YOLO and DETR's kin take it"
    return [f"image_size {recipe.data.image_size}: the recipe leaves it open; {other}"]


def words_on_small(table: BoxTable, size: tuple[int, int]) -> list[str]:
    """How many boxes are so small, once their pictures have become `size`, `(height, width)` in pixels, that no position of a head may lie
    in them. Of pictures whose own size is unknown nothing is said."""
    scale = (np.array(size) / np.maximum(table.sizes, 1)).min(axis=1)  # one a picture
    sides = (table.xyxy[:, 2:] - table.xyxy[:, :2]).min(axis=1)
    known = (table.sizes.min(axis=1) > 0)[table.owner] & ~table.crowd
    small = int((known & (sides * scale[table.owner] < FINEST)).sum())
    if not small:
        return []
    there = counted(int((~table.crowd).sum()), "box", ",")
    return [
        f"small boxes: {small:,} of {there} are narrower than {FINEST} pixels at {size[0]}x{size[1]} and easily missed; a larger "
        "data.image_size shows them, or pictures cut into tiles"
    ]


def fill_detection(recipe: DetectRecipe, pictures: int, *, fresh: bool, on_cpu: bool, parts: int = 1) -> list[str]:
    """Fill in, in place, epochs and how to train the backbone; in words what was decided and why.

    Args:
        recipe: with what the weights tell.
        pictures: to train on.
        fresh: whether the weights are random.
        on_cpu: where the run trains.
        parts: devices and accumulated batches that share a batch.

    Raises:
        UserError: if there are fewer pictures than these.
    """
    head, notes = recipe.head, []
    if recipe.data.augment.pipeline is None:
        recipe.data.augment.pipeline = "large_scale" if fresh else "standard"
        why = "random weights need more variety" if fresh else "pretrained weights and a short schedule"
        notes.append(f"views {recipe.data.augment.pipeline}: {why} (arXiv 2012.07177, section 4)")
    learns = fresh and not head.freeze_backbone
    if learns and "freeze_batch_norms" not in head.model_fields_set:
        head.freeze_batch_norms = False
        notes.append("batch norms of the backbone learn: random weights have no statistics to keep")
    if learns and "backbone_lr_factor" not in head.model_fields_set:
        head.backbone_lr_factor = 1.0
        notes.append("learning rate of the backbone as of the head: its weights are random")
    own = {option.name: option.type for option in own_options(head.name)}
    matched = "queries" in own  # a DETR
    if on_cpu:
        smaller: dict[str, Any] = SLIM if not matched else {"size": SMALLEST} if SMALLEST in get_args(own.get("size")) else {}
        slim = {key: n for key, n in smaller.items() if key in type(head).model_fields and key not in head.model_fields_set}
        for key, n in slim.items():
            setattr(head, key, n)
        if slim:
            usual = ", ".join(f"{key} {n} instead of {type(head).model_fields[key].default}" for key, n in slim.items())
            notes.append(f"a slim head, {usual}: on a CPU the usual one would take most of the time (ours)")
    if recipe.epochs is None:
        seen = SEEN["cpu" if on_cpu else "gpu"][fresh]
        recipe.epochs = min(MOST, max(FEWEST, round(seen / pictures)))
        where = "on a CPU" if on_cpu else "on a GPU"
        notes.append(
            f"epochs {recipe.epochs}: about {seen:,} pictures seen {where} from {'random' if fresh else 'pretrained'} weights (ours), of "
            f"{counted(pictures, 'picture', ',')}; {FEWEST} to {MOST}"
        )
    steps = recipe.epochs * (pictures // recipe.data.batch_size)
    if "batch_size" not in recipe.data.model_fields_set and steps < FEW:
        default, least = recipe.data.batch_size, SMALL_BATCH if head.freeze_batch_norms and not matched else SMALL_BATCH_OF_NORMS
        batch = default
        while batch > least and recipe.epochs * (pictures // batch) < FEW:
            batch //= 2
        recipe.data.batch_size = batch = divided(batch, pictures, parts)
        few = counted(steps, "step", ",")
        if batch < default:
            notes.append(f"batches of {batch}: of {default} there would be {few}, and below {FEW:,} more of them help (ours)")
        steps = recipe.epochs * (pictures // batch)
    # Large steps are too large for a DETR.
    if recipe.optim.lr is None and recipe.optim.name in (None, "adamw") and steps < SHORT and not matched:
        recipe.optim.lr = 1e-3
        notes.append(f"learning rate 0.001: {counted(steps, 'step', ',')} are few, below {SHORT:,} (ours; benchmarks/detect_bccd.csv)")
    # A transformer forgets what it knows under the learning rate of a new head.
    learns = not fresh and not head.freeze_backbone
    if learns and not matched and steps < SHORT and "backbone_lr_factor" not in head.model_fields_set and not attends(recipe):
        head.backbone_lr_factor = 1.0
        notes.append("learning rate of the backbone as of the head: a convnet, and few steps (ours; benchmarks/detect_bccd.csv)")
    if recipe.optim.layer_decay is not None and "backbone_lr_factor" not in head.model_fields_set:
        head.backbone_lr_factor = 1.0
        notes.append(f"learning rate of the backbone as of the head: optim.layer_decay {recipe.optim.layer_decay:g} slows it already")
    averaged = recipe.trainer.precision not in ("bf16-true", "16-true") and "fsdp" not in recipe.trainer.strategy
    if "ema" not in head.model_fields_set and averaged:
        head.ema = 0.998
        notes.append("average of the weights 0.998: it is what is validated and kept (ours; YOLOX takes 0.9998 of many more steps)")
    return notes
