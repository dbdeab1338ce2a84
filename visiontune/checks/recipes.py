"""What types cannot say of a recipe, found before any data or GPU is touched: folders without pictures, unknown backbones."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visiontune.data.annotations import look_into
from visiontune.data.columns import TableSettings
from visiontune.data.detection.read import format_of
from visiontune.data.folder import list_pictures, missing_folder, parts_not_classes
from visiontune.data.rows import is_table
from visiontune.data.sample import SAMPLES
from visiontune.data.shards import is_shards
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, near, some
from visiontune.recipe.schema import is_path, table_settings, type_of_val
from visiontune.recipe.sections import LabelledData

Found = list[tuple[str, str]]


def check_folders(raw: dict[str, Any]) -> Found:
    """Folders and tables that are missing, name no picture that is there, or not what is needed; looks until it meets the first one."""
    found: Found = []
    labelled = raw.get("task") in ("classify", "benchmark")
    for section, key in (("data", "train"), ("data", "val"), ("probe", "train"), ("probe", "val")):
        settings = raw.get(section)
        folder = settings.get(key) if isinstance(settings, dict) else None
        if not isinstance(folder, str):
            continue
        name = f"{section}.{key}"
        if folder.startswith("sample:"):
            short = folder.removeprefix("sample:")
            if short not in SAMPLES:
                found.append((name, f"got {folder!r}; allowed samples: sample:{', sample:'.join(SAMPLES)}{near(short, SAMPLES)}"))
        elif is_table(folder):
            found += _check_table(settings, section, key, folder, labelled=labelled or section == "probe")
        elif is_shards(folder):
            continue  # opened, and checked, when their members are listed
        elif not os.path.isdir(folder):
            found.append((name, missing_folder(name, folder).removeprefix(f"{name}: ")))
        elif not _has_picture(folder):
            try:
                list_pictures(folder, key=name)
            except UserError as error:  # says what is there instead
                found.append((name, str(error).removeprefix(f"{name}: ")))
        elif labelled or section == "probe":
            found += _check_classes(name, folder, fewest=2 if key == "train" else 1)
    data = raw.get("data")
    for section in ("data",) * (raw.get("task") == "classify") + ("probe",):
        settings = raw.get(section)
        if (
            isinstance(settings, dict)
            and settings.get("val") is None
            and isinstance(train := settings.get("train"), str)
            and not is_table(train)
        ):
            found.append((f"{section}.val", f"is missing; {type_of_val(section)}"))
    if labelled and isinstance(data, dict) and _same_pictures(data.get("train"), data.get("val")):
        what = f"is {data['train']}, as data.train is: how well pictures are told that were trained on says nothing of others"
        found.append(("data.val", f"{what}; give other pictures, or data.val: 0.2 to set that share of these aside"))
    if isinstance(data, dict) and data.get("labels_fraction") is not None and data.get("labels_per_class") is not None:
        found.append(("data.labels_per_class", "stands beside data.labels_fraction; give one of them"))
    return found


def _same_pictures(train: Any, val: Any) -> bool:
    """Whether validation is the folder, or the shards, of training. (Of a table that is both, the column of parts tells.)"""
    return isinstance(train, str) and isinstance(val, str) and os.path.realpath(train) == os.path.realpath(val) and not is_table(train)


def _check_classes(name: str, folder: str, *, fewest: int) -> Found:
    """A labelled folder with fewer class folders than are needed, or with the parts of a data set in their place."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if parts := parts_not_classes(name, folder, classes, fewest=fewest):
        return [(name, parts.removeprefix(f"{name}: "))]
    if len(classes) >= fewest:
        return []
    has = f"only one class folder ({classes[0]})" if classes else "no class folders"
    which = ", of two classes or more" if fewest > 1 else ""
    return [(name, f"{folder} has {has}; labelled pictures lie in one sub-folder a class{which}")]


