"""Which runs a comparison is made of. What all of them share is settled here, so that rows differ in their weights alone.

- One network: the recipe's; what run folders say of theirs (arguments, stem, size of pictures) holds for the other weights, too.
- All are judged on the same pictures. The labels of one seed are the same for all weights, and fewer are among more.
- Passes over few pictures are few steps: see `labels.fit_to_labels`.
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from visiontune import build
from visiontune.checks import CHECKS
from visiontune.compare.labels import Labels, fit_to_labels
from visiontune.compare.network import POOLING, share_network, share_validation, short_names, with_its_size
from visiontune.errors import UserError, some
from visiontune.recipe import DetectRecipe, Judged, Validated, load_recipe, parse_recipe
from visiontune.recipe.schema import is_path, repeats_of
from visiontune.recipe.yaml_lines import dump_yaml, read_yaml
from visiontune.run import given_data, recipe_data

# What differs by weights alone, or is told where it is found.
TOLD = ("backbone.weights", "data.mean", "data.std", *(f"backbone.args.{key}" for key in POOLING))
SET_BY_COMPARE = ("backbone.weights", "data.labels_fraction", "data.labels_per_class", "seed")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: its folder below the comparison's.
        weights, labels, seed: its place in the table.
        recipe: what it trains.
        pictures: labelled ones.
        steps: of the optimiser.
    """

    name: str
    weights: str
    labels: str
    seed: int
    recipe: Judged
    pictures: int
    steps: int


@dataclass
class Plan:
    """All runs, and what was decided for them.

    Attributes:
        settings: what makes the plan again: recipe, weights by name, labels, seeds, min_steps.
        cells: the runs, in the order in which they are made: seed after seed, so that pairs are whole early.
        notes: what was decided, in words.
        several: pictures have several labels.
    """

    FILE = "compare.yaml"

    settings: dict[str, Any]
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)
    several: bool = False

    @property
    def weights(self) -> list[str]:
        return list(self.settings["weights"])

    @cached_property
    def labels(self) -> list[str]:
        """From few to many pictures."""
        counts = {c.labels: c.pictures for c in self.cells}
        return sorted(counts, key=lambda name: counts[name])

    @property
    def seeds(self) -> list[int]:
        return self.settings["seeds"]

    @property
    def metric(self) -> str:
        """What the runs are compared by: what the recipe keeps its best weights by, if higher is better and it is a share."""
        monitor = (self.cells[0].recipe.monitor or "").removeprefix("val/")  # as `fit` takes it
        if monitor and monitor not in ("loss", "ece"):
            return monitor
        return "map" if isinstance(self.cells[0].recipe, DetectRecipe) else "macro_ap" if self.several else "top1"

    @property
    def judged_alike(self) -> bool:
        """Whether all runs are judged on the same pictures; not so where each seed sets aside its own, as it once did."""
        data = self.cells[0].recipe.data
        return not isinstance(data.val, float) or data.val_seed is not None or len(self.seeds) == 1

    def save(self, file: Path) -> None:
        header = ["go on with it by: python -m visiontune compare --resume FOLDER"]
        dump_yaml(self.settings, file, header)

    def differs_from(self, other: "Plan") -> str:
        """Dotted keys in which the recipes differ, in words; weights, labels and seeds may, but no name may mean other weights."""
        mine, theirs = (_flat(p.settings["recipe"] | {"min_steps": p.settings["min_steps"]}) for p in (self, other))
        for name in set(self.weights) & set(other.weights):
            mine[f"weights {name}"], theirs[f"weights {name}"] = (p.settings["weights"][name] for p in (self, other))
        keys = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
        return some((f"{k}: {theirs.get(k)}, now {mine.get(k)}" for k in keys), 4) if keys else ""


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {k: v for key, inner in tree.items() for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()}


def make_plan(
    name: str, *, weights: Sequence[str], labels: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], min_steps: int
) -> Plan:
    """From the command's words.

    Raises:
        UserError: in one sentence.
    """
    for text in overrides:
        if (key := text.partition("=")[0]) in SET_BY_COMPARE:
            raise UserError(f"{key}: a comparison sets it itself, by --weights, --labels and --seeds")
    for option, given in (("--weights", weights), ("--labels", labels), ("--seeds", seeds)):
        if len(set(map(str, given))) < len(given):
            raise UserError(f"{option}: got {' '.join(map(str, given))}; expected each of them once")
    for text in labels:
        Labels.of(text)
    named = short_names(weights)
    paths = {short: w for short, w in named.items() if is_path(w)}
    first: Judged | None = None
    more: list[str] = []
    for value in [*paths.values(), *(w for w in named.values() if not is_path(w))]:
        loaded = load_recipe(name, [*overrides, *more, f"backbone.weights={json.dumps(value)}"], checks=CHECKS)
        recipe = None if loaded.staged else loaded.single
        if not isinstance(recipe, Validated):
            what = f"has the stages {', '.join(loaded.stages)}" if recipe is None else f"is of the task {recipe.task}"
            raise UserError(
                f"compare: {name} {what}; give a recipe that classifies or detects, and the pretraining's run folder to --weights"
            )
        if isinstance(recipe, DetectRecipe) and (own := next((t for t in labels if Labels.of(t).per_class), None)):
            raise UserError(f"--labels: got {own!r}; a picture has boxes of several classes: give shares of the pictures, as 10%")
        if first is None:
            first = recipe
            notes = share_network(first, named) + share_validation(first)
            more = [f"backbone.name={first.backbone.name}"] if first.backbone.name else []
    assert first is not None, "argparse asks for one"
    settings = {
        "recipe": _without_own(given_data(first)),
        "weights": {n: str(Path(w).absolute()) if is_path(w) else w for n, w in named.items()},
        "labels": list(labels),
        "seeds": list(seeds),
        "min_steps": min_steps,
    }
    return _plan(settings, notes)


