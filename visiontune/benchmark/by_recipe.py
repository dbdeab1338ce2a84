"""`task: benchmark`: a recipe as the arguments of the command that it stands for."""

import json
from pathlib import Path
from typing import Any

from visiontune.benchmark import recipes
from visiontune.benchmark.against import read_table
from visiontune.benchmark.command import SETTINGS, benchmark
from visiontune.benchmark.names import find_candidates
from visiontune.errors import UserError, counted
from visiontune.recipe import BenchmarkRecipe
from visiontune.recipe.detection import BoxSource
from visiontune.recipe.yaml_lines import dump_yaml
from visiontune.run import Run

RECIPE = "benchmark.yaml"  # in the folder, as it was given
# Keys of `data` that the command has options for; the others are keys of a classify recipe, as its `key=value` are.
OPTIONS = ("train", "val", "image_size")


def run_recipe(recipe: BenchmarkRecipe, *, out: str, dry_run: bool = False) -> int:
    """Measure, or go on with it. Returns the exit status.

    Raises:
        UserError: in one sentence.
    """

    def keep(run: Run) -> None:
        lines = ["go on with it by: python -m visiontune.fit THIS_FILE --out FOLDER"]
        dump_yaml(_absolute(recipe), run.folder / RECIPE, lines)

    return benchmark(**arguments(recipe), out=out, dry_run=dry_run, keep=keep)


def arguments(recipe: BenchmarkRecipe) -> dict[str, Any]:
    """Of `benchmark()`."""
    size, given = recipe.data.image_size, _absolute(recipe)["data"]
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in given.items() if key not in OPTIONS]
    if recipe.seed:
        overrides.append(f"seed={recipe.seed}")
    places: dict[str, Any] = {}
    for key, source in (("data", recipe.data.train), ("val", recipe.data.val)):
        places[key] = source
        if isinstance(source, BoxSource):
            places[key] = source.boxes
            overrides += [f"{'val.' * (key == 'val')}{word}={path}" for word, path in source if path and word != "boxes"]
    return places | {
        "names": recipe.backbones, "weights": recipe.weights, "probes": recipe.probe or None, "epochs": recipe.epochs,
        "shots": recipe.shots, "image_size": list(size) if isinstance(size, tuple) else size, "device": recipe.device,
        "precision": recipe.precision, "compiled": recipe.compile, "training": recipe.training, "seconds": recipe.seconds,
        "overrides": overrides, "fresh": recipe.fresh, "compare_with": recipe.against,
    }  # fmt: skip


def check_recipe(recipe: BenchmarkRecipe, name: str) -> int:
    """Tell what is known against its backbones before they are measured; returns 1 if there is something.

    Raises:
        UserError: if none of them can be measured, they cannot be judged so, or there is no such table to compare with.
    """
    if recipe.against is not None:
        read_table(recipe.against, key="against")
    asked = arguments(recipe)
    boxes, _ = recipes.split_boxes(asked["data"], asked["val"], asked["overrides"])
    probes = recipes.chosen_probes(asked["probes"], asked["data"], boxes=bool(boxes))
    if recipe.epochs is not None and not set(probes) & set(recipes.TRAININGS):
        raise UserError(f"epochs: got {recipe.epochs}, but nothing is trained; add finetune or detect to probe, or leave it out")
    candidates = find_candidates(recipe.backbones, recipe.weights)
    wrong = [f"  {c.name}: {c.problem}" for c in candidates if c.problem]
    all_of_them = counted(len(candidates), "backbone")
    told = f"{len(wrong)} of {all_of_them} cannot be measured" if wrong else f"sound, {all_of_them}"
    print("\n".join([f"{name}: {told}", *wrong]))
    return int(bool(wrong))


def refuse_resume(folder: str) -> None:
    """A benchmark goes on when it is given again; this says so.

    Raises:
        UserError: if the folder holds one.
    """
    if (Path(folder) / SETTINGS).is_file():
        recipe, again = Path(folder) / RECIPE, "the command that began it, with the same --out,"
        if recipe.is_file():
            again = f"`python -m visiontune.fit {recipe} --out {folder}`"
        raise UserError(f"--resume: {folder} is a benchmark; {again} goes on with it")


def _absolute(recipe: BenchmarkRecipe) -> dict[str, Any]:
    """The keys that were given; paths mean the same from any folder, and nothing is measured twice for having been once."""
    found = recipe.model_dump(mode="json", exclude_unset=True, exclude={"fresh"})
    found["backbones"] = [str(Path(name).absolute()) if Path(name).exists() else name for name in found["backbones"]]
    boxes = [(source, key) for source in found["data"].values() if isinstance(source, dict) for key in ("images", "boxes", "split")]
    for section, key in ((found["data"], "train"), (found["data"], "val"), (found["data"], "root"), (found, "against"), *boxes):
        value = section.get(key)
        if isinstance(value, str) and not value.startswith("sample:"):
            section[key] = str(Path(value).absolute())
    return found
