"""Where an evaluation goes: a folder of its own for each data set that a model is judged on, and the same one again for the same."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from visiontune.errors import UserError

# What evaluations write before they tell their data in `result.json`.
WRITTEN = {"predictions.csv", "classes.csv", "sizes.csv", "confusion.csv", "pictures"}
DRAWN = {f"{name}.png" for name in ("confusion", "mistakes", "reliability", "precision_recall", "worst")}


def identity_of(data: str, part: str | None) -> dict[str, str | None]:
    """What tells data sets of one name apart, as `result.json` holds it."""
    return {"data_path": data if data.startswith("sample:") else os.path.abspath(data), "part": part}


def evaluation_folder(path: str, data: str, out: str | None, part: str | None = None) -> Path:
    """New, empty, or that of an evaluation before, which is replaced by what is written next; nothing is removed here.

    Args:
        path: of the model.
        data: what it is judged on.
        out: the folder that the user names; None: `evaluate/NAME` beside the model, by the last names of the data's path, as many as it
            takes to have no other data's folder.
        part: of a table.

    Raises:
        UserError: if the folder holds something else.
    """
    if out is None:
        base = (Path(path) if Path(path).is_dir() else Path(path).parent) / "evaluate"
        before = sorted(base.glob("*"), key=lambda f: (len(f.name), f.name)) if base.is_dir() else []
        same = next((f for f in before if _evaluated(f) == identity_of(data, part)), None)
        return same or next(f for name in _names(data, part) if _is_free(f := base / name))
    folder = Path(out)
    if folder.is_file():
        raise UserError(f"--out: {folder} is a file; give the name of a folder that is new or empty")
    if not _is_free(folder) and _evaluated(folder) is None:
        raise UserError(f"--out: {folder} is not empty and holds no evaluation; give a folder that is new or empty")
    return folder


def clear_evaluation(folder: Path) -> None:
    """Make the folder, or take the pictures of an evaluation before out of it: not every evaluation draws all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in DRAWN:
        (folder / "pictures" / name).unlink(missing_ok=True)


def _names(data: str, part: str | None) -> Iterator[str]:
    """`test`, `b_test` of `a/b/test`, and so on; then numbers."""
    path = data.removeprefix("sample:") if data.startswith("sample:") else os.path.abspath(data)
    parts = [p for p in path.rstrip("/*").replace("*", "_").split("/") if p] or ["data"]
    end = f"_{part}" if part else ""
    for first in reversed(range(len(parts))):
        yield "_".join(parts[first:]) + end
    for number in itertools.count(2):
        yield f"{parts[-1]}{end}_{number}"


def _evaluated(folder: Path) -> dict[str, str | None] | None:
    """The data of the evaluation that is there; None if it does not say."""
    try:
        result = json.loads((folder / "result.json").read_text())
        return {key: result[key] for key in identity_of("", None)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_free(folder: Path) -> bool:
    """New, empty, or left by an evaluation that broke off before it told its data."""
    if not folder.is_dir():
        return not folder.exists()
    there = {p.name for p in folder.iterdir()}
    drawn = {p.name for p in (folder / "pictures").iterdir()} if (folder / "pictures").is_dir() else set()
    return there <= WRITTEN and drawn <= DRAWN
