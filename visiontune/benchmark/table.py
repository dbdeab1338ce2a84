"""The rows of a benchmark: what was measured of each backbone, as a CSV and for a terminal."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visiontune.benchmark.names import Candidate
from visiontune.benchmark.pareto import front
from visiontune.benchmark.recipes import TRAININGS
from visiontune.errors import counted
from visiontune.report.measured import text_table

FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
# By which of a row's scores it is ranked and drawn: the first that some row has. What a network does when it is tuned is what most are
# tuned for, and cost most to know.
RANKED = ("finetune_top1", "probe_top1", "knn_top1", "detect_map", "detect_map50")
NAMES = {"probe_top1": "linear probe", "knn_top1": "k-NN", "finetune_top1": "fine-tuning", "detect_map": "mAP", "detect_map50": "mAP50"}
MAPS = ("detect_map", "detect_map50")
# The parts that are timed, and what their columns begin with.
SPEEDS = {"inference": "", "training": "train_", "compiled_inference": "compiled_", "compiled_training": "compiled_train_"}
# Columns of where, with what and when; two tables that differ in them are of two machines, versions or settings.
ABOUT = ("processor", "threads", "device", "gpu", "torch", "timm", "precision", "seed", "pictures", "date")


def key_of(score: dict[str, Any]) -> str:
    """A probe's column: `knn_top1`, `probe_top1`, `few5_top1`."""
    if score["probe"] == "few":
        return f"few{score['setting'].split()[0]}_top1"
    return {"knn": "knn_top1", "linear": "probe_top1"}[score["probe"]]


def told(metric: str) -> str:
    """A column's name for people."""
    return NAMES.get(metric) or f"{counted(int(metric.removeprefix('few').removesuffix('_top1')), 'label')} a class"


def is_score(column: str) -> bool:
    """Shares in [0, 1], which people read as %."""
    return column.endswith("_top1") or column in MAPS


def error_of(row: dict[str, Any], metric: str) -> float | None:
    """One standard error of an accuracy that was counted on so many pictures; of a mean average precision none is known."""
    return None if metric in MAPS else (row[metric] * (1 - row[metric]) / int(row["val_pictures"])) ** 0.5


def row_of(candidate: Candidate, result: dict[str, Any] | None, wanted: Sequence[str]) -> dict[str, Any]:
    """One backbone's.

    Args:
        candidate: which.
        result: by part what was measured; None where its turn has not come.
        wanted: the parts that make it whole.
    """
    row: dict[str, Any] = {"name": candidate.name, "backbone": "", "weights": candidate.weights}
    if candidate.weights == "own":
        row["weights"] = candidate.backbone
    if candidate.problem:
        return row | {"status": FAILED, "reason": candidate.problem}
    if result is None:
        return row | {"status": WAITING, "reason": ""}
    failed = {part: result[part]["failed"] for part in wanted if "failed" in result.get(part, {})}
    missing = [part for part in wanted if part not in result]
    done = {part: result[part] for part in wanted if part in result and part not in failed}
    # without a network nothing else can be said
    reasons = [failed["cost"]] if "cost" in failed else [f"{part.replace('_', ' ')}: {reason}" for part, reason in failed.items()]
    row |= {"status": FAILED if failed else WAITING if missing else FINISHED, "reason": "; ".join(reasons)}
    if cost := done.get("cost"):
        row["backbone"] = cost["architecture"]
        row["image_size"] = "x".join(str(side) for side in dict.fromkeys(cost["image_size"]))
    if accuracy := done.get("accuracy"):
        row |= {key_of(s): round(s["top1"], 6) for s in accuracy["scores"]}
        if accuracy["scores"]:
            row["val_pictures"] = accuracy["scores"][0]["val_pictures"]
    for part in TRAININGS:
        if tuned := done.get(part):
            row |= {k: v for k, v in tuned.items() if k.startswith(part)}
            row.setdefault("val_pictures", tuned["val_pictures"])
    for part, prefix in SPEEDS.items():
        if speed := done.get(part):
            row |= {f"{prefix}images_per_second": speed["images_per_second"]}
            row |= {f"{prefix}images_per_second_q1": speed["low"], f"{prefix}images_per_second_q3": speed["high"]}
            row |= {f"{prefix}batch_size": speed["batch_size"], f"{prefix}channels_last": speed["channels_last"]}
            row |= {f"{prefix}peak_memory_bytes": speed["peak_memory_bytes"]}
            if part == "inference":
                row |= {"idle_memory_bytes": speed["idle_memory_bytes"], "latency_ms": speed["latency_ms"]}
                row |= {"latency_ms_q1": speed["latency_ms_low"], "latency_ms_q3": speed["latency_ms_high"]}
            if "compile_seconds" in speed and (eager := done.get(part.removeprefix("compiled_"))):
                row |= {f"{prefix}gain": speed["images_per_second"] / eager["images_per_second"]}
                row |= {f"{prefix.replace('compiled', 'compile')}seconds": speed["compile_seconds"]}
    if cost:
        row |= {"parameters": cost["parameters"], "gmacs": cost["macs"] / 1e9, "mactivations": cost["activations"] / 1e6}
        row["seed"] = cost.get("seed", "")
    row["date"] = next((result[p]["date"] for p in ("inference", *result) if "date" in result.get(p, {})), "")
    words = {part.replace("_", " "): done[part]["warnings"] for part in SPEEDS if part in done and done[part]["warnings"]}
    row["warnings"] = "; ".join(f"{part}: {word}" for part, those in words.items() for word in those)
    return row


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """`results.csv`; written beside and renamed."""
    columns = list(dict.fromkeys(k for row in sorted(rows, key=len, reverse=True) for k in row))
    beside = file.with_suffix(".tmp")
    with beside.open("w", newline="", errors="surrogateescape") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    beside.replace(file)


