"""What backbones are judged on, labels or boxes, and the recipes that each of them is trained by: alike in all but the network.

- `finetune`: all of the network, by the defaults of a classify recipe.
- `detect`: a detection head on the frozen backbone, by those of a detect recipe.

Both see the same number of pictures with every backbone. (So many minutes for each would give a slow one less to learn from, and another
score on another machine: what it costs is told beside what it brings.)
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from visiontune import build
from visiontune import probe as probing
from visiontune.build.detecting import FEWEST as FEWEST_DETECTING
from visiontune.build.detecting import MOST as MOST_DETECTING
from visiontune.build.detecting import SEEN as SEEN_DETECTING
from visiontune.build.tuning import FEWEST, SEEN, epochs_for_labels
from visiontune.checks import CHECKS
from visiontune.errors import UserError, counted, near, some
from visiontune.recipe import ClassifyRecipe, DetectRecipe, Judged, parse_recipe

Trained = TypeVar("Trained", ClassifyRecipe, DetectRecipe)

OF_LABELS = (*probing.PROBES, "finetune")
OF_BOXES = ("detect",)
TRAININGS = ("finetune", "detect")
DEFAULT = ("knn", "linear")
# Of what DATA and --val are, where they are boxes; key on the command line: key of the settings.
BOX_KEYS = {"images": "images", "split": "split", "val.images": "val_images", "val.split": "val_split"}
BATCH = 64  # of a classify recipe; fewer pictures are one batch


def split_boxes(data: str, val: str | float | None, overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Where the pictures of annotations are, with absolute paths; empty if `data` is of labels. And the other words.

    Raises:
        UserError: for annotations without their pictures.
    """
    given: dict[str, str] = {}
    rest = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in BOX_KEYS:
            given[BOX_KEYS[key]] = os.path.abspath(value)
        else:
            rest.append(text)
    if not given and not data.endswith(".json"):
        return {}, rest
    if "images" not in given:
        raise UserError(f"benchmark: {data} is taken for annotations; add images=FOLDER, where their pictures are")
    if not isinstance(val, str) and (inner := [key for key in BOX_KEYS if key.startswith("val.") and BOX_KEYS[key] in given]):
        raise UserError(f"benchmark: {inner[0]} says something of validation pictures, but --val names no annotations of them; add --val")
    return given, rest


def chosen_probes(probes: Sequence[str] | None, data: str, *, boxes: bool) -> list[str]:
    """Those that were asked for, else those that cost least.

    Raises:
        UserError: for one that is none, or that such pictures are not for.
    """
    fitting, others = (OF_BOXES, OF_LABELS) if boxes else (OF_LABELS, OF_BOXES)
    if probes is None:
        return list(OF_BOXES if boxes else DEFAULT)
    for name in probes:
        if name not in (*OF_LABELS, *OF_BOXES):
            raise UserError(f"--probe: got {name!r}; allowed: {', '.join(fitting)}{near(name, (*fitting, *others))}")
    if boxes and (wrong := [name for name in probes if name in OF_LABELS]):
        raise UserError(f"--probe: got {some(wrong)}, which want a label for each picture, and {data} has boxes; allowed of them: detect")
    if not boxes and "detect" in probes:
        cure = "give annotations, as `benchmark train.json images=photos`, or leave it out"
        raise UserError(f"--probe: got detect, which wants boxes, and {data} is taken for labelled pictures; {cure}")
    return list(dict.fromkeys(probes))


def find_pictures(about: dict[str, Any]) -> tuple[Judged, build.Tables]:
    """What is wrong with the pictures is wrong for every backbone: found here, with a network that needs no file.

    Args:
        about: `data`, `val`, `image_size`, `overrides`, `device`, and of annotations `boxes`.

    Raises:
        UserError: in one sentence.
    """
    words = {"backbone": "resnet18", "weights": "random"}
    if about.get("boxes"):
        recipe = detect_recipe(about, words)
        return recipe, build.find_pictures(recipe)
    keys = ("data", "val", "image_size", "overrides")
    labelled = probing.labelled_recipe(**{key: about[key] for key in keys}, **words, verb="benchmark")
    return labelled, probing.find_labelled(labelled, "benchmark")


def tune_of(overrides: Sequence[str]) -> str:
    """What of a backbone `finetune` trains, as a recipe's `tune`."""
    return next((text.partition("=")[2] for text in overrides if text.startswith("tune=")), "full")


