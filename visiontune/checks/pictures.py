"""A look at every picture of a folder, of shards or of a table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visiontune.data.decode import Reading
from visiontune.data.folder import list_pictures
from visiontune.data.inspect import inspect
from visiontune.errors import UserError, some
from visiontune.recipe.schema import table_settings
from visiontune.recipe.sections import LabelledData
from visiontune.recipe.yaml_lines import read_value


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
