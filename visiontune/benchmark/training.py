"""A backbone's training: a run of its own in the backbone's folder, resumed after an interruption, kept when it is finished."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from visiontune.compare.table import score
from visiontune.jobs import Outcome, run_jobs
from visiontune.recipe import DetectRecipe, Judged
from visiontune.run import Run

STOPPED = 143  # what a run that SIGTERM ended returns
# By part, columns and what they are in a run's result.
SCORES = {"finetune": {"finetune_top1": "top1"}, "detect": {"detect_map": "map", "detect_map50": "map50"}}


def train(run: Run, folder: Path, part: str, recipe: Judged, asked: dict[str, Any], *, fresh: bool) -> Outcome:
    """Train, or go on with what is there of the same training.

    Args:
        run: the benchmark's, in whose log it is told.
        folder: the backbone's; the run is `folder`/`part`.
        part: `finetune` or `detect`.
        recipe: what is trained.
        asked: what it depends on: a run under another one is begun anew.
        fresh: likewise any run.
    """
    note, text = folder / f"{part}.json", json.dumps(asked, indent=1) + "\n"
    if fresh or not note.is_file() or note.read_text() != text:
        if (folder / part).exists():
            shutil.rmtree(folder / part)
        note.write_text(text)
    name = (folder / part).relative_to(run.folder).as_posix()
    outcome = run_jobs(run, {name: recipe}, independent=True).get(name, Outcome(STOPPED, reason="was not begun"))
    if outcome.status == 0:
        # Weights and optimiser twice over, which nobody resumes: of dozens of large networks they would fill a disk.
        shutil.rmtree(Run(folder / part).last.parent, ignore_errors=True)
    return outcome


def command_of(folder: Path, part: str) -> str:
    """What trains the same again, for people to repeat."""
    return shlex.join([sys.executable, "-m", "visiontune.fit", str(folder / part / "recipe.yaml"), "--out", "NEW_FOLDER"])


def entry_of(part: str, recipe: Judged, result: dict[str, Any]) -> dict[str, Any]:
    """What the table takes of a finished run, or `{"failed": reason}`."""
    scored = {column: score(result, metric) for column, metric in SCORES[part].items()}
    lost = [SCORES[part][column] for column, pair in scored.items() if pair is None]
    if lost:
        return {"failed": f"its {lost[0]} is not a number, see the log of its run; a lower optim.lr may help"}
    entry: dict[str, Any] = {column: round(pair[0], 6) for column, pair in scored.items() if pair is not None}
    what = recipe.head.name if isinstance(recipe, DetectRecipe) else recipe.tune
    entry |= {f"{part}_seconds": result["seconds"], f"{part}_images_seen": result["images_seen"]}
    return entry | {"val_pictures": result.get("val_pictures", ""), "what": what, "epochs": recipe.epochs}
