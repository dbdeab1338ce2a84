"""`--against OLD.csv`: a finished benchmark beside another one's table, on the terminal and in its report."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visiontune.benchmark import table
from visiontune.benchmark.noise import BETTER, ERRORS, FLOOR, SAME, WORSE, Change, Comparison, Row, compare, summary
from visiontune.errors import UserError, near, readable, some
from visiontune.report.against import put_against
from visiontune.report.measured import text_table

RESULTS = "results.csv"
FIRST = ("name", "backbone", "weights", "status", "reason")  # the columns that every row has
NUMBERS = re.compile(
    r"\w*(images_per_second|latency_ms|peak_memory_bytes)(_q[13])?|\w+_top1|detect_map(50)?|val_pictures"
)  # what is compared
COLUMNS = ("backbone", "number", "before", "now", "change", "verdict")
RULE = (
    f"Beyond noise: speeds and times where the quartiles of the windows do not overlap and the medians differ by more than {100 * FLOOR:g} "
    f"%; memory by more than {100 * FLOOR:g} % at the same batch; accuracies by more than {ERRORS:g} standard errors of the difference."
)
DOUBTFUL = "one of the two was measured on a busy or throttled machine"


@dataclass(frozen=True)
class Table:
    """Attributes:
    file: a results.csv.
    rows: by name.
    """

    file: Path
    rows: dict[str, Row]


def read_table(place: str | Path, *, key: str) -> Table:
    """A `results.csv`, or that of a benchmark's folder.

    Raises:
        UserError: in one sentence that begins with `key`.
    """
    file = Path(place) / RESULTS if Path(place).is_dir() else Path(place)
    wanted = f"give the {RESULTS} of a benchmark, or its folder"
    if not file.is_file():
        parent = file.absolute().parent
        there = sorted(p.name for p in parent.iterdir() if p.suffix == ".csv" or p.is_dir()) if parent.is_dir() else []
        holds = f"; {parent} holds {some(there)}" if there else ""
        raise UserError(f"{key}: there is no file {file}{near(file.name, there) or holds}; {wanted}")
    try:
        with file.open(newline="", errors="surrogateescape") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns = list(reader.fieldnames or [])
            if missing := [c for c in FIRST if c not in columns]:
                raise UserError(
                    f"{key}: {file} is no table of a benchmark: its first line has no {some(missing)}, but {some(columns) or 'nothing'}; "
                    f"{wanted}"
                )
            lines = [(reader.line_num, line) for line in reader]
    except (csv.Error, OSError) as error:
        raise UserError(f"{key}: {file} cannot be read as a CSV ({readable(str(error))}); {wanted}") from error
    rows: dict[str, Row] = {}
    for number, line in lines:
        _check(line, len(columns), f"{key}: {file}, line {number}")
        if line["name"] in rows:
            raise UserError(f"{key}: {file} has two rows of the name {line['name']!r}, the second in line {number}; keep one of them")
        rows[line["name"]] = line
    if not rows:
        raise UserError(f"{key}: {file} has no row; {wanted}")
    return Table(file.absolute(), rows)


def _check(line: Row, columns: int, where: str) -> None:
    if None in line or None in line.values():
        got = "more" if None in line else sum(v is not None for v in line.values())
        raise UserError(f"{where}: got {got} cells; expected {columns}, as the first line has; the file is torn")
    for name, text in line.items():
        if text and NUMBERS.fullmatch(name):
            share = table.is_score(name)
            try:
                right = 0 <= float(text) <= 1 if share else 0 <= float(text) < math.inf
            except ValueError:
                right = False
            if not right:
                raise UserError(f"{where}: {name}: got {text!r}; expected a number {'from 0 to 1' if share else 'of at least 0'}")


def against(before: Table, now: Table, *, page: Path | None = None) -> str:
    """Compare, put it into the page where there is one, and return it for a terminal."""
    found = compare(before.rows, now.rows)
    lines = [*found.failures, *(f"not compared: {line}" for line in found.apart), *_alone(found, before.file)]
    if page is not None and page.is_file():
        changes = [c for verdict in (WORSE, BETTER, SAME) for c in found.of(verdict)]
        put_against(
            page, file=str(before.file), summary=summary(found), machines=found.machines, columns=COLUMNS,
            rows=[[*_cells(c), c.verdict + (f" ({DOUBTFUL})" if c.doubtful else "")] for c in changes], rule=RULE, lines=lines,
        )  # fmt: skip
    told = [f"against {before.file}:", *(f"  {line}" for line in found.machines)]
    for verdict, title in ((WORSE, "slower or worse"), (BETTER, "faster or better")):
        if changes := found.of(verdict):
            told += ["", f"{title} beyond noise:", _table(changes)]
            if any(c.doubtful for c in changes):
                told.append(f"  ? {DOUBTFUL}, see `warnings` in {RESULTS}")
    return readable("\n".join([*told, "", *summary(found), *lines, RULE]))


def finished(place: str, before: str) -> int:
    """A finished benchmark, its folder or its table, against another one: nothing is measured. Returns 0.

    Raises:
        UserError: in one sentence.
    """
    old = read_table(before, key="--against")
    try:
        now = read_table(place, key="benchmark")
    except UserError as error:
        raise UserError(f"{error}; to measure backbones first, name them by --backbones") from None
    page = Path(place) / "report.html" if Path(place).is_dir() else None
    print(against(old, now, page=page))
    if page is not None and page.is_file():
        print(f"report: {page.absolute()}")
    return 0


def _alone(found: Comparison, file: Path) -> list[str]:
    told = [f"only in {file}: {some(found.before, 8)}"] if found.before else []
    return told + ([f"only here: {some(found.now, 8)}"] if found.now else [])


def _cells(change: Change) -> list[str]:
    return [change.name, change.what, change.before, change.now, change.change]


def _table(changes: Sequence[Change]) -> str:
    cells = [list(COLUMNS[:-1]), *([*_cells(c)[:-1], c.change + " ?" * c.doubtful] for c in changes)]
    return "\n".join(f"  {line}" for line in text_table(cells, texts=2).splitlines())
