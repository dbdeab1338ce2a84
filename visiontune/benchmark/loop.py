"""The loop over backbones: one after another, each in a process of its own; what is there already is kept.

Side by side they would measure each other.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visiontune.benchmark import recipes, table, training
from visiontune.benchmark.child import CONSOLE, PARTS, SPEC, read_result, write_result
from visiontune.benchmark.names import Candidate
from visiontune.callbacks.progress import clock
from visiontune.errors import UserError, counted
from visiontune.jobs import reason_of
from visiontune.recipe import Judged
from visiontune.run import Run

STOPPED = training.STOPPED


class Loop:
    """Measures what is missing.

    Args:
        run: its folder.
        settings: of the benchmark.
        pictures: what changes when they do.
        machine: likewise.
        fresh: nothing that is there counts.
    """

    def __init__(self, run: Run, settings: dict[str, Any], pictures: dict[str, Any], machine: dict[str, Any], fresh: bool) -> None:
        self.run, self.settings, self.pictures, self.machine, self.fresh = run, settings, pictures, machine, fresh
        self.parts: list[str] = settings["parts"]
        self.results: dict[str, dict[str, Any]] = {}
        self.commands: list[str] = []
        self.child: subprocess.Popen | None = None
        self.stopped = False

    def rows(self, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """A row each, with where and how it was measured: results of another machine, other settings or pictures do not count."""
        pictures = "; ".join(str(seen) for part, seen in self.pictures.items() if part != "classes")
        about = self.machine | {"precision": self.settings["precision"], "pictures": pictures}
        return [table.row_of(c, self.results.get(c.name), self.parts) | about for c in candidates]

    def all(self, candidates: Sequence[Candidate]) -> int:
        """One after another; returns 0, or the status of a benchmark that was told to stop."""
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            todo = [c for c in candidates if not c.problem]
            self.results = {c.name: read_result(self._folder(c)) for c in todo if not self.missing(c)}
            took: list[float] = []
            for i, candidate in enumerate(todo, 1):
                began, before_it = time.monotonic(), self.said()
                measured = self._one(candidate, f"=== {candidate.name} ({i} of {len(todo)})")
                if self.stopped:
                    return STOPPED
                took += [time.monotonic() - began] * measured
                table.write_rows(self.run.folder / "results.csv", self.rows(candidates))
                if measured:
                    left = sum(1 for c in todo[i:] if self.missing(c))
                    about = f"; about {clock(left * sum(took) / len(took))} left for {counted(left, 'backbone')}" if left else ""
                    self.run.say(f"    {self._words(candidate)}, {clock(took[-1])}{about}")
                    for text in self.said()[len(before_it) :]:
                        self.run.say(f"    {text}")
            table.write_rows(self.run.folder / "results.csv", self.rows(candidates))
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)

    def said(self) -> list[str]:
        """What is to be known of the pictures that embeddings were made of, each once: those that cannot be read, above all."""
        return list(dict.fromkeys(text for result in self.results.values() for text in result.get("accuracy", {}).get("said", [])))

    def asked(self, candidate: Candidate) -> dict[str, dict[str, Any]]:
        """By part what it depends on: what was measured under the same still holds."""
        s = self.settings
        network: dict[str, Any] = {"backbone": candidate.backbone, "weights": candidate.weights, "stamp": candidate.stamp}
        network |= {k: s[k] for k in ("image_size", "overrides")}
        network |= {"classes": self.pictures["classes"], "timm": self.machine.get("timm")}  # which weights a name means is timm's to say
        timed = network | {k: s[k] for k in ("precision", "seconds", "windows")} | {"machine": self.machine}
        judged = network | {k: s[k] for k in ("data", "val", "probes", "shots")} | {"pictures": self.pictures}
        asked = {"cost": network, **dict.fromkeys(table.SPEEDS, timed), "accuracy": judged}
        # where it is trained is in `device`, which decides on the recipe's defaults; a score is no speed, and holds on another machine
        trained = network | {k: s[k] for k in ("data", "val", "boxes", "device", "epochs") if k in s} | {"pictures": self.pictures}
        return json.loads(json.dumps(asked | dict.fromkeys(recipes.TRAININGS, trained)))

    def missing(self, candidate: Candidate) -> list[str]:
        """The parts that are not there yet, or failed before."""
        if self.fresh:
            return list(self.parts)
        there, asked = read_result(self._folder(candidate)), self.asked(candidate)
        return [p for p in self.parts if there.get(p, {}).get("asked") != asked[p] or "failed" in there[p]]

    def _folder(self, candidate: Candidate) -> Path:
        return self.run.folder / "backbones" / candidate.folder

    def _one(self, candidate: Candidate, title: str) -> bool:
        """Measure what is missing of one; whether there was anything.

        A part in whose midst the process ends has failed; those behind it are begun again in another process.
        """
        folder = self._folder(candidate)
        left = self.missing(candidate)
        if not left:
            self.run.say(f"{title}: measured before")
            return False
        self.run.say(title)
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder, {k: v for k, v in read_result(folder).items() if k not in left})
        asked = self.asked(candidate)
        trained, left = [p for p in left if p not in PARTS], [p for p in left if p in PARTS]
        while left and not self.stopped:
            spec = self.settings | candidate.words | {"parts": left, "asked": asked, "fresh": self.fresh, "candidate": asdict(candidate)}
            (folder / SPEC).write_text(json.dumps(spec, indent=1) + "\n")
            status = self._run_child(folder)
            there = read_result(folder)
            left = [p for p in left if p not in there]
            if left and not self.stopped:
                write_result(folder, there | {left[0]: {"failed": _ended(folder, status), "asked": asked[left[0]]}})
                left = left[1:]
            if "failed" in read_result(folder).get("cost", {}):  # there is no network to measure
                trained = []
                break
        for part in trained:
            if not self.stopped:
                self._train(candidate, part, asked[part])
        self.results[candidate.name] = read_result(folder)
        return True

    def _train(self, candidate: Candidate, part: str, asked: dict[str, Any]) -> None:
        """One training; what it ended with stands beside the other parts, unless it was told to stop."""
        folder = self._folder(candidate)
        try:
            recipe: Judged
            if part == "detect":
                recipe = recipes.detect_recipe(self.settings, candidate.words)
            else:
                recipe = recipes.finetune_recipe(self.settings, candidate.words, self.pictures["pictures"])
            self.commands.append(training.command_of(folder, part))
            outcome = training.train(self.run, folder, part, recipe, asked, fresh=self.fresh)
            self.stopped |= outcome.status == STOPPED
            if self.stopped and outcome.status:
                return
            if outcome.status:
                entry: dict[str, Any] = {"failed": _ended(folder / part, outcome.status)}
            else:
                entry = training.entry_of(part, recipe, outcome.result)
        except UserError as error:
            entry = {"failed": str(error)}
        write_result(folder, read_result(folder) | {part: entry | {"asked": asked}})

    def _run_child(self, folder: Path) -> int:
        command = [sys.executable, "-m", "visiontune.benchmark.child", str(folder / SPEC)]
        self.commands.append(shlex.join(command))
        with (folder / CONSOLE).open("wb") as console:
            self.child = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT)
        try:
            return self.child.wait()
        except BaseException:
            self.child.kill()
            self.child.wait()
            raise

    def _stop(self, *signalled: Any) -> None:
        self.stopped = True
        if self.child is not None:
            self.child.kill()

    def _words(self, candidate: Candidate) -> str:
        row = table.row_of(candidate, self.results[candidate.name], self.parts)
        scores = [f"{table.told(m)} {100 * row[m]:.1f} %" for m in table.metrics([row])]
        columns = [(header, key, form) for header, key, form in table.COLUMNS[1:] if key in row]
        numbers = [f"{table.cell(row, key, form)} {header}" for header, key, form in columns]
        failed = [f"FAILED {row['reason']}"] if row["status"] == table.FAILED else []
        warned = [f"warning: {row['warnings']}"] if row.get("warnings") else []
        return "; ".join([*failed, *scores, *numbers, *warned])


def _ended(folder: Path, status: int) -> str:
    """Why a process ended before it had written its part."""
    if status >= 0:
        return reason_of(folder / CONSOLE, status)
    name = signal.Signals(-status).name
    return f"its process was ended by {name}" + (", which is what the system does when memory is out" if name == "SIGKILL" else "")
