"""A recipe file to checked settings: merge what it extends, apply `key=value`, split into stages, tell all problems at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from visiontune.errors import UserError, counted, near
from visiontune.recipe.benchmark import BenchmarkRecipe
from visiontune.recipe.problems import Problem, problems_of
from visiontune.recipe.schema import TASKS, TRAININGS, Recipe
from visiontune.recipe.shipped import find_recipe
from visiontune.recipe.yaml_lines import Lines, MissingSpace, YamlError, read_value, read_yaml

# Looks at one stage's raw settings for what types cannot say: missing folders, unknown backbones. (raw) -> [(dotted key, sentence)]
Check = Callable[[dict[str, Any]], list[tuple[str, str]]]


class RecipeError(UserError):
    """All that is wrong with a recipe, one sentence each."""

    def __init__(self, problems: Sequence[Problem], name: str) -> None:
        self.problems = list(problems)
        super().__init__(
            "\n".join([f"{name}: {counted(len(self.problems), 'problem')}, nothing was run", *(f"  {p}" for p in self.problems)])
        )


@dataclass(frozen=True)
class Loaded:
    """A checked recipe file.

    Attributes:
        name: of the file, without its ending.
        stages: recipes by stage name; one named `""` where the file has no stages.
        benchmark: instead of them, where the file trains nothing and measures backbones.
    """

    name: str
    stages: dict[str, Recipe]
    benchmark: BenchmarkRecipe | None = None

    @property
    def staged(self) -> bool:
        return self.benchmark is None and "" not in self.stages

    @property
    def single(self) -> Recipe:
        """Of a file without stages that trains.

        Raises:
            UserError: if it measures backbones.
        """
        if self.benchmark is not None:
            raise UserError(f"{self.name}: is of the task benchmark, which trains nothing; here a recipe is needed that trains")
        return self.stages[""]


def load_recipe(name: str, overrides: Sequence[str] = (), checks: Sequence[Check] = ()) -> Loaded:
    """Load a recipe file (or a shipped one by name), with dotted `key=value` overrides.

    Raises:
        RecipeError: with every problem: dotted key, line, what was got, what is allowed or near.
        UserError: if there is no such file.
    """
    path = find_recipe(name)
    try:
        raw, lines = _read(path, ())
    except YamlError as error:
        raise RecipeError([Problem("", "", str(error))], path.name) from error
    return parse_recipe(raw, lines, overrides, checks, name=path.name)


def _read(path: Path, above: tuple[Path, ...]) -> tuple[Any, Lines]:
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise YamlError(f"{path.name}: not YAML: not a text file") from error
    raw, lines = read_yaml(text, path.name)
    if not isinstance(raw, dict):
        raise YamlError(f"{path.name}: expected `key: value` lines but got {type(raw).__name__}")
    if "extends" not in raw:
        return raw, lines
    base = find_recipe(str(raw.pop("extends")), beside=path)
    if base.resolve() in above:
        raise YamlError(f"{lines[('extends',)]}: extends: {base} extends this file in turn")
    under, under_lines = _read(base, (*above, path.resolve()))
    return merge(under, raw), under_lines | lines


def parse_recipe(
    raw: dict[str, Any], lines: Lines | None = None, overrides: Sequence[str] = (), checks: Sequence[Check] = (), name: str = "recipe"
) -> Loaded:
    """Check settings that are already a dictionary. See `load_recipe`."""
    lines = dict(lines or {})
    problems: list[Problem] = []
    sets = _parse_overrides(overrides, problems)

    if "stages" in raw:
        for path, value in [s for s in sets if s[0][0] == "stages"]:
            _set(raw, path, value)
            lines[path] = "command line"
        raws = _split_stages(raw, lines, [s for s in sets if s[0][0] != "stages"], problems)
    else:
        for path, value in sets:
            _set(raw, path, value)
            lines[path] = "command line"
        raws = {"": raw}

    stages: dict[str, Recipe] = {}
    benchmark: BenchmarkRecipe | None = None
    for stage, settings in raws.items():
        at = ("stages", stage) if stage else ()
        recipe = _validate(settings, at, lines, problems)
        if isinstance(recipe, BenchmarkRecipe):
            benchmark = recipe
        elif recipe is not None:
            stages[stage] = recipe
        for check in checks:
            for key, sentence in check(settings):
                problems.append(_problem(at, key, sentence, lines))
        _check_weights(settings, list(raws)[: list(raws).index(stage)], list(raws), at, lines, problems)
    if problems:
        raise RecipeError(_in_order(problems), name)
    return Loaded(Path(name).stem, stages, benchmark)


def _in_order(problems: list[Problem]) -> list[Problem]:
    def line(problem: Problem) -> int:
        number = problem.where.rpartition(":")[2]
        return int(number) if number.isdigit() else 10**9

    return sorted(dict.fromkeys(problems), key=line)


def _parse_overrides(overrides: Sequence[str], problems: list[Problem]) -> list[tuple[tuple[str, ...], Any]]:
    sets = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(text, "command line", "expected key=value, e.g. optim.lr=1e-3"))
            continue
        try:
            sets.append((tuple(key.strip().split(".")), read_value(value)))
        except MissingSpace as error:
            problems.append(Problem(key.strip(), "command line", str(error).partition(": ")[2]))
    return sets


def _validate(settings: dict[str, Any], at: tuple[str, ...], lines: Lines, problems: list[Problem]) -> Recipe | BenchmarkRecipe | None:
    task = settings.get("task")
    tasks: Mapping[Any, type[BaseModel]] = TRAININGS if at else TASKS
    if task not in tasks:
        got = f"got {task!r}" if "task" in settings else "is missing"
        hint = near(str(task), tasks) if task else ""
        hint = "; a benchmark is a recipe of its own, its `backbones` may name runs" if at and task in TASKS else hint
        problems.append(_problem(at, "task", f"{got}; allowed: {', '.join(tasks)}{hint}", lines))
        return None
    try:
        return tasks[task].model_validate(settings)  # type: ignore[return-value]
    except ValidationError as error:
        problems += problems_of(error, tasks[task], settings, at, lines)
        return None


def _check_weights(
    settings: dict[str, Any], earlier: list[str], stages: list[str], at: tuple[str, ...], lines: Lines, problems: list[Problem]
) -> None:
    backbone = settings.get("backbone")
    if not isinstance(backbone, dict):
        return
    weights = str(backbone.get("weights", "random"))
    if not backbone.get("name") and weights in ("random", "timm"):
        problems.append(_problem(at, "backbone.name", "is missing; a timm name (`python -m visiontune list backbones 'resnet*'`)", lines))
    if weights.startswith("stage:"):
        wanted = weights.removeprefix("stage:")
        if wanted not in earlier:
            if wanted in stages:
                why = f"stage {wanted!r} comes after this one; write it above" if wanted != at[-1] else "a stage cannot start from itself"
            else:
                why = f"there is no stage {wanted!r} before this one; earlier stages: {', '.join(earlier) or 'none'}{near(wanted, earlier)}"
            problems.append(_problem(at, "backbone.weights", why, lines))


def _split_stages(
    raw: dict[str, Any], lines: Lines, sets: list[tuple[tuple[str, ...], Any]], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """Each stage with the keys beside `stages` underneath it and the command line's on top.

    A shared key goes to the stages whose task knows it; one that no stage knows is an error.
    """
    stages = raw["stages"]
    if not isinstance(stages, dict) or not stages or not all(isinstance(s, dict) for s in stages.values()):
        problems.append(_problem((), "stages", "expected stages by name, each with its own settings", lines))
        return {}
    shared = {k: v for k, v in raw.items() if k != "stages"}
    out: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for key, own in stages.items():
        name = str(key)
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(_problem((), f"stages.{name}", "a stage's name is a folder's name: letters, digits, - and _", lines))
        task = own.get("task", shared.get("task"))
        known = set(TRAININGS[task].model_fields) if task in TRAININGS else set(shared)
        merged = merge({k: v for k, v in shared.items() if k in known}, own)
        used |= known
        for path, value in sets:
            if path[0] in known:
                _set(merged, path, value)
                lines[("stages", name, *path)] = "command line"
        for path, where in list(lines.items()):
            if path[0] in shared and path[0] in known:
                lines.setdefault(("stages", name, *path), where)
        out[name] = merged
    keys = [(str(k), lines.get((str(k),), "")) for k in shared] + [(p[0], "command line") for p, _ in sets]
    for key, where in keys:
        if key not in used:
            allowed = sorted({f for t in TRAININGS.values() for f in t.model_fields})
            problems.append(Problem(key, where, f"unknown key, no stage has it{near(key, allowed)}; allowed: {', '.join(allowed)}"))
    return out


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, section by section; a bare method name on top of another method's section replaces it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if key in ("method", "head"):
            below, value = _section(below), _section(value)
            if isinstance(below, dict) and isinstance(value, dict) and value.get("name", below.get("name")) != below.get("name"):
                below = None
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _section(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _set(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        inner = raw.get(key)
        if key in ("method", "head") and isinstance(inner, str):
            inner = {"name": inner}
        if not isinstance(inner, dict):
            inner = {}
        raw[key] = dict(inner)
        raw = raw[key]
    # a section goes on top of what is there, as `extends` and stages do it
    raw[path[-1]] = merge({path[-1]: raw.get(path[-1])}, {path[-1]: value})[path[-1]]


def _problem(at: tuple[str, ...], key: str, sentence: str, lines: Lines) -> Problem:
    path = (*at, *key.split("."))
    where = ""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            where = lines[path[:end]]
            break
    return Problem(".".join(path), where, sentence)
