"""What `--backbones` means: names and wildcards of timm's, run folders, exported folders and files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from visiontune import backbones, build
from visiontune.compare.network import short_names
from visiontune.errors import UserError, near, some

WEIGHTS = ("timm", "random")


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Attributes:
        name: of the row, told from all others.
        backbone: timm's name, or an absolute path.
        weights: `timm` or `random`; of what brings its own `own`, whose place is `backbone`.
        stamp: changes when the weights do: size and time of the file; empty for timm's and random ones.
        problem: why it cannot be measured, in words; empty if nothing is known against it.
    """

    name: str
    backbone: str
    weights: str
    stamp: str = ""
    problem: str = ""

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^\w.-]+", "_", self.name).strip("_.") or "_"

    @property
    def words(self) -> dict[str, Any]:
        """As `probe` takes it."""
        return {"backbone": self.backbone, "weights": None if self.weights == "own" else self.weights}


def find_candidates(words: Sequence[str], weights: str = "timm") -> list[Candidate]:
    """The rows that these words ask for, each once, in their order.

    Args:
        words: what `--backbones` was given.
        weights: of names: `timm`, and then wildcards match what timm has weights of, or `random`, and they match all.

    Raises:
        UserError: if none of them can be measured.
    """
    if weights not in WEIGHTS:
        hint = "; a run, an exported folder or file among --backbones brings its own" if Path(weights).exists() else near(weights, WEIGHTS)
        raise UserError(f"--weights: got {weights!r}; allowed: {', '.join(WEIGHTS)}{hint}")
    paths = short_names([str(Path(w).absolute()) for w in words if Path(w).exists()])
    short = {path: name for name, path in paths.items()}
    found: dict[tuple[str, str], Candidate] = {}
    for word in words:
        if Path(word).exists():
            these = [_of_path(Path(word).absolute(), short)]
        elif re.search(r"[*?\[]", word):
            these = _of_wildcard(word, weights)
        else:
            these = [_of_name(word, weights)]
        for candidate in these:
            found.setdefault((candidate.backbone, candidate.weights), candidate)
    rows = told_apart(list(found.values()))
    if all(row.problem for row in rows):
        raise UserError(f"--backbones: nothing is left to measure: {some((f'{row.name}: {row.problem}' for row in rows), 3)}")
    return rows


def _of_path(path: Path, short: dict[str, str]) -> Candidate:
    name = short[str(path)]
    try:
        place = build.weights_path(str(path))
        if (config := backbones.read_config(place)) is None:
            what = "no run with weights, and no folder with config.json and model.safetensors"
            if path.is_file():
                what = "a file that does not tell its network; `python -m visiontune export RUN safetensors` writes one that does"
            return Candidate(name, str(path), "own", problem=f"{path} is {what}")
        if "detector" in config:
            return Candidate(name, str(path), "own", problem=f"{path} detects; give its backbone, RUN/weights/backbone")
        file = place / "model.safetensors" if place.is_dir() else place
        stat = file.stat()
    except (UserError, OSError) as error:
        return Candidate(name, str(path), "own", problem=str(error))
    return Candidate(name, str(path), "own", f"{stat.st_size} {stat.st_mtime_ns}")


def again(candidate: Candidate) -> Candidate:
    """One of an earlier command with the weights that it has now; as it was if they are gone."""
    if candidate.weights != "own":
        return candidate
    found = _of_path(Path(candidate.backbone), {candidate.backbone: candidate.name})
    return candidate if found.problem else found


def _of_wildcard(word: str, weights: str) -> list[Candidate]:
    """Architectures; with a dot in it (`resnet50.*`) the several weights that timm has of each."""
    tagged = "." in word
    names = timm.list_models(word, pretrained=weights == "timm" or tagged, include_tags=tagged)
    if not names:
        of = "no weights of any backbone" if weights == "timm" or tagged else "no backbone"
        hint = "; --weights random matches those without, too" if weights == "timm" and timm.list_models(word.split(".")[0]) else ""
        return [Candidate(word, word, weights, problem=f"timm {timm.__version__} has {of} that matches it{hint}")]
    return [Candidate(_row(name, weights), name, weights) for name in names]


def _of_name(word: str, weights: str) -> Candidate:
    problem = ""
    if "/" in word or word.endswith(backbones.files.SUFFIXES):
        parent = Path(word).absolute().parent
        there = near(Path(word).name, (p.name for p in parent.iterdir())) if parent.is_dir() else f"; there is no folder {parent} either"
        problem = f"no file or folder of this name{there}"
    elif told := backbones.check_name(word):
        problem = told
    elif weights == "timm" and not timm.is_model_pretrained(word):
        problem = "timm has no weights of it; --weights random measures it without"
    return Candidate(_row(word, weights), word, weights, problem=problem)


def _row(name: str, weights: str) -> str:
    return name if weights == "timm" else f"{name} ({weights})"


def told_apart(rows: list[Candidate]) -> list[Candidate]:
    """A run folder may be called as timm's networks are: then it goes by its path."""
    taken = {row.folder for row in rows if row.weights != "own"}
    found = []
    for row in rows:
        if row.weights == "own" and row.folder in taken:
            row = Candidate(row.backbone, row.backbone, row.weights, row.stamp, row.problem)
        taken.add(row.folder)
        found.append(row)
    return found
