"""`benchmarks/README.md` from the scripts' docstrings and their CSVs: `python benchmarks/all.py --readme`."""

import ast
import re
from pathlib import Path

from common import read_rows

HERE = Path(__file__).parent
# What other scripts are made of, and what only runs them.
HELPERS = ("all", "common", "lightly_train_run", "peers", "readme")
MACHINE = ("processor", "gpu", "torch", "timm", "date")
VERSIONS = (
    "lightning", "lightly", "lightly-train", "torchvision", "torchmetrics", "pycocotools", "faster-coco-eval", "onnx", "onnxruntime",
    "pillow", "opencv-python-headless", "albumentations",
)  # fmt: skip
ROWS = 12
LONGEST = 48  # letters of a cell

HEAD = """# Benchmarks

One script a question. Each says in its docstring how to run it and what its columns mean, and writes a CSV with hardware, versions and date
in every row. `python benchmarks/NAME.py --quick` shows in a minute that it runs: its numbers are none, and go into a temporary file.
`python benchmarks/all.py` runs all, one after another, each in a process of its own (`--quick`: on little;
`--only NAME ...`; `--help` tells how to give it data sets). Numbers of different machines are not comparable.

This page is written by `python benchmarks/all.py --readme` from docstrings and CSVs. Columns that are the same in all rows stand above the
table.
"""


def scripts(folder: Path = HERE) -> list[str]:
    """Names of those that measure something."""
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in HELPERS)


def csvs_of(name: str, folder: Path = HERE) -> list[Path]:
    """`NAME.csv` and `NAME_*.csv`, if no other script's name is a longer beginning of that."""
    names = scripts(folder)

    def owner(file: Path) -> str:
        return max((n for n in names if file.stem == n or file.stem.startswith(f"{n}_")), key=len, default="")

    return sorted(file for file in folder.glob(f"{name}*.csv") if owner(file) == name)


def summary(script: Path) -> str:
    """The first paragraph of a docstring: what is asked."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split())


def cell(value: str) -> str:
    """Short enough for a table: four digits of a number, the beginning of a text.

    >>> [cell(v) for v in ("0.6004042240001581", "123456.789", "31", "2.4e-07", "a|b")]
    ['0.6004', '123457', '31', '2.4e-07', 'a\\\\|b']
    """
    if re.fullmatch(r"-?\d+\.\d+", value):
        number = float(value)
        return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
    text = " ".join(value.split()).replace("|", "\\|")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3].rstrip()}..."


def table(rows: list[dict[str, str]]) -> list[str]:
    """Lines: what all rows have in common, then the first of them."""
    columns = [c for c in rows[0] if c not in (*MACHINE, *VERSIONS)]
    same = [c for c in columns if len(rows) > 1 and len({row[c] for row in rows}) == 1]
    shown = [c for c in columns if c not in same]
    told = [f"{c} {cell(rows[0][c])}" for c in same if rows[0][c]]
    lines = [f"In all rows: {', '.join(told)}.", ""] if told else []
    lines += [f"| {' | '.join(shown)} |", "|" + "---|" * len(shown)]
    lines += [f"| {' | '.join(cell(row[c]) for c in shown)} |" for row in rows[:ROWS]]
    return lines + ([f"\n... and {len(rows) - ROWS} more rows."] if len(rows) > ROWS else [])


def measured_on(rows: list[dict[str, str]]) -> str:
    """Hardware, versions and dates of all rows."""

    def values(column: str) -> list[str]:
        return list(dict.fromkeys(row[column] for row in rows if row.get(column)))

    gpus = [gpu for gpu in values("gpu") if gpu != "none"]
    parts = [" and ".join(values("processor")), *([f"GPU {' and '.join(gpus)}"] if gpus else ["no GPU"])]
    parts += [f"{package} {' and '.join(found)}" for package in ("torch", "timm", *VERSIONS) if (found := values(package))]
    dates = sorted(values("date"))
    return "; ".join(filter(None, [*parts, " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))]))


def section(name: str, folder: Path) -> list[str]:
    lines = [f"## {name}", "", summary(folder / f"{name}.py"), "", f"Script: [{name}.py]({name}.py)."]
    files = csvs_of(name, folder)
    if not files:
        return [*lines[:-1], f"{lines[-1]} Not measured yet.", ""]
    for file in files:
        rows = read_rows(file)
        if not rows:
            lines += ["", f"[{file.name}]({file.name}) has no rows."]
            continue
        lines += ["", f"[{file.name}]({file.name}): {measured_on(rows)}.", "", *table(rows)]
    return [*lines, ""]


def text(folder: Path = HERE) -> str:
    return "\n".join([HEAD, *(line for name in scripts(folder) for line in section(name, folder))]).rstrip("\n") + "\n"
