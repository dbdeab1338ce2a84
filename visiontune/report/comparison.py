"""The page and the plot of a comparison: accuracy over the number of labels, one line for each kind of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from visiontune.report.figures import ACCENTS, INK, save
from visiontune.report.page import write_in_style

TEMPLATE = (Path(__file__).parent / "comparison.html").read_text()
COLOURS = (*ACCENTS, "#c9a227", "#5c6b73", "#b84a7d", "#2a9d8f")
MARKERS = "osD^vPX*"
PLOT = (
    "Dots are means over seeds, bars one standard deviation. A line that lies to the left of another by a factor needs that many times "
    "fewer labels for the same result."
)


def label_efficiency(lines: dict[str, list[tuple[int, float, float | None]]], ticks: dict[int, str], path: Path, *, label: str) -> None:
    """A line for each kind of weights.

    Args:
        lines: name -> (labelled pictures, mean in %, standard deviation or None), from few to many.
        ticks: labelled pictures -> what that number is called.
        path: the PNG.
        label: of the y axis.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    for i, (name, points) in enumerate(lines.items()):
        x, y, spread = zip(*points, strict=True)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        error = [s or 0.0 for s in spread] if any(s is not None for s in spread) else None
        axis.errorbar(x, y, yerr=error, color=colour, marker=marker, markersize=5, linewidth=1.6, capsize=3, label=name)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(list(ticks), [f"{name}\n{count:,}" for count, name in ticks.items()])
    axis.set_xlabel("labels (log scale), labelled pictures", fontsize=9, color=INK)
    axis.set_ylabel(label, fontsize=9, color=INK)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    axis.margins(x=0.08, y=0.12)
    axis.legend(fontsize=9, frameon=False)
    figure.tight_layout()
    save(figure, path)


def write_comparison(
    file: Path,
    *,
    lead: str,
    headline: Sequence[str],
    warnings: Sequence[str],
    table: dict[str, Any],
    plot: Path | None,
    sections: Sequence[dict[str, Any]],
    notes: Sequence[str],
    recipe: str,
    machine: dict[str, Any],
) -> None:
    """`report.html`: the table and the plot first, then the differences and every run.

    Args:
        file: the page.
        lead, headline: above all.
        warnings: runs that failed, with the reason.
        table: accuracies: title, columns, rows, how many columns are text (the others are numbers), caption.
        plot: the PNG; None where nothing finished.
        sections: more tables, likewise.
        notes: what was decided.
        recipe: what was run, as YAML.
        machine: where.
    """
    write_in_style(
        file, TEMPLATE, plot=plot, machine=machine, lead=lead, headline=headline, warnings=warnings, table=table, plot_caption=PLOT,
        sections=sections, notes=notes, recipe=recipe,
    )  # fmt: skip
