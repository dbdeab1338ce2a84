"""The whole run, read top to bottom. (A recipe of `task: benchmark` trains nothing and is handed to that room.)

python -m visiontune.fit RECIPE [key=value ...] [--out RUN] [--dry-run]
python -m visiontune.fit --resume RUN [data.workers=... trainer.devices=...]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch, Lightning and pydantic come when they are needed: --help is instant
    from visiontune.build import Prepared
    from visiontune.run import Run

RESUMABLE = (
    "data.workers", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator",
    "trainer.accumulate_grad_batches", "checkpoint_minutes", "data.max_broken",
)  # fmt: skip


# Read by torch when it first allocates: large pages for large tensors. Without them a CPU spends more time on mapping a batch's memory
# than on normalising it: 17.7 against 4.7 ms for 64 pictures of 224 pixels, measured on two cores without a GPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 2 a mistake of the user's, 130 and 143 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m visiontune.fit", description="Train what a recipe says: pretraining, fine-tuning, or both in stages."
    )
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe (quickstart, pretrain/mae)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the recipe's, e.g. optim.lr=1e-3 epochs=10")
    parser.add_argument("--out", metavar="RUN", help="folder of the run (default: runs/RECIPE); must be new or empty")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, train nothing")
    args = parser.parse_intermixed_args(argv)

    from visiontune.errors import UserError

    if parent := os.environ.pop("VISIONTUNE_JOB_OF", ""):  # a job: one that outlived a killed list would be run twice when the list goes on
        from visiontune.data.parallel import die_with

        die_with(int(parent))

    try:
        if args.resume:
            overrides = ([args.recipe] if args.recipe else []) + args.overrides
            return resume(args.resume, overrides, dry_run=args.dry_run)
        if not args.recipe:
            parser.print_usage(sys.stderr)
            print(f"fit: expected a recipe, e.g. `{parser.prog} quickstart`", file=sys.stderr)
            return 2
        return start(args.recipe, args.overrides, out=args.out, dry_run=args.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; go on with `python -m visiontune.fit --resume RUN`, with a benchmark by the same command", file=sys.stderr)
        return 130


def start(name: str, overrides: Sequence[str], *, out: str | None, dry_run: bool) -> int:
    """A new run from a recipe."""
    from visiontune import build
    from visiontune.checks import CHECKS
    from visiontune.jobs import run_stages
    from visiontune.recipe import load_recipe
    from visiontune.run import Run

    loaded = load_recipe(name, overrides, checks=CHECKS)
    folder = out or f"runs/{loaded.name}"
    if loaded.benchmark is not None:
        from visiontune.benchmark.by_recipe import run_recipe

        return run_recipe(loaded.benchmark, out=folder, dry_run=dry_run)
    # All stages are built once before anything is written or trained: a mistake in the last one must not cost the first one's hours.
    prepared = build.rehearse(loaded.stages)
    if dry_run:
        Run.check_free(folder)
        for stage, found in prepared.items():
            print("\n".join([f"--- {stage or loaded.name}", *found.notes]))
        print(f"dry run: the recipe is sound; without --dry-run it would be run in {Path(folder).absolute()}")
        return 0
    run = Run.create(folder)
    announce(run)
    if loaded.staged:
        prepared.clear()  # each stage is a process of its own and needs the memory
        return run_stages(run, loaded)
    return fit(run, prepared[""])


def resume(folder: str, overrides: Sequence[str], *, dry_run: bool) -> int:
    """Go on with a run, from its last checkpoint (or from the beginning, if it broke off before the first)."""
    from visiontune import build
    from visiontune.benchmark.by_recipe import refuse_resume
    from visiontune.errors import UserError
    from visiontune.jobs import resume_stages
    from visiontune.run import Run

    refuse_resume(folder)
    check_resumable(overrides, f"python -m visiontune.fit RECIPE backbone.weights={folder}")
    run = Run.open(folder)
    if run.finished:
        raise UserError(
            f"--resume: {run.folder} is finished. To train anew from its weights: "
            f"python -m visiontune.fit RECIPE backbone.weights={folder} --out NEW_RUN"
        )
    if run.stage_runs():
        return resume_stages(run, overrides)
    begun, recipe = run.recipe().trainer.strategy, run.recipe(list(overrides))
    if recipe.trainer.strategy == "fsdp" != begun and run.last.is_file():  # Lightning would give parameters each other's moments
        what = f"this run began with {begun}, whose optimiser's state cannot be shared out"
        raise UserError(f"trainer.strategy: got fsdp, but {what}; go on without it, or train anew from backbone.weights={folder}")
    prepared = build.prepare(recipe, resumed=run.last.is_file())
    if dry_run:
        print("\n".join(prepared.notes))
        return 0
    announce(run)
    return fit(run, prepared)


def check_resumable(overrides: Sequence[str], anew: str) -> None:
    """A resumed run keeps its recipe but for what makes no difference to its numbers.

    Raises:
        UserError: for any other key; `anew` is the command that trains from the weights instead.
    """
    from visiontune.errors import UserError, near

    for text in overrides:
        key = text.partition("=")[0]
        if key not in RESUMABLE:
            allowed = f"allowed to change: {', '.join(RESUMABLE)}{near(key, RESUMABLE)}"
            raise UserError(f"{key}: a resumed run keeps its recipe; {allowed}. To train anew: {anew}")


def announce(run: "Run") -> None:
    from visiontune.run import is_first_process

    if is_first_process():
        print(f"run folder: {run.folder}", flush=True)


def fit(run: "Run", prepared: "Prepared", *, again: bool = False) -> int:
    """Train one prepared recipe in its run folder, export the weights, write the report.

    Where memory is too short for its first steps it begins again, with smaller batches.
    """
    import lightning as L
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from visiontune import build
    from visiontune.callbacks.checkpoints import Checkpoints, Reseed
    from visiontune.callbacks.embedding import EmbeddingWatch
    from visiontune.callbacks.memory import LargestBatch
    from visiontune.callbacks.metrics import MetricsCsv, ResumeMetrics
    from visiontune.callbacks.pictures import Pictures
    from visiontune.callbacks.probe import Probe
    from visiontune.callbacks.progress import Cost, peak_memory_bytes, progress_callbacks
    from visiontune.data.detection.datamodule import BoxData
    from visiontune.finish import draw_views, export_weights, first_pictures, load_kept, measure_kept, result_of, silence
    from visiontune.recipe import Validated
    from visiontune.report import embedding, figures, page
    from visiontune.run import environment

    silence()
    resumed, began = run.last.is_file(), (run.folder / "environment.json").is_file()

    recipe, tables, module, notes = prepared.recipe, prepared.tables, prepared.module, prepared.notes
    data = build.make_data(recipe, tables, run.broken_file)
    steps, epochs = data.steps_per_epoch, recipe.epochs

    # ---------------------------------------------------------------- what watches the run
    metrics = MetricsCsv(run.metrics_file)
    cost = Cost()
    checkpoints = Checkpoints(
        run.last.parent,
        steps_per_epoch=steps,
        minutes=recipe.checkpoint_minutes,
        monitor=f"val/{recipe.monitor}" if isinstance(recipe, Validated) else None,
        patience=recipe.patience if isinstance(recipe, Validated) else None,
        pictures=tables.fingerprint(),
        say=run.say,
    )
    callbacks: list[L.Callback] = [Reseed(recipe.seed), ResumeMetrics(metrics), cost, checkpoints]
    callbacks += progress_callbacks(run.say, total_steps=steps * epochs, steps_per_epoch=steps, batch_size=recipe.data.batch_size)
    if hasattr(module, "pictures"):
        callbacks.append(Pictures(first_pictures(data, 8, clean=True), run.pictures, epochs=epochs, draw=figures.picture_rows))
    if isinstance(data, BoxData):
        at_once = recipe.data.batch_size // recipe.trainer.accumulate_grad_batches
        callbacks.append(LargestBatch(data.largest_size, at_once, data.most_boxes, say=run.say))
    watch = probe = None
    if recipe.task == "pretrain":
        few = build.some_pictures(recipe, tables.train)
        watch = EmbeddingWatch(few, run.pictures, epochs=epochs, say=run.say, draw=embedding.draw)
        callbacks.insert(0, watch)
    if recipe.task == "pretrain" and recipe.probe and tables.probe:
        loaders = [build.clean_loader(recipe, t, recipe.probe.batch_size) for t in tables.probe]
        probe = Probe(*loaders, every=recipe.probe.every, epochs=epochs, seed=recipe.seed, say=run.say, on_broken=data.broken.note)
        callbacks.insert(0, probe)

    # ---------------------------------------------------------------- train
    trainer = build.make_trainer(recipe, run.folder, callbacks=callbacks, loggers=[metrics, *build.tensorboard(run.folder)])
    if trainer.strategy.root_device.type == "cpu":
        build.keep_freed_memory()
    build.check_split(recipe, trainer.world_size)
    build.sync_batch_norms(module, recipe, trainer)
    if not resumed:
        run.metrics_file.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        run.save_recipe(recipe, header=notes)
    run.say("\n".join(notes))
    run.save_environment(environment())
    if resumed:
        run.say(f"resumed from {run.last}")
    elif began and not again:
        run.say("this run was stopped before its first checkpoint: it begins anew")
    elif not began and trainer.is_global_zero:
        draw_views(data, getattr(module, "class_names", ()), run.pictures)
    smaller = None
    try:
        trainer.fit(module, data, ckpt_path=str(run.last) if resumed else None)
    except SystemExit as stop:  # what Lightning makes of SIGTERM, and of Ctrl-C
        run.say(f"go on with it by: python -m visiontune.fit --resume {run.folder}")
        return 143 if isinstance(stop, SIGTERMException) else 130
    except RuntimeError as error:
        if not build.is_out_of_memory(error):
            raise
        smaller = build.with_smaller_batches(recipe, module, trainer, run.folder, steps=trainer.global_step - checkpoints.first_step)
    finally:
        data.close()
    if smaller is not None:
        run.say(smaller.words)
        build.free_memory()
        return fit(run, build.prepare(smaller.recipe, resumed=run.last.is_file()), again=True)
    if not trainer.is_global_zero:
        return 0

    # ---------------------------------------------------------------- what it leaves
    plain = recipe.model_copy(update={"compile": False})  # one look at the validation pictures is not worth compiling for
    kept = load_kept(build.make_module(plain, tables, resumed=True)[0], run.best if checkpoints.best is not None else run.last)
    answers, scores = measure_kept(kept, run, data, trainer.strategy.root_device)
    export_weights(kept, run, data.reading, answers, shown_from=scores.get("threshold"))
    result = result_of(recipe, module, tables, trainer.global_step, checkpoints, probe, watch, cost, peak_memory_bytes()) | scores
    data.broken.refresh()
    if data.broken.causes:
        result["broken_pictures"] = len(data.broken.causes)
        run.say(f"pictures that could not be read: {len(data.broken.causes)} ({data.broken.summary()}); listed in {run.broken_file}")
    run.save_result(result)
    page.write_report(run, notes, environment(), steps_per_epoch=steps)
    run.say(page.summary(result))
    run.say(f"report: {run.report_file}\nrun folder: {run.folder}")
    return 0


def command_line() -> Any:
    sys.exit(main())


if __name__ == "__main__":
    command_line()
