"""The run folder: where things lie, what was recorded, what is said on the way.

recipe.yaml  environment.json  log.txt  metrics.csv  broken.csv  tensorboard/
checkpoints/last.ckpt best.ckpt  weights/backbone/ weights/model/  pictures/*.png  report.html  README.md  result.json
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from visiontune.errors import UserError, near, readable, some
from visiontune.recipe import Recipe, parse_recipe
from visiontune.recipe.schema import absolute
from visiontune.recipe.yaml_lines import dump_yaml, read_yaml

PACKAGES = (
    "visiontune", "torch", "torchvision", "timm", "lightning", "albumentations", "opencv-python-headless", "numpy", "scikit-learn",
)  # fmt: skip


class Run:
    """One run's folder. With stages, each stage is a Run in a folder of its name inside this one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.recipe_file = self.folder / "recipe.yaml"
        self.metrics_file = self.folder / "metrics.csv"
        self.broken_file = self.folder / "broken.csv"
        self.result_file = self.folder / "result.json"
        self.report_file = self.folder / "report.html"
        self.card_file = self.folder / "README.md"
        self.pictures = self.folder / "pictures"
        self.last = self.folder / "checkpoints" / "last.ckpt"
        self.best = self.folder / "checkpoints" / "best.ckpt"
        self.backbone = self.folder / "weights" / "backbone"
        self.model = self.folder / "weights" / "model"

    @classmethod
    def create(cls, folder: str | Path) -> "Run":
        """Make the folder.

        Raises:
            UserError: if it is there and not empty.
        """
        run = cls.check_free(folder)
        if is_first_process():
            run.folder.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def check_free(cls, folder: str | Path) -> "Run":
        """A folder that can be made, or is empty.

        Raises:
            UserError: if it is there and not empty.
        """
        run = cls(folder)
        if not is_first_process():  # it has been made by then
            return run
        if run.folder.exists() and not run.folder.is_dir():
            raise UserError(f"--out: {run.folder} is a file; give the name of a folder that is new or empty")
        if run.folder.exists() and any(run.folder.iterdir()):
            resume = f"python -m visiontune.fit --resume {shlex.quote(str(folder))}"
            state = "holds a finished run" if run.finished else "is not empty"
            go_on = "" if run.finished or not run.recipe_file.exists() else f"go on with it by `{resume}`, or "
            raise UserError(
                f"--out: {run.folder} {state}; {go_on}give another folder with --out, or remove it (rm -r {shlex.quote(str(folder))})"
            )
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A folder that holds a run.

        Raises:
            UserError: if it does not; lists the runs that are near.
        """
        run = cls(folder)
        if not run.recipe_file.is_file():
            parent = run.folder.parent
            runs = sorted(p.parent.name for p in parent.glob("*/recipe.yaml")) if parent.is_dir() else []
            there = f"; runs in {parent}: {some(runs)}{near(run.folder.name, runs)}" if runs else ""
            what = "is a file" if run.folder.is_file() else "holds no recipe.yaml" if run.folder.is_dir() else "is not there"
            raise UserError(f"run: {run.folder} {what}, so it is no run folder{there}")
        return run

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.result_file.read_text())

    def stage_runs(self) -> dict[str, "Run"]:
        """Stage name -> its run, in order; empty for a run without stages."""
        raw, _ = read_yaml(self.recipe_file.read_text(), "recipe.yaml")
        return {name: Run(self.folder / name) for name in raw.get("stages", {})}

    def recipe(self, overrides: list[str] | None = None) -> Recipe:
        raw, lines = read_yaml(self.recipe_file.read_text(), "recipe.yaml")
        return parse_recipe(raw, lines, overrides or [], name="recipe.yaml").single

    def save_recipe(self, recipe: Recipe, header: list[str] | None = None) -> None:
        """As this run takes it, with every number."""
        if is_first_process():
            dump_yaml(recipe_data(recipe), self.recipe_file, header or [])

    def save_plan(self, recipe: Recipe) -> None:
        """Of a run that has not begun: what it leaves open follows when it does."""
        if is_first_process():
            dump_yaml(given_data(recipe), self.recipe_file, [])

    # ---------------------------------------------------------------- words

    def say(self, text: str) -> None:
        """Print a line and keep it in `log.txt`; only the first of several processes does."""
        if not is_first_process():
            return
        text = readable(text)
        print(text, flush=True)
        with (self.folder / "log.txt").open("a") as log:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            log.writelines(f"{stamp} {line}\n" for line in text.splitlines() or [""])

    def save_environment(self, more: dict[str, Any]) -> None:
        if is_first_process():
            (self.folder / "environment.json").write_text(json.dumps(environment() | more, indent=2) + "\n")

    def save_result(self, result: dict[str, Any]) -> None:
        """Written last and at once: its presence means that the run is finished."""
        if is_first_process():
            beside = self.result_file.with_suffix(".tmp")
            beside.write_text(json.dumps(result, indent=2) + "\n")
            beside.replace(self.result_file)


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain YAML data with absolute paths: all keys but those that are null without having been given so."""
    return _with_nulls(absolute(recipe).model_dump(mode="json", exclude_none=True), given_data(recipe))


def given_data(recipe: Recipe) -> dict[str, Any]:
    """The keys that were given, so that what reads them finds the same ones left open."""
    return absolute(recipe).model_dump(mode="json", exclude_unset=True)


def _with_nulls(full: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if value is None:
            full[key] = None
        elif isinstance(value, dict) and isinstance(full.get(key), dict):
            _with_nulls(full[key], value)
    return full


def is_first_process() -> bool:
    """Whether this is the first of all processes, also before anything distributed has started."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def environment() -> dict[str, Any]:
    """Machine and versions, for people who compare numbers. Imports nothing heavy by itself."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "command": " ".join(shlex.quote(a) for a in sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "versions": versions,
    }
    if "torch" in sys.modules:
        import torch

        found["threads"] = torch.get_num_threads()
        found["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return found


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