def _check_table(settings: dict[str, Any], section: str, key: str, path: str, *, labelled: bool) -> Found:
    """A table without the columns that are needed, or none of whose pictures is there."""
    try:
        wanted = _settings(settings)
    except ValidationError:
        return []  # told with what else is wrong with the types
    split = key == "train" and labelled and settings.get("val") is None
    if key == "val":
        wanted = replace(wanted, split=None)
    try:
        look_into(path, wanted, key=f"{section}.{key}", labelled=labelled, split=split)
    except UserError as error:
        where, _, sentence = str(error).partition(": ")
        return [(where, sentence)]
    return []


def _settings(raw: dict[str, Any]) -> TableSettings:
    """What a raw section says of its tables."""
    return table_settings(LabelledData(train="", **{k: raw[k] for k in ("root", "columns", "label_separator") if k in raw}))


def _has_picture(folder: str) -> bool:
    """Looks until it meets one: a folder of millions is not listed for it."""
    waiting, seen = [folder], set()
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        found = entry.stat()
                        if (found.st_dev, found.st_ino) not in seen:  # links in a loop
                            seen.add((found.st_dev, found.st_ino))
                            waiting.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        return True
        except OSError:
            continue
    return False


def check_weights(raw: dict[str, Any]) -> Found:
    """A weights file or folder that is not there. (A resumed run does not need it any more, and is not asked.)"""
    backbone = raw.get("backbone")
    weights = backbone.get("weights", "random") if isinstance(backbone, dict) else "random"
    if not isinstance(weights, str) or not is_path(weights) or Path(weights).exists():
        return []
    parent = Path(weights).absolute().parent
    there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
    listed = f"; {parent} holds {some(there, 8)}" if there else ""
    hint = near(weights, ("random", "timm"))
    allowed = "allowed: random, timm, a weights file, a run folder, in stages also stage:NAME"
    return [("backbone.weights", f"no file or folder {weights!r}{hint}{listed}; {allowed}")]


def check_backbone(raw: dict[str, Any]) -> Found:
    """A backbone's name that timm does not know. Imports timm."""
    from visiontune.backbones import check_name

    backbone = raw.get("backbone")
    name = backbone.get("name") if isinstance(backbone, dict) else None
    if not isinstance(name, str):
        return []
    problem = check_name(name)
    return [("backbone.name", f"got {name!r}; {problem}")] if problem else []


def check_boxes(raw: dict[str, Any]) -> Found:
    """Of a recipe that has boxes: folders of pictures that are not there, annotations that are none."""
    data = raw.get("data")
    if raw.get("task") not in ("detect", "benchmark") or not isinstance(data, dict):
        return []
    found: Found = []
    for part in ("train", "val"):
        source = data.get(part)
        if not isinstance(source, dict):
            continue
        images, boxes, split = (source.get(k) for k in ("images", "boxes", "split"))
        key = f"data.{part}"
        if isinstance(images, str) and not os.path.isdir(images):
            found.append((f"{key}.images", missing_folder(f"{key}.images", images).removeprefix(f"{key}.images: ")))
        if isinstance(boxes, str):
            try:
                format_of(boxes, key=key)
            except UserError as error:
                where, _, sentence = str(error).partition(": ")
                found.append((where, sentence))
        if isinstance(split, str) and not os.path.isfile(split):
            found.append((f"{key}.split", f"there is no file {split}"))
    return found


def check_corrections(raw: dict[str, Any]) -> Found:
    """Uneven classes are made up for once: weights and adjustment are those of the pictures that there are, however often sampling shows
    them, and each of the three alone makes up for all."""
    off = {"data.sampling": "natural", "head.class_weights": "none", "head.logit_adjustment": 0}
    said = {}
    for name, usual in off.items():
        section, key = name.split(".")
        if isinstance(settings := raw.get(section), dict) and settings.get(key) not in (None, usual):
            said[name] = settings[key]
    if raw.get("task") != "classify" or len(said) < 2:
        return []
    (first, value), *others = said.items()
    beside = " and ".join(f"{name}={other}" for name, other in others)
    why = "each alone makes up for uneven classes, together they favour the rare ones: take one of them"
    return [(first, f"got {value} beside {beside}; {why}")]


CHECKS = (check_folders, check_boxes, check_corrections, check_weights, check_backbone)
