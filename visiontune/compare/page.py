"""What the page of a comparison shows: its summary as a plot and tables."""

from pathlib import Path
from typing import Any

from visiontune.callbacks.progress import clock
from visiontune.compare.plan import Plan
from visiontune.compare.table import FINISHED, Summary, accuracies, caption, failures, interval_text, p_text, told, verdict
from visiontune.errors import counted
from visiontune.report.comparison import label_efficiency, write_comparison
from visiontune.run import Run, environment

DIFFERENCES = (
    "Of each seed's run from these weights and its run from the first ones: the mean difference, its 95 % interval (Student's t), and p of "
    "the paired t-test. An interval that includes 0 says that so few seeds cannot tell them apart. n/a: one "
    "seed, or the same difference with each, has no spread to test by."
)


def draw(summary: Summary, file: Path) -> Path | None:
    """The plot; None where nothing has finished."""
    if not summary.points:
        return None
    lines: dict[str, list[tuple[int, float, float | None]]] = {}
    ticks: dict[int, str] = {}
    for p in summary.points.values():
        spread = 100 * p.spread if p.spread is not None else None
        lines.setdefault(p.weights, []).append((p.pictures, 100 * p.mean, spread))
        ticks[p.pictures] = p.labels
    label_efficiency({w: lines[w] for w in summary.weights if w in lines}, ticks, file, label=f"{told(summary.metric)}, %")
    return file


def write_page(run: Run, plan: Plan, summary: Summary, rows: list[dict[str, Any]]) -> None:
    """`label_efficiency.png` and `report.html`."""
    columns, *cells = accuracies(summary)
    seconds = sum(row["seconds"] for row in rows if row["status"] == FINISHED)
    backbone = plan.settings["recipe"]["backbone"].get("name")
    sections = [_differences(summary), _runs(plan, rows)]
    write_comparison(
        run.report_file,
        lead=f"{backbone} from {counted(len(plan.weights), 'kind')} of weights by one recipe: {counted(len(rows), 'run')}, "
        f"{clock(seconds)} of training.",
        headline=summary.headline,
        warnings=failures(rows),
        table={"title": "Accuracy", "columns": columns, "rows": cells, "texts": 1, "caption": caption(summary) if summary.points else ""},
        plot=draw(summary, run.pictures / "label_efficiency.png"),
        sections=[section for section in sections if section["rows"]],
        notes=plan.notes,
        recipe=(run.folder / Plan.FILE).read_text(),
        machine=environment(),
    )


def _differences(summary: Summary) -> dict[str, Any]:
    first, found = summary.weights[0], []
    for p in sorted(summary.points.values(), key=lambda p: summary.weights.index(p.weights)):
        if (d := p.against) is None:
            continue
        found.append([p.weights, p.labels, verdict(d), f"{100 * d.difference:+.1f}", interval_text(d), p_text(d), str(d.n)])
    columns = ["weights", "labels", "", "points", "95 % interval", "p", "n"]
    return {"title": f"Differences from {first}", "columns": columns, "rows": found, "texts": 3, "caption": DIFFERENCES}


def _runs(plan: Plan, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: list[list[Any]] = []
    for row in rows:
        link = {"href": f"{row['run']}/report.html", "text": row["run"]} if row["status"] == FINISHED else row["run"]
        score = [f"{100 * row[k]:.1f}" if k in row else row["status"] for k in (plan.metric, f"{plan.metric}_best")]
        steps, seconds = (f"{row['steps']:,}", clock(row["seconds"])) if row["status"] == FINISHED else ("", "")
        found.append([link, f"{row['labelled_pictures']:,}", *score, steps, seconds])
    columns = ["run", "labelled pictures", "last epoch, %", "best epoch, %", "steps", "time"]
    about = "The best epoch was chosen on the pictures that it is judged on; comparisons are of the last one. compare.csv has the same."
    return {"title": "Every run", "columns": columns, "rows": found, "texts": 1, "caption": about}
