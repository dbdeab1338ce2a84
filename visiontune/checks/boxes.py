"""A look at annotations and every picture that they are of: all that is wrong, at once, before anything is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from visiontune.data.decode import Reading
from visiontune.data.detection.inspect import BoxFindings, inspect_boxes
from visiontune.data.detection.read import read_boxes
from visiontune.data.detection.table import BoxTable
from visiontune.errors import UserError, near
from visiontune.recipe.detection import BoxesData, BoxSource
from visiontune.recipe.yaml_lines import read_value

Progress = Callable[[int], Callable[[int], None]]
KEYS = ("images=FOLDER", "split=names.txt", "val.boxes=val.json", "val.images=FOLDER", "val.split=names.txt", "channels=3")


def check_annotations(boxes: str, overrides: Sequence[str], *, out: str | None, pixels: bool, progress: Progress) -> int:
    """Look at an annotation file or folder; 1 where anything is wrong.

    Args:
        boxes: COCO's .json, a folder of Pascal VOC's .xml or of YOLO's .txt.
        overrides: `images=FOLDER`, and what else `KEYS` has; with `val.boxes` also what training and validation have in common.
        out: CSV file to list every problem in.
        pixels: read every picture, too.
        progress: given the number of pictures, makes what is told of those done.

    Raises:
        UserError: if something is missing, or for another key.
    """
    given: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.removeprefix("data.").removeprefix("train.")
        allowed = [k.partition("=")[0] for k in KEYS]
        if not equals or key not in allowed:
            raise UserError(f"check: got {text!r}; of annotations are allowed: {', '.join(KEYS)}{near(key, allowed)}")
        given[key] = value
    if "images" not in given:
        raise UserError(f"check: {boxes} is taken for annotations, which are checked with their pictures: add images=FOLDER")
    train = BoxSource(images=given["images"], boxes=boxes, split=given.get("split"))
    val: BoxSource | float = 0.5
    if "val.boxes" in given:
        val = BoxSource(images=given.get("val.images", given["images"]), boxes=given["val.boxes"], split=given.get("val.split"))
    elif inner := [k for k in given if k.startswith("val.")]:
        raise UserError(f"check: {inner[0]} says something of validation pictures, but there is no val.boxes; add it")
    try:
        data = BoxesData.model_validate({"train": train, "val": val, "channels": read_value(given.get("channels", "3"))})
    except ValidationError as error:
        raise UserError(f"check: channels: got {given['channels']!r}; expected a whole number above 0") from error
    return check_box_data(data, out=out, pixels=pixels, progress=progress)


def check_box_data(data: BoxesData, *, out: str | None, pixels: bool, progress: Progress) -> int:
    """Look at what a recipe trains and validates on, print what is found, and return 1 where anything is wrong.

    Args:
        data: of a recipe. Where it sets a share of the training aside for validation, all of it is looked at together.
        out: CSV file to list every problem in.
        pixels: read every picture, too.
        progress: given the number of pictures, makes what is told of those done.

    Raises:
        UserError: if pictures or annotations are missing.
    """
    reading = Reading(data.channels, data.background, data.value_range)
    train = _open(data.train, "data.train", reading)
    val = _open(data.val, "data.val", reading) if isinstance(data.val, BoxSource) else None
    total = len(train) + (0 if val is None else len(val))
    found: BoxFindings = inspect_boxes(train, val, pixels=pixels, reading=reading, progress=progress(total) if pixels else None)
    print("\n".join([*train.notes, *(() if val is None else val.notes), *found.lines(5)]))
    if out:
        found.write_csv(Path(out))
        print(f"every one of them: {out}")
    return 1 if found.problems else 0


def _open(source: BoxSource, key: str, reading: Reading) -> BoxTable:
    return read_boxes(source.images, source.boxes, split=source.split, key=key, strict=False, reading=reading)
