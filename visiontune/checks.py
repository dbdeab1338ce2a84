"""What types cannot say of a recipe, found before any data or GPU is touched: folders without pictures, unknown backbones."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visiontune.data.annotations import look_into
from visiontune.data.columns import TableSettings
from visiontune.data.decode import Reading
from visiontune.data.folder import list_pictures, missing_folder
from visiontune.data.inspect import inspect
from visiontune.data.rows import is_table
from visiontune.data.sample import SAMPLES
from visiontune.data.shards import is_shards
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, near, some
from visiontune.recipe.schema import is_path, table_settings, type_of_val
from visiontune.recipe.sections import LabelledData
from visiontune.recipe.yaml_lines import read_value

Found = list[tuple[str, str]]


def check_folders(raw: dict[str, Any]) -> Found:
    """Folders and tables that are missing, name no picture that is there, or not what is needed; looks until it meets the first one."""
    found: Found = []
    labelled = raw.get("task") == "classify"
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
            there = sorted(os.listdir(folder))
            found.append((name, f"no picture in {folder}; it {'holds ' + some(there) if there else 'is empty'}"))
        elif (labelled or section == "probe") and sum(e.is_dir() for e in os.scandir(folder)) < 2:
            has = "no class folders" if not any(e.is_dir() for e in os.scandir(folder)) else "only one class folder"
            found.append((name, f"{folder} has {has}; labelled pictures lie in one sub-folder a class, of two classes or more"))
    data = raw.get("data")
    for section in ("data",) * labelled + ("probe",):
        settings = raw.get(section)
        if (
            isinstance(settings, dict)
            and settings.get("val") is None
            and isinstance(train := settings.get("train"), str)
            and not is_table(train)
        ):
            found.append((f"{section}.val", f"is missing; {type_of_val(section)}"))
    if isinstance(data, dict) and data.get("labels_fraction") is not None and data.get("labels_per_class") is not None:
        found.append(("data.labels_per_class", "stands beside data.labels_fraction; give one of them"))
    return found


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


# ---------------------------------------------------------------- pictures, one by one


def check_pictures(what: str, overrides: list[str], *, out: str | None, tiny: int, progress: Callable[[int], Callable[[int], None]]) -> int:
    """Look at every picture of a folder, of shards or of a table, and print what is found; 1 where any is broken.

    Args:
        what: where they are.
        overrides: `data.channels=4`: keys of a recipe's `data` that say how pictures and tables are read.
        out: CSV file to list every problem in.
        tiny: shorter sides below this many pixels are counted.
        progress: given the number of pictures, makes what is told of those done.

    Raises:
        UserError: if there is none, or for another key.
    """
    data = data_of(overrides)
    # A file that is not there is one more broken picture here, not a reason to stop.
    table = list_pictures(what, key="check", labelled=None, settings=table_settings(data), max_broken=1.0)
    found = inspect(table, tiny=tiny, reading=Reading(data.channels, data.background, data.value_range), progress=progress(len(table)))
    print("\n".join([*table.notes, *found.lines(tiny)]))
    if found.broken:
        print("e.g. " + some((f"{table.path(i)} ({cause})" for i, cause in found.broken), 10))
    if out:
        found.write_csv(Path(out))
        print(f"every one of them: {out}")
    return 1 if found.broken else 0


# Keys of a recipe's `data` that say how pictures and tables are read, and what is said of them in a message.
TABLE_KEYS = {"root": "data.root=FOLDER", "columns": "data.columns.label=NAME", "label_separator": "data.label_separator=,"}
READ_KEYS = {
    "channels": "data.channels=4",
    "value_range": "data.value_range=[0,4095]",
    "background": "data.background=[0,0,0]",
} | TABLE_KEYS


def data_of(overrides: Sequence[str], *, verb: str = "check", keys: dict[str, str] = READ_KEYS) -> LabelledData:
    """The `data` of a recipe with these settings alone.

    Args:
        overrides: `data.channels=4`.
        verb: for messages.
        keys: what may be set, with examples.

    Raises:
        UserError: for another key, or a value that it cannot have.
    """
    settings: dict[str, Any] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        section, _, name = key.partition(".")
        name, _, inner = name.partition(".")
        if section != "data" or name not in keys:
            raise UserError(f"{verb}: got {text!r}; of pictures are allowed: {', '.join(keys.values())}")
        got = read_value(value)
        settings[name] = settings.get(name, {}) | {inner: got} if inner else got
        try:
            LabelledData(train="", **settings)
        except ValidationError as error:
            raise UserError(f"{key}: got {value!r}; expected {LabelledData.model_fields[name].description}") from error
    return LabelledData(train="", **settings)


CHECKS = (check_folders, check_weights, check_backbone)
