"""Which backbone, with which weights, on these pictures and this machine: the whole story, read top to bottom."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from visiontune import build
from visiontune import probe as probing
from visiontune.benchmark import recipes, table
from visiontune.benchmark.against import RESULTS, Table, against, read_table
from visiontune.benchmark.child import PARTS
from visiontune.benchmark.loop import Loop
from visiontune.benchmark.machine import identity
from visiontune.benchmark.names import Candidate, again, find_candidates, told_apart
from visiontune.benchmark.page import write_page
from visiontune.benchmark.steps import PRECISIONS
from visiontune.errors import UserError, counted, near, some
from visiontune.predict.loading import devices
from visiontune.run import Run

SETTINGS = "benchmark.json"
# Of the settings, those that another command into the same folder may change: what depends on them is measured again.
MAY_CHANGE = ("probes", "shots", "epochs", "seconds", "windows", "parts")


def benchmark(
    data: str,
    *,
    names: Sequence[str],
    weights: str = "timm",
    val: str | float | None = None,
    probes: Sequence[str] | None = None,
    shots: Sequence[int] = (1, 5, 10),
    epochs: int | None = None,
    image_size: int | list[int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    training: bool = True,
    seconds: float = 1.0,
    windows: int = 7,
    overrides: Sequence[str] = (),
    out: str | None = None,
    fresh: bool = False,
    compare_with: str | None = None,
    keep: Callable[[Run], None] = lambda run: None,
    dry_run: bool = False,
) -> int:
    """A new benchmark, or the same command again, which goes on with what it left. Returns the exit status: 1 if a backbone failed.

    Args:
        data: labelled pictures, as `probe` takes them, or annotations of boxes, with `images=FOLDER` among `overrides`.
        names: timm's names and wildcards, run folders, exported folders and files.
        weights: of timm's names: `timm` (fetched) or `random`.
        val: pictures to score on, or a share to set aside; likewise.
        probes: which of `probe`'s, and `finetune`; of boxes `detect`. None: `knn` and `linear`, or `detect`.
        shots: labelled pictures of each class for the probe `few`.
        epochs: of `finetune` and `detect`, for all alike; None: few, by the number of pictures.
        image_size: pixels of a side, or height and width, for all; None: as each one's weights were made.
        device: `auto` (the fastest), `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: of what is timed, as a recipe's `trainer.precision`; embeddings are always computed in fp32.
        compiled: whether steps are timed by torch.compile, too, block by block.
        training: whether optimiser steps are timed.
        seconds: shortest window of a timing.
        windows: how many.
        overrides: more `key=value` of a classify recipe, or of a detect recipe.
        out: its folder; default: runs/benchmark.
        fresh: measure again what is there.
        compare_with: a results.csv, or the folder, of another benchmark.
        keep: told of the folder before anything is measured.
        dry_run: check everything, list the backbones, measure and write nothing.

    Raises:
        UserError: in one sentence, before anything is measured.
    """
    boxes, overrides = recipes.split_boxes(data, val, overrides)
    probes = recipes.chosen_probes(probes, data, boxes=bool(boxes))
    frozen = [probe for probe in probes if probe in probing.PROBES]
    probing.check_probes(frozen, shots)
    if not (seconds > 0 and windows > 0):
        raise UserError(f"--seconds: got {seconds:g} of {windows} windows; expected numbers above 0")
    old = read_table(compare_with, key="--against") if compare_with else None
    place = _device(device)
    if precision not in ("auto", *PRECISIONS):
        raise UserError(f"--precision: got {precision!r}; allowed: auto, {', '.join(PRECISIONS)}{near(precision, PRECISIONS)}")
    chosen, why = build.auto_precision(place.type) if precision == "auto" else (precision, "as asked")
    candidates = find_candidates(names, weights)
    about: dict[str, Any] = {"data": _absolute(data), "val": _absolute(val), "image_size": image_size, "overrides": list(overrides)}
    about |= {"boxes": boxes} if boxes else {}
    about["device"] = str(place)
    recipe, pictures = recipes.find_pictures(about)
    assert pictures.val is not None, "find_pictures() sees to it"
    settings = about | {"precision": chosen, "seconds": seconds, "windows": windows}
    trained, told = [part for part in recipes.TRAININGS if part in probes], []
    if trained:
        settings["epochs"], words = recipes.budget(recipe, len(pictures.train), epochs, tune=recipes.tune_of(overrides))
        told.append(words)
    elif epochs is not None:
        raise UserError(
            f"--epochs: got {epochs}, but nothing is trained; add {'detect' if boxes else 'finetune'} to --probe, or leave it out"
        )
    parts = [p for p in PARTS if (training or not p.endswith("training")) and (compiled or not p.startswith("compiled"))]
    settings |= {"probes": frozen, "shots": list(shots), "parts": [*(p for p in parts if frozen or p != "accuracy"), *trained]}
    notes = [*pictures.notes, *told, f"precision {chosen}: {why}", f"{place}: {', '.join(_machine_words(place))}"]

    run = Run(out or "runs/benchmark")
    candidates = _join(run, settings, candidates)
    tables = pictures.boxes or (pictures.train, pictures.val)
    seen = {"train": tables[0].fingerprint(), "val": tables[1].fingerprint(), "classes": len(tables[0].classes), "pictures": len(tables[0])}
    loop = Loop(run, settings, seen, identity(place), fresh)
    if dry_run:
        todo = [c for c in candidates if not c.problem and loop.missing(c)]
        print("\n".join([*notes, *(f"  {c.name}: {c.problem or ('to measure' if c in todo else 'measured before')}" for c in candidates)]))
        print(f"dry run: without it {counted(len(todo), 'backbone')} would be measured in {run.folder}")
        return int(any(c.problem for c in candidates))
    _keep(run, settings, candidates)
    keep(run)
    run.say(f"benchmark folder: {run.folder}")
    run.say("\n".join(notes))
    status = loop.all(candidates)
    rows = loop.rows(candidates)
    if status:
        run.say(f"stopped; the same command goes on with it ({run.folder})")
        return status
    return _finish(run, settings, [*notes, *loop.said()], rows, loop.commands, old)


def _finish(
    run: Run, settings: dict[str, Any], notes: list[str], rows: list[dict[str, Any]], commands: list[str], old: Table | None
) -> int:
    """The table, the plot and the page, from all there is."""
    write_page(run, settings, notes, rows, commands)
    failed = [row for row in rows if row["status"] == table.FAILED]
    run.say("\n".join(["", table.table_text(rows), "", *table.sentences(rows)]))
    if doubtful := [row["name"] for row in rows if row.get("warnings")]:
        run.say(f"speeds to doubt, the report says why: {some(doubtful)}; --fresh on a quiet machine measures again")
    for row in failed:
        run.say(f"failed: {row['name']}: {row['reason']}")
    if old is not None:
        run.say("\n" + against(old, read_table(run.folder / RESULTS, key="benchmark"), page=run.report_file))
    run.save_result({"benchmark": rows})
    run.say(f"report: {run.report_file}\nbenchmark folder: {run.folder}")
    return 1 if failed else 0


def _join(run: Run, settings: dict[str, Any], candidates: list[Candidate]) -> list[Candidate]:
    """The backbones of a new folder, or of that of the same benchmark, whose own then come first.

    Raises:
        UserError: if it holds something else.
    """
    file = run.folder / SETTINGS
    if not file.is_file():
        Run.check_free(run.folder)
        return candidates
    before = json.loads(file.read_text())
    differing = [k for k in settings if k not in MAY_CHANGE and before.get(k) != settings[k]]
    if differing:
        told = some((f"{k}: {before.get(k)}, now {settings[k]}" for k in differing), 4)
        raise UserError(f"--out: {run.folder} holds another benchmark ({told}); give another folder, rows of one table are alike in these")
    kept = [c for c in (Candidate(**c) for c in before["candidates"]) if not c.problem]
    new = {(c.backbone, c.weights): c for c in candidates}
    # under the names that they have, for these are their folders'; weights may be others than they were
    kept = [replace(new.pop((c.backbone, c.weights), None) or again(c), name=c.name) for c in kept]
    return told_apart([*kept, *new.values()])


def _keep(run: Run, settings: dict[str, Any], candidates: list[Candidate]) -> None:
    """What the same command finds when it goes on."""
    run.folder.mkdir(parents=True, exist_ok=True)
    beside = (run.folder / SETTINGS).with_suffix(".tmp")
    beside.write_text(json.dumps(settings | {"candidates": [asdict(c) for c in candidates]}, indent=1) + "\n")
    beside.replace(run.folder / SETTINGS)


def _device(name: str) -> torch.device:
    there = devices()
    found = there[0] if name == "auto" else "cuda:0" if name == "cuda" else name
    if found not in there:
        raise UserError(f"--device: got {name!r}; allowed here: {', '.join(there)}")
    return torch.device(found)


def _machine_words(device: torch.device) -> list[str]:
    machine = identity(device)
    threads = counted(machine["threads"], "thread")
    return [machine["gpu"] or machine["processor"], threads, f"torch {machine['torch']}", f"timm {machine['timm']}"]


def _absolute(place: Any) -> Any:
    """A path that means the same from any folder."""
    return os.path.abspath(place) if isinstance(place, str) and not place.startswith("sample:") else place