def metrics(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The scores that some row has, in the order of `RANKED`."""
    found = dict.fromkeys(k for row in rows for k in row if is_score(k))
    return [*(k for k in RANKED if k in found), *(k for k in found if k not in RANKED)]


def ranking(rows: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]], list[str]]:
    """By which accuracy, the rows from the best to those without one, and the names on the front of accuracy and speed."""
    names = metrics(rows)
    metric = names[0] if names else ""
    ranked = sorted(rows, key=lambda row: (-row.get(metric, -1.0), -row.get("images_per_second", -1.0)))
    both = [row for row in ranked if metric in row and "images_per_second" in row]
    return metric, ranked, [both[i]["name"] for i in front([(row["images_per_second"], row[metric]) for row in both])]


# header, of a row; only columns that some row has are shown
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("pixels", "image_size", "{}"),
    ("pictures/s", "images_per_second", "{:,.4g}"),
    ("training/s", "train_images_per_second", "{:,.4g}"),
    ("compiled/s", "compiled_images_per_second", "{:,.4g}"),
    ("gain", "compiled_gain", "{:.2f} x"),
    ("compiled training/s", "compiled_train_images_per_second", "{:,.4g}"),
    ("training gain", "compiled_train_gain", "{:.2f} x"),
    ("ms for one", "latency_ms", "{:,.3g}"),
    ("fine-tuning s", "finetune_seconds", "{:,.0f}"),
    ("detection s", "detect_seconds", "{:,.0f}"),
    ("M parameters", "parameters", "{:,.2f}"),
    ("GMACs", "gmacs", "{:,.3g}"),
    ("MiB", "peak_memory_bytes", "{:,.0f}"),
    ("training MiB", "train_peak_memory_bytes", "{:,.0f}"),
)
# What a number is divided by for people.
SCALE = {"parameters": 1e6, "peak_memory_bytes": 2**20, "train_peak_memory_bytes": 2**20}


def cell(row: dict[str, Any], key: str, form: str) -> str:
    """One number as people read it; empty where there is none."""
    value = row.get(key, "")
    if value == "":
        return ""
    return form.format(value / SCALE[key] if key in SCALE else 100 * value if is_score(key) else value)


def shown(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The columns of tables for people: header, key of a row, format."""
    scores = [(f"{told(m)}, %", m, "{:.1f}") for m in metrics(rows)]
    return [*scores, *(c for c in COLUMNS if any(row.get(c[1], "") != "" for row in rows))]


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a terminal, best first; `*` marks what nothing is both faster and more accurate than."""
    _, ranked, best = ranking(rows)
    columns = shown(rows)
    cells = [["", "name", *(header for header, _, _ in columns)]]
    cells += [
        ["*" if row["name"] in best else "", row["name"], *(cell(row, key, form) for _, key, form in columns)]
        for row in ranked
        if "parameters" in row
    ]
    return text_table(cells, texts=2) if len(cells) > 1 else ""


def sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What to take: the most accurate, the fastest that cannot be told apart from it, and the front.

    Two accuracies are not told apart where they differ by less than two standard errors of the difference of two shares that were
    counted on the same number of pictures, taken as independent, which is on the wide side. Of mean average precisions nothing is said.
    """
    metric, ranked, best = ranking(rows)
    scored = [row for row in ranked if metric and metric in row and "images_per_second" in row]
    if not scored:
        return []
    top, n = scored[0], int(scored[0]["val_pictures"])

    def apart(row: dict[str, Any]) -> bool:
        errors = [error_of(r, metric) for r in (top, row)]
        return top[metric] - row[metric] > 2 * sum((error or 0.0) ** 2 for error in errors) ** 0.5

    said = [f"Most accurate by {told(metric)}: {_of(top, metric)}."]
    alike = [row for row in scored if not apart(row)]
    fastest = max(alike, key=lambda row: row["images_per_second"])
    if fastest is not top and metric not in MAPS:
        times = fastest["images_per_second"] / top["images_per_second"]
        said.append(
            f"The fastest whose accuracy is not told apart from that on {counted(n, 'picture', ',')} (two standard errors): "
            f"{_of(fastest, metric)}, {times:.1f} times the speed."
        )
    if len(best) > 1:
        said.append(f"Nothing here is both faster and more accurate than these (*): {', '.join(best)}.")
    return said


def _of(row: dict[str, Any], metric: str) -> str:
    return f"{row['name']} with {100 * row[metric]:.1f} % at {row['images_per_second']:,.4g} pictures/s"
