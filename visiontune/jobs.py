"""A list of (name, recipe): skip what is finished, resume what broke off, run the rest. Stages and comparisons only make such a list.

Each job is a process of its own: several devices can start their helpers afresh, and memory is given back in between. Jobs that have
nothing to do with each other run side by side in slots, each with a device or a share of the cores.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from visiontune.errors import UserError
from visiontune.recipe import Recipe
from visiontune.recipe.load import Loaded
from visiontune.recipe.yaml_lines import dump_yaml, read_yaml
from visiontune.run import Run, environment, given_data, is_first_process

CONSOLE = "console.txt"


@dataclass(frozen=True)
class Slot:
    """Where one job at a time runs.

    Attributes:
        environment: variables of its processes, e.g. `CUDA_VISIBLE_DEVICES`.
        overrides: what a job takes for its place alone, e.g. `data.workers=0`.
    """

    environment: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: of its process; 0: finished.
        result: the content of its `result.json`; empty unless finished.
        reason: why it is not finished, in a sentence.
        before: it was finished already.
    """

    status: int
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    before: bool = False


def run_stages(run: Run, loaded: Loaded) -> int:
    """A new staged run."""
    if is_first_process():
        stages = {name: given_data(recipe) for name, recipe in loaded.stages.items()}
        dump_yaml({"stages": stages}, run.recipe_file, [])
    return _stages(run, loaded.stages, [])


def resume_stages(run: Run, overrides: Sequence[str]) -> int:
    """Go on with a staged run."""
    from visiontune.recipe import parse_recipe

    print(f"run folder: {run.folder}", flush=True)
    raw, lines = read_yaml(run.recipe_file.read_text(), "recipe.yaml")
    return _stages(run, parse_recipe(raw, lines, name="recipe.yaml").stages, overrides)


def _stages(run: Run, stages: dict[str, Recipe], overrides: Sequence[str]) -> int:
    """One after another, each in `run`/NAME. A later one needs the earlier ones: the first that fails ends all, with its status."""
    outcomes = run_jobs(run, stages, overrides)
    for name, outcome in outcomes.items():
        if outcome.status:
            run.say(f"stage {name} {outcome.reason}; go on with all of it by: python -m visiontune.fit --resume {run.folder}")
            return outcome.status
    if not is_first_process():
        return 0

    from visiontune.report.page import compare_stages, write_staged_report

    results = {name: outcome.result for name, outcome in outcomes.items()}
    headline, table = compare_stages(results)
    run.save_result({"stages": results})
    write_staged_report(run, results, headline, environment())
    run.say(f"\n{table}\n{headline}\nreport: {run.report_file}\nrun folder: {run.folder}")
    return 0


def run_jobs(
    run: Run,
    jobs: dict[str, Recipe],
    overrides: Sequence[str] = (),
    *,
    slots: Sequence[Slot] = (Slot(),),
    independent: bool = False,
    ended: Callable[[str, Outcome], None] = lambda name, outcome: None,
) -> dict[str, Outcome]:
    """Run the jobs in their order, each in `run`/NAME, as many at a time as there are slots.

    SIGTERM is passed on, so that every job saves a checkpoint, and no other one begins; so is Ctrl-C, which the terminal sends to all.

    Args:
        run: the folder around them.
        jobs: by name, which may be a path.
        overrides: what a resumed run may change, for all of them.
        slots: where they run; jobs in several speak into `NAME/console.txt` instead of all at once.
        independent: a job that fails does not end the others.
        ended: told of each job as it ends.

    Returns:
        How each ended; jobs that never began are not in it.
    """
    todo = _Queue(run, jobs, independent=independent)
    outcomes: dict[str, Outcome] = {}
    running: dict[int, tuple[str, subprocess.Popen]] = {}
    stopped = False

    def stop(*signalled: Any) -> None:
        nonlocal stopped
        stopped = True
        for _, process in running.values():
            process.terminate()
        if callable(before):  # whoever made the list may have more to stop
            before(*signalled)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            for name, process in [job for job in running.values() if job[1].poll() is not None]:
                outcomes[name] = _outcome(Run(run.folder / name), process.returncode)
                running = {i: job for i, job in running.items() if job[0] != name}
                ended(name, outcomes[name])
                stopped |= not independent and process.returncode != 0
            free = next((i for i in range(len(slots)) if i not in running), None)
            if not stopped and free is not None and (begins := todo.next()) is not None:
                job = Run(run.folder / begins)
                if job.finished:
                    outcomes[begins] = Outcome(0, job.result, before=True)
                    ended(begins, outcomes[begins])
                else:
                    running[free] = begins, _start(job, [*overrides, *slots[free].overrides], slots[free], quiet=independent)
            elif not running:
                return outcomes
            else:
                time.sleep(0.05)
    except BaseException as error:
        for _, process in running.values():
            if not isinstance(error, KeyboardInterrupt):  # the terminal sent that to the jobs as well
                process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Queue:
    """Names in order, each said and written down when its turn comes."""

    def __init__(self, run: Run, jobs: dict[str, Recipe], *, independent: bool) -> None:
        self.run, self.jobs, self.names, self.quiet = run, jobs, iter(enumerate(jobs, 1)), independent

    def next(self) -> str | None:
        i, name = next(self.names, (0, None))
        if name is None:
            return None
        job, recipe = Run(self.run.folder / name), self.jobs[name]
        if not job.finished:
            self.run.say(f"=== {name} ({i} of {len(self.jobs)}): {recipe.task}")
            if not job.recipe_file.is_file():
                job.folder.mkdir(parents=True, exist_ok=True)
                job.save_plan(_linked(recipe, self.run))
                wait_for(job.recipe_file)
        elif not self.quiet:
            self.run.say(f"=== {name} ({i} of {len(self.jobs)}): finished before")
        return name


def command(job: Run, overrides: Sequence[str]) -> list[str]:
    """What a job is: a run that is gone on with, from its beginning if there is no checkpoint."""
    return [sys.executable, "-m", "visiontune.fit", "--resume", str(job.folder), *overrides]


def _start(job: Run, overrides: Sequence[str], slot: Slot, *, quiet: bool) -> subprocess.Popen:
    console: IO[bytes] | None = (job.folder / CONSOLE).open("wb") if quiet else None
    try:
        environment = os.environ | {"VISIONTUNE_JOB_OF": str(os.getpid())} | slot.environment
        return subprocess.Popen(command(job, overrides), env=environment, stdout=console, stderr=subprocess.STDOUT if quiet else None)
    finally:
        if console is not None:
            console.close()


def _outcome(job: Run, status: int) -> Outcome:
    if status == 0:
        wait_for(job.result_file)
        return Outcome(0, job.result)
    return Outcome(status, reason=reason_of(job.folder / CONSOLE, status))


def reason_of(console: Path, status: int) -> str:
    """The last error that a job told of, else its status."""
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    lines = [line.strip() for line in console.read_text(errors="replace").splitlines() if line.strip()] if console.is_file() else []
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if told:
        return told[-1]
    traceback = any(line.startswith("Traceback") for line in lines)
    return f"{how}: {lines[-1]}" if traceback else how


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
