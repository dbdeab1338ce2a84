"""What the scripts here share: running a recipe through the command, and rows with the machine beside them."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

from visiontune.run import processor


def fit(recipe: str, folder: str | Path, *settings: str) -> dict[str, Any]:
    """`python -m visiontune.fit RECIPE SETTINGS` in a new folder; the content of its `result.json`."""
    run = Path(folder) / "run"
    subprocess.run([sys.executable, "-m", "visiontune.fit", recipe, *settings, "--out", str(run)], check=True)
    return json.loads((run / "result.json").read_text())


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows so far and print the newest: a script that is stopped keeps what it measured."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(rows[-1], flush=True)
