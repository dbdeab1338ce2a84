"""Run the benchmarks one after another, each in a process of its own, and tell what came of each.

    python benchmarks/all.py [--quick] [--only NAME ...] [--out FOLDER] [--cifar10 FOLDER] [--bccd FOLDER] [--lite0 FILE]
        [--peer-python FILE]
    python benchmarks/all.py --readme

--quick shows that all of them run, on little data that they make themselves; CSVs and what the
scripts said go to --out (default: a temporary folder, which is named). Without --quick CSVs go to --out, or beside the scripts, and it
takes many hours: the machine should have nothing else to do. A script whose data set or package is not there is skipped, with its reason;
one that fails, or takes longer than its minutes, stops none of the others. The exit status is 1 if something failed. --readme measures
nothing: it writes README.md from the CSVs beside the scripts.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import readme
from common import SKIPPED

from visiontune.errors import near

# What a script is given of this one's options; the folders to work in are temporary ones.
TAKES: dict[str, tuple[str, ...]] = {
    "cifar_pretraining": ("{cifar10}",),
    "compare_weights": ("{cifar10}", "--weights={lite0}"),
    "detect_bccd": ("{bccd}", "--lite0={lite0}"),
    "imagenet_weights": ("{cifar10}", "--weights={lite0}"),
    "joint_cifar": ("{cifar10}", "--lite0={lite0}"),
    "masked_cifar": ("{cifar10}",),
    "rank_backbones": ("{cifar10}",),
    "side_by_side": ("{cifar10}", "--peer-python={peer_python}"),
    "tune_budget": ("{cifar10}", "--weights={lite0}"),
    "tune_defaults": ("{cifar10}", "--weights={lite0}"),
}
NEEDS_CUDA = ("gpu",)
MINUTES = {"quick": 5, "whole": 24 * 60}  # after which a script is taken to hang


@dataclass(frozen=True)
class Outcome:
    """Of one script.

    Attributes:
        name: its own, without an ending.
        status: `ok`, `failed` or `skipped`.
        seconds: how long it took.
        reason: in words, unless it is `ok`.
    """

    name: str
    status: str
    seconds: float
    reason: str = ""

    @property
    def line(self) -> str:
        return f"{self.name:<24} {self.status:<8} {self.seconds:>8.1f} s  {self.reason}".rstrip()


def words_of(name: str, given: dict[str, str]) -> list[str]:
    """What of `TAKES` was given to this script.

    >>> words_of("compare_weights", {"cifar10": "/photos"})
    ['/photos']
    """
    found = []
    for word in TAKES.get(name, ()):
        try:
            found.append(word.format_map(given))
        except KeyError:  # the script says what it does without
            continue
    return found


def run(script: Path, words: Sequence[str], log: Path, *, minutes: float) -> Outcome:
    """One script, with whatever it started ended with it."""
    began = time.perf_counter()
    with log.open("wb") as out:
        command = [sys.executable, str(script), *words]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        status: int | None = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - began
    if status == 0:
        return Outcome(script.stem, "ok", seconds)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it said nothing"
    if status == SKIPPED:
        return Outcome(script.stem, "skipped", seconds, last.removeprefix(f"{script.name}: "))
    why = f"took longer than {minutes:g} minutes" if status is None else f"status {status}"
    return Outcome(script.stem, "failed", seconds, f"{why}: {last} ({log})")


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="to see that all of them run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scripts")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for CSVs and what the scripts say")
    parser.add_argument("--cifar10", type=Path, help="train/CLASS/* and test/CLASS/*")
    parser.add_argument("--bccd", type=Path, help="JPEGImages, Annotations and ImageSets/Main")
    parser.add_argument("--lite0", type=Path, help="EfficientNet-Lite0's ImageNet weights (default: the installed package's)")
    parser.add_argument("--peer-python", type=Path, help="a Python that has lightly-train 0.18")
    parser.add_argument("--readme", action="store_true", help="write README.md from the CSVs, and measure nothing")
    args = parser.parse_args(argv)
    if args.readme:
        (readme.HERE / "README.md").write_text(readme.text())
        return 0
    names = readme.scripts(readme.HERE)
    wanted = [Path(name).stem for name in args.only or names]
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"--only: got {unknown[0]}; allowed: {', '.join(names)}{near(unknown[0], names)}")
    given = {key: str(path.absolute()) for key in ("cifar10", "bccd", "lite0", "peer_python") if (path := getattr(args, key))}
    out = (args.out or Path(tempfile.mkdtemp(prefix="visiontune_benchmarks_"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    print(f"what the scripts say: {out}/NAME.txt", flush=True)

    outcomes: list[Outcome] = []
    for name in wanted:
        if name in NEEDS_CUDA and not cuda():
            outcomes.append(Outcome(name, "skipped", 0.0, "needs a CUDA device, and there is none"))
        else:
            words = [*words_of(name, given), *(["--quick"] if args.quick else [])]
            words += ["--csv", str(out / f"{name}.csv")] if args.quick or args.out else []
            minutes = MINUTES["quick" if args.quick else "whole"]
            outcomes.append(run(readme.HERE / f"{name}.py", words, out / f"{name}.txt", minutes=minutes))
        print(outcomes[-1].line, flush=True)
    counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in ("ok", "failed", "skipped")]
    print(f"{', '.join(counts)}; {sum(o.seconds for o in outcomes) / 60:.1f} minutes")
    return int(any(o.status == "failed" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
