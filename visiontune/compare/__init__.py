"""One classify recipe over weights, numbers of labels and seeds, and what the weights bring: the whole story, read top to bottom."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visiontune.callbacks.progress import clock
from visiontune.compare import table
from visiontune.compare.labels import MIN_STEPS
from visiontune.compare.page import write_page
from visiontune.compare.places import make_slots
from visiontune.compare.plan import Cell, Plan, check_weights_fit, load_plan, make_plan
from visiontune.errors import UserError, counted
from visiontune.jobs import Outcome, run_jobs
from visiontune.recipe import Recipe
from visiontune.run import Run

STOPPED = 143  # what a run that SIGTERM ended returns

__all__ = ["MIN_STEPS", "Plan", "compare", "make_plan", "resume"]


def compare(
    recipe: str,
    *,
    weights: Sequence[str],
    labels: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    out: str | None = None,
    jobs: int | None = None,
    devices: Sequence[str] = (),
    min_steps: int = MIN_STEPS,
    dry_run: bool = False,
) -> int:
    """A new comparison, or the same command again, which goes on with what it left. Returns the exit status: 1 if a run failed.

    Args:
        recipe: file or shipped name of one classify recipe.
        weights: `random`, `timm`, files, run folders; the first is what the others are compared with.
        labels: `1%`, or a number of pictures of each class.
        seeds: of everything random: which labels, their order, the head's first weights.
        overrides: `key=value` on top of the recipe.
        out: its folder; default: runs/compare_RECIPE.
        jobs: runs at a time; default: one for each CUDA device, else one.
        devices: numbers of CUDA devices to share; default: all.
        min_steps: fewest optimiser steps of a run with few labels.
        dry_run: list the runs and stop.

    Raises:
        UserError: in one sentence, before anything runs.
    """
    plan = make_plan(recipe, weights=weights, labels=labels, seeds=seeds, overrides=overrides, min_steps=min_steps)
    run = Run(out or f"runs/compare_{Path(recipe).stem}")
    if (run.folder / Plan.FILE).is_file():
        if differing := plan.differs_from(load_plan(run.folder)):
            raise UserError(
                f"--out: {run.folder} holds a comparison of another recipe ({differing}); give another folder, or go on with that one: "
                f"python -m visiontune compare --resume {shlex.quote(str(run.folder))}"
            )
    else:
        Run.check_free(run.folder)
    return _run(run, plan, jobs=jobs, devices=devices, dry_run=dry_run)


def resume(
    folder: str, *, overrides: Sequence[str] = (), jobs: int | None = None, devices: Sequence[str] = (), dry_run: bool = False
) -> int:
    """Go on with a comparison: finished runs stay, those that broke off are resumed, those that failed are tried again."""
    return _run(Run(folder), load_plan(Path(folder)), overrides, jobs=jobs, devices=devices, dry_run=dry_run)


def _run(run: Run, plan: Plan, overrides: Sequence[str] = (), *, jobs: int | None, devices: Sequence[str], dry_run: bool) -> int:
    left = [cell for cell in plan.cells if not Run(run.folder / cell.name).finished]
    lines = [*plan.notes, *_listing(run, plan, left)]
    new = [cell for cell in left if not Run(run.folder / cell.name).last.is_file()]
    unfit = check_weights_fit(plan, new)
    lines += [f"{name} is left out, the others go on: {reason}" for name, reason in unfit.items()]
    slots, why = make_slots(jobs, devices, plan.cells[0].recipe)
    if dry_run:
        print("\n".join([*lines, f"dry run: nothing was trained; without --dry-run it would be in {run.folder}"]))
        return 0
    run.folder.mkdir(parents=True, exist_ok=True)
    plan.save(run.folder / Plan.FILE)
    print(f"comparison folder: {run.folder}", flush=True)
    run.say("\n".join([*lines, why]))
    watch = Watch(run.say, plan)
    outcomes: dict[str, Outcome] = {}

    def ended(name: str, outcome: Outcome) -> None:
        outcomes[name] = outcome
        watch.ended(name, outcome)
        table.write_rows(run.folder / "compare.csv", table.rows_of(plan, outcomes, unfit))  # to look at while the others run

    recipes: dict[str, Recipe] = {c.name: c.recipe for c in plan.cells if c not in new or c.weights not in unfit}
    run_jobs(run, recipes, overrides, slots=slots, independent=True, ended=ended)
    rows = table.rows_of(plan, outcomes, unfit)
    if watch.stopped or any(row["status"] == table.WAITING for row in rows):
        run.say(f"stopped; go on by: python -m visiontune compare --resume {run.folder}")
        return STOPPED
    return _finish(run, plan, rows)


def _finish(run: Run, plan: Plan, rows: list[dict[str, Any]]) -> int:
    """`compare.csv`, the table, the plot and the page, from all there is."""
    table.write_rows(run.folder / "compare.csv", rows)
    summary = table.summarise(plan, rows)
    failed = [row for row in rows if row["status"] == table.FAILED]
    write_page(run, plan, summary, rows)
    run.say(f"\n{table.accuracies_text(summary)}\n\n" + "\n".join(summary.sentences))
    if failed:
        run.say("\n".join(f"failed: {line}" for line in table.failures(rows)))
        run.say(f"try {'it' if len(failed) == 1 else 'them'} again by: python -m visiontune compare --resume {run.folder}")
    else:
        run.save_result({"comparison": summary.for_machines()})
    run.say(f"report: {run.report_file}\ncomparison folder: {run.folder}")
    return 1 if failed else 0


def _listing(run: Run, plan: Plan, left: list[Cell]) -> list[str]:
    """What will be run, in few lines: one for each number of labels."""
    lines = [
        f"{counted(len(plan.cells), 'run')}: {', '.join(plan.weights)} x {', '.join(plan.labels)} of the labels x "
        f"{counted(len(plan.seeds), 'seed')}; {counted(len(plan.cells) - len(left), 'run')} finished before"
    ]
    for labels in plan.labels:
        cells = [c for c in plan.cells if c.labels == labels]
        steps = sorted({c.steps for c in cells})
        told = f"{steps[0]:,} to " if len(steps) > 1 else ""
        pictures, last = counted(cells[0].pictures, "labelled picture", ","), counted(steps[-1], "step", ",")
        lines.append(f"  {labels}: {pictures}, {counted(len(cells), 'run')} of {told}{last}")
    rate = [(c.steps, r["seconds"]) for c in plan.cells if (r := _result(run, c))]
    if rate and left:
        per_step = sum(seconds for _, seconds in rate) / max(1, sum(steps for steps, _ in rate))
        lines.append(f"about {clock(per_step * sum(c.steps for c in left))} left, one run at a time, by the finished ones")
    return lines


def _result(run: Run, cell: Cell) -> dict[str, Any] | None:
    job = Run(run.folder / cell.name)
    return job.result if job.finished else None


@dataclass
class Watch:
    """Tells of each run as it ends, and how long the others will take by the steps that were made."""

    say: Callable[[str], None]
    plan: Plan
    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    todo: set[str] = field(default_factory=set)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.todo = {cell.name for cell in self.plan.cells}

    def ended(self, name: str, outcome: Outcome) -> None:
        self.todo.discard(name)
        if outcome.before:
            return
        if outcome.status:
            self.say(f"    {name}: {outcome.reason}")
            self.stopped |= outcome.status == STOPPED
            return
        cells = {cell.name: cell for cell in self.plan.cells}
        self.steps += cells[name].steps
        rate = (time.monotonic() - self.began) / self.steps
        left = clock(rate * sum(cells[n].steps for n in self.todo))
        about = f"; about {left} left for {counted(len(self.todo), 'run')}" if self.todo else ""
        scored = table.score(outcome.result, self.plan.metric)
        value = f"{100 * scored[0]:.1f} %" if scored else "n/a"
        self.say(f"    {name}: {table.told(self.plan.metric)} {value}, {clock(outcome.result['seconds'])}{about}")
