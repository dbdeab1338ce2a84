"""The page and the plot of a benchmark: accuracy over speed, and a table that a click sorts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from visiontune.report.figures import ACCENTS, INK, save
from visiontune.report.page import write_in_style

TEMPLATE = (Path(__file__).parent / "benchmark.html").read_text()


@dataclass(frozen=True)
class Dot:
    """One backbone.

    Attributes:
        name: told where it is on the front.
        speed, low, high: pictures a second: median and quartiles.
        accuracy: in %.
        error: of the accuracy, likewise; one standard error.
        best: on the Pareto front.
    """

    name: str
    speed: float
    low: float
    high: float
    accuracy: float
    error: float
    best: bool


def accuracy_over_speed(dots: Sequence[Dot], path: Path, *, label: str) -> None:
    """A dot a backbone, with its errors; the front is ringed, joined and named."""
    figure, axis = plt.subplots(figsize=(7.8, 5))
    for dot in dots:
        colour = ACCENTS[1] if dot.best else ACCENTS[0]
        across = [[max(0.0, dot.speed - dot.low)], [max(0.0, dot.high - dot.speed)]]
        axis.errorbar(dot.speed, dot.accuracy, xerr=across, yerr=dot.error, fmt="o", color=colour, markersize=5, elinewidth=0.9, alpha=0.9)
    best = sorted((dot for dot in dots if dot.best), key=lambda dot: dot.speed)
    axis.plot([d.speed for d in best], [d.accuracy for d in best], color=ACCENTS[1], linewidth=1, linestyle="--", zorder=0)
    axis.scatter([d.speed for d in best], [d.accuracy for d in best], s=110, facecolors="none", edgecolors=ACCENTS[1], linewidths=1.4)
    for dot in best:
        # beside its bars, and within the picture
        side, place = ("right", (-7, -14)) if dot is best[-1] else ("left", (7, 7))
        axis.annotate(dot.name, (dot.speed, dot.accuracy), place, textcoords="offset points", fontsize=8, color=INK, ha=side)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("pictures a second (log scale)", fontsize=9, color=INK)
    axis.set_ylabel(label, fontsize=9, color=INK)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    axis.margins(x=0.15, y=0.15)
    figure.tight_layout()
    save(figure, path)


def write_benchmark(
    file: Path,
    *,
    lead: str,
    headline: Sequence[str],
    failures: Sequence[str],
    doubts: Sequence[str],
    columns: Sequence[str],
    texts: int,
    rows: Sequence[Sequence[dict[str, Any]]],
    caption: str,
    plot: Path | None,
    plot_caption: str,
    settings: Sequence[tuple[str, str]],
    notes: Sequence[str],
    commands: Sequence[str],
    machine: dict[str, Any],
) -> None:
    """`report.html`, one file that is opened offline.

    Args:
        file: the page.
        lead, headline: above all.
        failures: backbones that could not be measured, with the reason.
        doubts: those whose speed is doubtful, likewise.
        columns: headers; the first `texts` are text, the others numbers.
        texts: how many.
        rows: cells with `text` to show and `value` to sort by.
        caption: how the table is to be read.
        plot: the PNG; None where nothing was measured.
        plot_caption: likewise.
        settings: names and values.
        notes: what was found and decided.
        commands: of each backbone's own process.
        machine: where.
    """
    write_in_style(
        file, TEMPLATE, plot=plot, machine=machine, lead=lead, headline=headline, failures=failures, doubts=doubts, columns=columns,
        texts=texts, rows=rows, caption=caption, plot_caption=plot_caption, settings=settings, notes=notes, commands=commands,
    )  # fmt: skip
