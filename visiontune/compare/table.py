"""The rows of a comparison, and what they say: means, spreads, and paired differences from the first weights."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiontune.compare.plan import Plan
from visiontune.errors import counted, some
from visiontune.evaluate.paired import Paired, paired
from visiontune.jobs import Outcome

FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
METRICS = {
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_ap": "mean average precision",
    "macro_f1": "macro F1",
    "map": "mAP",
    "map50": "mAP at IoU 0.5",
    "map75": "mAP at IoU 0.75",
}


def told(metric: str) -> str:
    """A metric's name for people."""
    return METRICS.get(metric, metric)


def score(result: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """Of the last epoch, which is what runs are compared by, and of the best: that one was chosen on the pictures that it is judged on.

    None where one of them is not a number.
    """
    best = result.get(metric)
    last = result.get(f"{metric}_last", best)
    return None if best is None or last is None else (float(last), float(best))


def rows_of(plan: Plan, outcomes: dict[str, Outcome], unfit: dict[str, str]) -> list[dict[str, Any]]:
    """One a run, in the plan's order."""
    rows = []
    for cell in plan.cells:
        outcome = outcomes.get(cell.name)
        row: dict[str, Any] = {"weights": cell.weights, "labels": cell.labels, "labelled_pictures": cell.pictures, "seed": cell.seed}
        if outcome is None:
            row |= {"status": FAILED, "reason": unfit[cell.weights]} if cell.weights in unfit else {"status": WAITING, "reason": ""}
        elif outcome.status:
            row |= {"status": FAILED, "reason": outcome.reason}
        elif (scored := score(result := outcome.result, plan.metric)) is None:
            row |= {"status": FAILED, "reason": f"its {told(plan.metric)} is not a number, see its log; a lower optim.lr may help"}
        else:
            last, best = scored
            row |= {"status": FINISHED, plan.metric: round(last, 6), f"{plan.metric}_best": round(best, 6)}
            row |= {"val_pictures": result.get("val_pictures"), "steps": cell.steps, "seconds": result["seconds"]}
            row |= {"images_seen": result["images_seen"]}
        rows.append(row | {"run": cell.name})
    return rows


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which runs failed and why, those of one reason together."""
    by: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == FAILED:
            by.setdefault(row["reason"], []).append(row["run"])
    return [f"{some(runs, 3)}: {reason}" for reason, runs in by.items()]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """`compare.csv`; written beside and renamed."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    beside = file.with_suffix(".tmp")
    with beside.open("w", newline="", errors="surrogateescape") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(file)


@dataclass(frozen=True)
class Point:
    """The runs of one kind of weights at one number of labels.

    Attributes:
        weights, labels: which.
        pictures: labelled ones.
        scores: by seed, in [0, 1].
        against: the same seeds' runs from the first weights; None for these themselves and where there is no pair.
    """

    weights: str
    labels: str
    pictures: int
    scores: dict[int, float]
    against: Paired | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def text(self) -> str:
        spread = f" ± {100 * self.spread:.1f}" if self.spread is not None else ""
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Summary:
    """What the rows say.

    Attributes:
        metric: what was compared.
        weights, labels: in order; of weights the first is what the others are compared with.
        points: by weights and labels; only where a run finished.
        sentences: the differences in words.
        val_pictures: how many pictures each run was judged on.
        judged_alike: they are the same ones for all seeds.
    """

    metric: str
    weights: list[str]
    labels: list[str]
    points: dict[tuple[str, str], Point]
    sentences: list[str]
    val_pictures: int | None
    judged_alike: bool

    @property
    def headline(self) -> list[str]:
        """A short sentence for each kind of weights but the first."""
        sentences = []
        for weights in self.weights[1:]:
            kinds: dict[str, list[str]] = {}
            for p in (self.points.get((weights, labels)) for labels in self.labels):
                if p and p.against:
                    kinds.setdefault(verdict(p.against), []).append(f"{p.labels} ({100 * p.against.difference:+.1f} points)")
            told = "; ".join(f"{kind} at {', '.join(places)}" for kind, places in kinds.items())
            sentences.append(f"{weights} against {self.weights[0]}: {told or 'no pair of runs has finished'}.")
        return sentences

    def for_machines(self) -> list[dict[str, Any]]:
        rows = []
        for p in self.points.values():
            row: dict[str, Any] = {"weights": p.weights, "labels": p.labels, "labelled_pictures": p.pictures, "n": len(p.scores)}
            row |= {self.metric: p.mean, "spread": p.spread}
            if p.against is not None:
                low, high, value = (None if x != x else x for x in (p.against.low, p.against.high, p.against.p))
                row |= {"difference": p.against.difference, "low": low, "high": high, "p": value, "pairs": p.against.n}
            rows.append(row)
        return rows


def summarise(plan: Plan, rows: Sequence[dict[str, Any]]) -> Summary:
    """Means, spreads, and paired differences from the first weights, with what they mean."""
    done = [row for row in rows if row["status"] == FINISHED]
    by: dict[tuple[str, str], dict[int, float]] = {}
    for row in done:
        by.setdefault((row["weights"], row["labels"]), {})[row["seed"]] = float(row[plan.metric])
    pictures = {row["labels"]: row["labelled_pictures"] for row in rows}
    first = plan.weights[0]
    points: dict[tuple[str, str], Point] = {}
    for labels in plan.labels:
        for weights in plan.weights:
            if (weights, labels) not in by:
                continue
            own, base = by[weights, labels], by.get((first, labels), {})
            both = sorted(own.keys() & base.keys()) if weights != first else []
            against = paired([own[s] for s in both], [base[s] for s in both]) if both else None
            points[weights, labels] = Point(weights, labels, pictures[labels], own, against)
    counts = [int(row["val_pictures"]) for row in done if row.get("val_pictures")]
    sentences, judged = _sentences(plan, points), min(counts, default=None)
    return Summary(plan.metric, plan.weights, plan.labels, points, sentences, judged, plan.judged_alike)


def verdict(against: Paired) -> str:
    """In a word or three."""
    if not against.tested:
        return "one seed, no test" if against.n == 1 else "the same difference with each seed, no test"
    return ("better" if against.difference > 0 else "worse") if against.told_apart else "not told apart"


def _sentences(plan: Plan, points: dict[tuple[str, str], Point]) -> list[str]:
    """A sentence for each kind of weights but the first, then how to read them."""
    first, sentences, tests = plan.weights[0], [], 0
    for weights in plan.weights[1:]:
        compared = [p for labels in plan.labels if (p := points.get((weights, labels))) and p.against]
        if not compared:
            sentences.append(f"{weights} against {first}: no pair of runs has finished.")
            continue
        parts = []
        for p in compared:
            assert p.against is not None
            gain = f"{100 * p.against.difference:+.1f} points"
            if not p.against.tested:
                why = "by one seed: no test" if p.against.n == 1 else f"with each of {p.against.n} seeds: no spread to test by"
                parts.append(f"{gain} at {p.labels}, {why}")
                continue
            tests += 1
            interval = f"95 % interval {interval_text(p.against)}"
            p_value = "below 0.001" if p.against.p < 0.001 else p_text(p.against)
            parts.append(f"{verdict(p.against)} at {p.labels}: {gain} ({interval}, p {p_value}, n {p.against.n})")
        sentences.append(f"{weights} against {first}: {'; '.join(parts)}.")
    if tests:
        seeds = max(p.against.n for p in points.values() if p.against)
        chance = f" One test in 20 says so by chance, and there are {tests} here." if tests > 1 else ""
        power = f" With {seeds} seeds only differences that are large beside the spread can be told apart." if seeds < 5 else ""
        sentences.append(
            f"Pairs are runs of one seed: the same labels in the same order. Better and worse mean p below 0.05 in a paired t-test over "
            f"n seeds; not told apart does not mean equal.{power}{chance}"
        )
    return sentences


def interval_text(against: Paired) -> str:
    """Of the mean difference, in points."""
    return f"{100 * against.low:+.1f} to {100 * against.high:+.1f}" if against.tested else "n/a"


def p_text(against: Paired) -> str:
    return "n/a" if not against.tested else "< 0.001" if against.p < 0.001 else f"{against.p:.2g}"


def caption(summary: Summary) -> str:
    """How the numbers of the table are to be read."""
    n = max((len(p.scores) for p in summary.points.values()), default=0)
    spread = f", mean ± standard deviation over {counted(n, 'seed')}" if n > 1 else ", one seed"
    chosen = f"{told(summary.metric)} of the last epoch in %{spread}"
    if not summary.val_pictures or summary.metric != "top1":
        return f"{chosen}."
    if not summary.judged_alike:
        own = f"{summary.val_pictures:,} pictures that it set aside itself"
        return f"{chosen}. Each seed is judged on {own}, so the spread is also that of such pictures."
    top = max(p.mean for p in summary.points.values())
    error = 100 * (top * (1 - top) / summary.val_pictures) ** 0.5
    judged = f"All are judged on the same {summary.val_pictures:,} pictures"
    return f"{chosen}. {judged}; on others all could shift by about {error:.1f} (one standard error)."


def accuracies(summary: Summary) -> list[list[str]]:
    """A header, then a row for each number of labels and a column for each kind of weights."""
    rows = [["labels", "pictures", *summary.weights]]
    for labels in summary.labels:
        found = {w: summary.points.get((w, labels)) for w in summary.weights}
        count = next((f"{p.pictures:,}" for p in found.values() if p), "")
        rows.append([labels, count, *(p.text if p else "failed" for p in found.values())])
    return rows


def accuracies_text(summary: Summary) -> str:
    rows = accuracies(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if i < 1 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in rows]
    return "\n".join([*lines, caption(summary)])