def load_plan(folder: Path) -> Plan:
    """Of a comparison's folder.

    Raises:
        UserError: if it is none.
    """
    file = folder / Plan.FILE
    if not file.is_file():
        parent = folder.absolute().parent
        there = sorted(p.parent.name for p in parent.glob(f"*/{Plan.FILE}")) if parent.is_dir() else []
        beside = f"; comparisons in {parent}: {some(there)}" if there else ""
        raise UserError(f"--resume: {folder} holds no {Plan.FILE}, so it is no comparison{beside}")
    settings, _ = read_yaml(file.read_text(), Plan.FILE)
    settings["recipe"] = with_its_size(settings["recipe"])
    return _plan(settings, [])


def _plan(settings: dict[str, Any], notes: list[str]) -> Plan:
    cells: list[Cell] = []
    derived: dict[tuple[str, str], dict[str, Any]] = {}
    said: dict[str, None] = dict.fromkeys(notes)
    whole = _recipe(settings, next(iter(settings["weights"].values())), Labels(), 0)
    every = build.find_pictures(_small_batch(whole)).train
    for seed in settings["seeds"]:
        for text in settings["labels"]:
            labels = Labels.of(text)
            tables = None
            for short, weights in settings["weights"].items():
                plain = _recipe(settings, weights, labels, seed)
                tables = tables or build.find_pictures(_small_batch(plain))
                pictures = len(tables.train)
                epochs = plain.epochs or build.derive(fit_to_labels(plain, pictures, len(every), 0)[0], tables, 1)[0].epochs
                recipe, why = fit_to_labels(plain, pictures, len(every), settings["min_steps"], derived=epochs)
                said |= dict.fromkeys([f"{labels.name}: {why}"] if why else [])
                found, _ = build.derive(recipe, tables, 1)
                assert found.epochs is not None
                steps = pictures // found.data.batch_size * repeats_of(found) * found.epochs
                folder = f"{_folder(short)}/{_folder(labels.name)}/seed_{seed}"
                cells.append(Cell(folder, short, labels.name, seed, recipe, pictures, steps))
                derived.setdefault((labels.name, short), _flat(recipe_data(found)))
    counts = {c.labels: c.pictures for c in cells}
    for name, count in counts.items():
        if twin := next((other for other in counts if other != name and counts[other] == count), None):
            raise UserError(f"--labels: {name} and {twin} are both {count} pictures here; give one of them")
        said |= dict.fromkeys(_differences(name, {short: derived[name, short] for short in settings["weights"]}))
    return Plan(settings, cells, list(said), several=getattr(every, "targets", None) is not None)


def _recipe(settings: dict[str, Any], weights: str, labels: Labels, seed: int) -> Judged:
    raw = copy.deepcopy(settings["recipe"])
    raw["backbone"]["weights"] = weights
    raw["seed"] = seed
    raw["data"] |= {k: v for k, v in labels.keys.items() if v is not None}
    recipe = parse_recipe(raw, name=Plan.FILE).single
    assert isinstance(recipe, Validated)
    return recipe


def _without_own(raw: dict[str, Any]) -> dict[str, Any]:
    raw["backbone"].pop("weights", None)
    raw.pop("seed", None)
    for key in ("labels_fraction", "labels_per_class"):
        raw["data"].pop(key, None)
    return raw


def _small_batch(recipe: Judged) -> Judged:
    """Listing pictures asks for as many as a batch: how many there are comes first."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": 1})})


def check_weights_fit(plan: Plan, cells: Sequence[Cell]) -> dict[str, str]:
    """Load each weights once before anything trains. Those of timm that cannot be fetched are named, with the reason.

    Raises:
        UserError: for weights that do not fit the recipe's network.
    """
    unfit: dict[str, str] = {}
    for short in dict.fromkeys(c.weights for c in cells):
        cell = next(c for c in cells if c.weights == short)
        tables = build.find_pictures(cell.recipe)
        try:
            build.make_module(build.derive(cell.recipe, tables, 1)[0], tables)
        except UserError as error:
            if plan.settings["weights"][short] != "timm" or "could not fetch" not in str(error):
                raise UserError(f"--weights {short}: {error}") from error
            unfit[short] = str(error)
    return unfit


def _differences(labels: str, derived: dict[str, dict[str, Any]]) -> list[str]:
    """Numbers that the recipe leaves open and that came out differently for some weights: told, since rows then differ in them as well."""
    first, notes = next(iter(derived)), []
    for key in dict.fromkeys(k for flat in derived.values() for k in flat):
        values = {short: flat.get(key) for short, flat in derived.items()}
        if key in TOLD or all(v == values[first] for v in values.values()):
            continue
        told = ", ".join(f"{short} {value}" for short, value in values.items())
        notes.append(f"{labels}: {key} is derived and differs ({told}); set it in the recipe to have it equal")
    return notes


def _folder(name: str) -> str:
    """A name as a folder's.

    >>> _folder("1 %"), _folder("10 a class"), _folder("runs/a b")
    ('1_percent', '10_a_class', 'runs_a_b')
    """
    return re.sub(r"[^\w.-]+", "_", name.replace("%", "percent")).strip("_")
