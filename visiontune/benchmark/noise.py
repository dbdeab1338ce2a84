"""Two tables of a benchmark, row by row and column by column: what differs beyond noise. Pure functions of their rows.

The rule, by what is known of each number's noise:

- Speeds and times have windows: the intervals between their quartiles must not overlap, and the medians must differ by more than `FLOOR`.
  The first alone would not do: of two equal runs of seven windows 8 % have quartiles apart (simulated, 100,000 pairs, normal noise), a
  table has many numbers, and of batches whose speeds differ by up to `timing.GAIN` two runs may take different ones, which no window shows.
  The second alone would not either, where windows spread.
- Memory is one number: by more than `FLOOR`, at the same batch.
- Accuracies are counted: by more than `ERRORS` standard errors of the difference, the two taken as independent, which is on the wide side.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from visiontune.benchmark import table
from visiontune.errors import counted, some

FLOOR = 0.05
ERRORS = 2.0
WORSE, SAME, BETTER = "worse", "within noise", "better"

Row = dict[str, str]  # of a results.csv; empty where there is nothing


@dataclass(frozen=True)
class Change:
    """One number of one row.

    Attributes:
        name: of the row.
        what: the number, with its unit.
        before, now: as people read it.
        change: in %, of accuracies in points.
        verdict: `WORSE`, `SAME` or `BETTER`.
        doubtful: one of the rows has warnings of a busy or throttled machine.
    """

    name: str
    what: str
    before: str
    now: str
    change: str
    verdict: str
    doubtful: bool = False


@dataclass
class Comparison:
    """Attributes:
    machines: what differs between machines, versions and settings, in words.
    changes: of every number that both have.
    failures: rows that failed in one of the two, in words.
    apart: what is in both and cannot be compared, with the reason.
    before, now: rows that are in one alone.
    """

    machines: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    now: list[str] = field(default_factory=list)

    def of(self, verdict: str) -> list[Change]:
        return [c for c in self.changes if c.verdict == verdict]


@dataclass(frozen=True)
class Column:
    """One that is compared.

    Attributes:
        key: its name; of times `key_q1` and `key_q3` are the quartiles of the windows.
        what: for people.
        form: likewise.
        more: more is better.
        unit: what a number is divided by.
        batch: of memory the column of its batch.
        score: it is an accuracy.
    """

    key: str
    what: str
    form: str = "{:,.4g}"
    more: bool = True
    unit: float = 1.0
    batch: str = ""
    score: bool = False


COLUMNS = (
    *(Column(f"{prefix}images_per_second", f"{part.replace('_', ' ')}, pictures/s") for part, prefix in table.SPEEDS.items()),
    Column("latency_ms", "one picture, ms", "{:,.3g}", more=False),
    *(
        Column(f"{prefix}peak_memory_bytes", f"{part.replace('_', ' ')}, MiB", "{:,.0f}", False, 2**20, f"{prefix}batch_size")
        for part, prefix in table.SPEEDS.items()
    ),
)


def compare(before: dict[str, Row], now: dict[str, Row]) -> Comparison:
    """Rows by their names.

    Args:
        before: rows by name of the other table.
        now: of this one.
    """
    found = Comparison(_machines(list(before.values()), list(now.values())))
    found.before, found.now = [n for n in before if n not in now], [n for n in now if n not in before]
    # a newer version's table may hold accuracies that this one has no word for
    scores = [m for m in table.metrics([*before.values(), *now.values()]) if m in table.NAMES or re.fullmatch(r"few\d+_top1", m)]
    columns = [*COLUMNS, *(Column(metric, f"{table.told(metric)}, %", score=True) for metric in scores)]
    reasons: dict[str, list[str]] = {}  # why numbers are not compared, with the names of their rows
    for name in (n for n in now if n in before):
        old, new = before[name], now[name]
        found.failures += [f"{name} failed {when}: {row['reason']}" for when, row in (("before", old), ("now", new)) if _failed(row)]
        if reason := _other_network(old, new):
            found.apart.append(f"{name}: {reason}")
            continue
        for column in columns:
            reason = ""
            there = bool(old.get(column.key)) + bool(new.get(column.key))
            if there == 2:
                reason = (_add_score if column.score else _add_number)(found.changes, name, column, old, new)
            elif there == 1 and not (_failed(old) or _failed(new)):
                reason = f"{column.what}: measured in one of the two alone"
            if reason:
                reasons.setdefault(reason, []).append(name)
    found.apart += [f"{reason}: {some(names, 8)}" for reason, names in reasons.items()]
    return found


def _add_number(changes: list[Change], name: str, column: Column, old: Row, new: Row) -> str:
    """Adds how a time or memory changed; returns why it cannot be told."""
    x, y = float(old[column.key]), float(new[column.key])
    if not (x and y):
        return f"{column.what}: not known"
    if column.batch:
        if old.get(column.batch) != new.get(column.batch):
            return f"{column.what}: at another batch"
        apart = True
    else:
        ends = [row.get(f"{column.key}_{end}") for row in (old, new) for end in ("q1", "q3")]
        if not all(ends):
            return f"{column.what}: without quartiles of its windows"
        low, high, new_low, new_high = (float(end or 0) for end in ends)
        apart = new_high < low or new_low > high
    beyond = apart and max(x, y) > (1 + FLOOR) * min(x, y)
    before, after = (column.form.format(value / column.unit) for value in (x, y))
    verdict = _verdict(beyond, better=(y > x) == column.more)
    changes.append(Change(name, column.what, before, after, f"{100 * (y / x - 1):+.0f} %", verdict, _doubtful(old, new)))
    return ""


def _add_score(changes: list[Change], name: str, column: Column, old: Row, new: Row) -> str:
    """Adds how an accuracy changed; returns why it cannot be told."""
    if old.get("pictures") and new.get("pictures") and old["pictures"] != new["pictures"]:
        return f"{column.what}: on other pictures"
    seen = f"{column.key.partition('_')[0]}_images_seen"
    if old.get(seen, "") != new.get(seen, ""):
        return f"{column.what}: trained on another number of pictures"
    if column.key in table.MAPS:
        return f"{column.what}: of one training, whose noise is not known"
    counts = [int(float(row.get("val_pictures") or 0)) for row in (old, new)]
    if not all(counts):
        return f"{column.what}: of an unknown number of pictures"
    x, y = float(old[column.key]), float(new[column.key])
    error = sum(p * (1 - p) / n for p, n in zip((x, y), counts, strict=True)) ** 0.5
    verdict = _verdict(abs(y - x) > ERRORS * error, better=y > x)
    points = f"{100 * (y - x):+.1f} points"
    changes.append(Change(name, column.what, f"{100 * x:.1f}", f"{100 * y:.1f}", points, verdict, _doubtful(old, new)))
    return ""


def _verdict(beyond: bool, *, better: bool) -> str:
    return SAME if not beyond else BETTER if better else WORSE


def _doubtful(old: Row, new: Row) -> bool:
    return bool(old.get("warnings") or new.get("warnings"))


def _failed(row: Row) -> bool:
    return row["status"] == table.FAILED


def _other_network(old: Row, new: Row) -> str:
    """Why two rows of one name are of different networks; empty if they are not."""
    for key, told in (("backbone", "network"), ("image_size", "size of pictures")):
        if old.get(key) and new.get(key) and old[key] != new[key]:
            return f"another {told}, {old[key]} and now {new[key]}"
    kinds = {row["weights"] if row["weights"] in ("timm", "random") else "its own" for row in (old, new)}
    return f"other weights, {old['weights']} and now {new['weights']}" if len(kinds) > 1 else ""


def _machines(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """What rows say of the machine, the versions and the settings, where that differs or is not known."""
    told, unknown = [], []
    for key in table.ABOUT:
        if not all(any(key in row for row in rows) for rows in (before, now)):
            unknown.append(key)
        elif key != "pictures":  # told of the accuracies, which alone depend on them
            old, new = (_values(rows, key) for rows in (before, now))
            if old != new:
                told.append(f"{key}: {old}, now {new}")
    if unknown:
        told.append(f"not known of both: {', '.join(unknown)}")
    return told


def _values(rows: Sequence[Row], key: str) -> str:
    """What rows hold there, each once; of dates the day."""
    found = dict.fromkeys(row[key][:10] if key == "date" else row[key] for row in rows if row.get(key))
    return some(sorted(found), 3) or "none"


def summary(found: Comparison) -> list[str]:
    """What a reader needs first, a sentence each."""
    worse, better, same = (found.of(v) for v in (WORSE, BETTER, SAME))
    told = []
    for these, word in ((worse, "slower or worse"), (better, "faster or better")):
        if these:
            told.append(f"{word} beyond noise: {counted(len(these), 'number')} of {counted(len({c.name for c in these}), 'backbone')}")
    told.append(f"within noise: {counted(len(same), 'number')}" if found.changes else "nothing to compare: no row has a number in both")
    return told