def budget(recipe: Judged, pictures: int, epochs: int | None, *, tune: str = "full") -> tuple[int, str]:
    """Passes over the training pictures, the same for all, and in words what is done.

    By default as many as such a recipe would make from pretrained weights on a CPU: few, and of the classify recipe measured to bring
    nearly what four times as many do (benchmarks/tune_budget.csv).

    Args:
        recipe: of `find_pictures`.
        pictures: to train on.
        epochs: what was asked for; None: the recipe's, else the default.
        tune: `tune_of` what was asked for.

    Raises:
        UserError: if both say something.
    """
    if epochs is not None and recipe.epochs is not None:
        raise UserError(f"--epochs: got {epochs} beside epochs={recipe.epochs}; give one of them")
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs: got {epochs}; expected 1 or more")
    epochs = epochs or recipe.epochs
    boxes = isinstance(recipe, DetectRecipe)
    if epochs is None and boxes:
        epochs = min(MOST_DETECTING, max(FEWEST_DETECTING, round(SEEN_DETECTING["cpu"][False] / pictures)))
    elif epochs is None:
        epochs = epochs_for_labels(pictures, SEEN["cpu"]["the whole of pretrained weights"], FEWEST["cpu"])
    what = f"finetune: {'all' if tune == 'full' else tune} of each backbone"
    if boxes:
        what = f"detect: {recipe.head.name} on each frozen backbone"
    seen = counted(epochs * pictures, "picture", ",")
    return epochs, (
        f"{what}, by a recipe's defaults, {counted(epochs, 'epoch')} of {counted(pictures, 'picture', ',')}: about {seen} seen by each, "
        "whatever its speed and its weights; judged once, after the last one"
    )


def finetune_recipe(spec: dict[str, Any], words: dict[str, Any], pictures: int) -> ClassifyRecipe:
    """All of a backbone tuned, and a classifier.

    Args:
        spec: the benchmark's settings, with its `epochs`.
        words: the backbone, as `probe` takes it.
        pictures: to train on.

    Raises:
        UserError: in one sentence.
    """
    keys = ("data", "val", "image_size", "overrides")
    settings = {key: spec[key] for key in keys}
    recipe = probing.labelled_recipe(**settings, **words, tune="full", batch_size=min(BATCH, pictures), verb="benchmark")
    return _within_budget(recipe, spec)


def detect_recipe(spec: dict[str, Any], words: dict[str, Any]) -> DetectRecipe:
    """A detection head on a frozen backbone; likewise."""
    boxes, val = spec["boxes"], spec["val"]

    def source(annotations: str, images: str, split: str | None) -> dict[str, str]:
        return {"images": images, "boxes": annotations} | ({"split": split} if split else {})

    data: dict[str, Any] = {"train": source(spec["data"], boxes["images"], boxes.get("split")), "val": 0.2 if val is None else val}
    if isinstance(val, str):
        data["val"] = source(val, boxes.get("val_images", boxes["images"]), boxes.get("val_split"))
    if spec["image_size"]:
        data["image_size"] = spec["image_size"]
    # random weights would else get other views than pretrained ones
    data["augment"] = {"pipeline": "standard"}
    network, _ = probing.network_of(**words)  # whose weights' size of pictures is small for boxes: the recipe's default is taken
    raw = {"task": "detect", "head": "fcos", "backbone": network, "data": data}
    recipe: Any = parse_recipe(raw, None, spec["overrides"], CHECKS, name="benchmark").single
    if "freeze_backbone" not in recipe.head.model_fields_set:
        recipe.head.freeze_backbone = True
    return _within_budget(recipe, spec)


def prepare_boxes(spec: dict[str, Any], words: dict[str, Any], tables: build.Tables | None = None) -> build.Prepared:
    """The backbone at the size that boxes are looked for at, to be counted and timed without a head.

    Args:
        spec: the benchmark's settings.
        words: the backbone, as `probe` takes it.
        tables: the pictures, if they have been read.

    Raises:
        UserError: in one sentence.
    """
    recipe = detect_recipe(spec, words)
    recipe.compile, recipe.head.ema = False, None  # of the training: here nothing stands beside the backbone
    tables = tables or build.find_pictures(recipe)
    derived, _ = build.derive(recipe, tables, 1)  # its notes are of a training that is another part's
    module, notes = build.make_module(derived, tables)
    for part in [name for name, _ in module.named_children() if name != "backbone"]:
        delattr(module, part)
    made = f"{derived.backbone.name}, without a head, pictures of {'x'.join(map(str, build.picture_size(derived)))}"
    return build.Prepared(derived, tables, module.eval(), [*(n for n in notes if "to train" not in n), made])


def _within_budget(recipe: Trained, spec: dict[str, Any]) -> Trained:
    """On the benchmark's device, for its epochs, and validated after the last one alone: then nothing is chosen on the pictures that it
    is judged on, and few pictures are not judged hundreds of times. What the user says of these goes first."""
    recipe.epochs = recipe.epochs or spec.get("epochs")
    device = torch.device(spec["device"])
    place: dict[str, Any] = {"accelerator": device.type, "devices": 1}
    if device.type == "cuda":
        place = {"accelerator": "gpu", "devices": [device.index or 0]}
    if recipe.epochs:
        place["check_val_every_n_epoch"] = recipe.epochs
    recipe.trainer = type(recipe.trainer).model_validate(place | recipe.trainer.model_dump(exclude_unset=True))
    return recipe
