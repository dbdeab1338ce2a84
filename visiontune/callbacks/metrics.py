"""`metrics.csv`: one row a report, one column a metric, readable by any spreadsheet while the run goes on."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

# Rows that have one of these were written by a look at the weights after so many steps, all others by a step that is under way.
LOOKS = ("knn_top1", "embedding/rank")


class MetricsCsv(Logger):
    """Appends rows; a resumed run first drops the rows beyond its checkpoint. (Lightning's own deletes the file when opened again.)"""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self._started = time.monotonic()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCsv":
        return self

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None  # they are in recipe.yaml

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._started, 1)}
        row |= {k: f"{float(v):.6g}" for k, v in metrics.items() if k != "epoch"}
        if "epoch" in metrics:
            row["epoch"] = int(metrics["epoch"])
        if new := [k for k in row if k not in self.columns]:
            rows = read_metrics(self.path)
            self.columns = (self.columns or (list(rows[0]) if rows else [])) + [k for k in new if not rows or k not in rows[0]]
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Drop what was recorded after `step` optimiser steps: it will be trained again."""
        rows = read_metrics(self.path)
        if rows:
            self.columns = list(rows[0])
            self._rewrite([r for r in rows if steps_done(r) <= step])
            kept = read_metrics(self.path)
            self._started -= float(kept[-1]["seconds"]) if kept else 0.0

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self.path)


class ResumeMetrics(L.Callback):
    """Cuts `metrics.csv` back to the checkpoint."""

    def __init__(self, logger: MetricsCsv) -> None:
        self.logger = logger

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.logger.cut(checkpoint["global_step"])


def steps_done(row: dict[str, str]) -> int:
    """Optimiser steps that had been made: Lightning numbers the one under way from 0, looks count those that are over."""
    return int(row["step"]) + (not any(row.get(k) for k in LOOKS))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`; empty if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
