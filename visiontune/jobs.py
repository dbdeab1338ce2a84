"""A list of (name, recipe): skip what is finished, resume what broke off, run the rest. Stages only make such a list.

Each job is a process of its own: several devices can start their helpers afresh, and memory is given back in between.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visiontune.errors import UserError
from visiontune.recipe import Recipe
from visiontune.recipe.load import Loaded
from visiontune.recipe.yaml_lines import dump_yaml, read_yaml
from visiontune.run import Run, environment, is_first_process, recipe_data


def run_stages(run: Run, loaded: Loaded) -> int:
    """A new staged run."""
    if is_first_process():
        stages = {name: recipe_data(recipe) for name, recipe in loaded.stages.items()}
        dump_yaml({"stages": stages}, run.recipe_file, [])
    return run_jobs(run, loaded.stages, [])


def resume_stages(run: Run, overrides: Sequence[str]) -> int:
    """Go on with a staged run."""
    from visiontune.recipe import parse_recipe

    print(f"run folder: {run.folder}", flush=True)
    raw, lines = read_yaml(run.recipe_file.read_text(), "recipe.yaml")
    return run_jobs(run, parse_recipe(raw, lines, name="recipe.yaml").stages, overrides)


def run_jobs(run: Run, jobs: dict[str, Recipe], overrides: Sequence[str]) -> int:
    """Run the jobs one after another, each in `run`/NAME. Stops at the first that fails and returns its status."""
    results: dict[str, dict[str, Any]] = {}
    for i, (name, recipe) in enumerate(jobs.items(), 1):
        job = Run(run.folder / name)
        if job.finished:
            run.say(f"=== {name} ({i} of {len(jobs)}): finished before")
        else:
            run.say(f"=== {name} ({i} of {len(jobs)}): {recipe.task}")
            if not job.recipe_file.is_file():
                job.folder.mkdir(parents=True, exist_ok=True)
                job.save_recipe(_linked(recipe, run))
                wait_for(job.recipe_file)
            status = _spawn([sys.executable, "-m", "visiontune.fit", "--resume", str(job.folder), *overrides])
            if status:
                run.say(f"stage {name} ended with status {status}; go on with all of it by: python -m visiontune.fit --resume {run.folder}")
                return status
        wait_for(job.result_file)
        results[name] = job.result
    if not is_first_process():
        return 0

    from visiontune.report.page import compare_stages, write_staged_report

    headline, table = compare_stages(results)
    run.save_result({"stages": results})
    write_staged_report(run, results, headline, environment())
    run.say(f"\n{table}\n{headline}\nreport: {run.report_file}\nrun folder: {run.folder}")
    return 0


def wait_for(file: Path, seconds: float = 1800) -> None:
    """Under torchrun and SLURM every process comes here, and the first one alone writes: the others wait for its file.

    Raises:
        UserError: if it does not come.
    """
    until = time.monotonic() + seconds
    while not file.is_file():
        if is_first_process() or time.monotonic() > until:
            raise UserError(f"stages: {file} was not written; see the log beside it")
        time.sleep(0.5)


def _linked(recipe: Recipe, run: Run) -> Recipe:
    """`weights: stage:NAME` as the folder of that stage's weights."""
    found = recipe.model_copy(deep=True)
    if found.backbone.weights.startswith("stage:"):
        found.backbone.weights = str(Run(run.folder / found.backbone.weights.removeprefix("stage:")).backbone)
    return found


def _spawn(command: list[str]) -> int:
    """Run a process to its end; SIGTERM is passed on, so it can save a checkpoint first."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the child as well
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
