"""Seconds that `python -m visiontune benchmark` takes for 12 small backbones and for one more, and whether a second run ranks them alike.

    python benchmarks/rank_backbones.py [CIFAR10] [--pictures 2000] [--backbones ...] [--more ghostnet_050] [--size 64] [--seconds 1]
        [--quick]

CIFAR10 holds train/CLASS/* (the first 200 of each class are taken, a fifth of them to score on); --quick does without. Weights are random
ones of seed 0: nothing is fetched, and speed does not depend on them. Three commands, one after another:
1. k-NN, linear probe and speeds of all backbones, in a new folder and with an empty cache of embeddings;
2. the same with one backbone more, in the same folder: what is there is kept;
3. the backbones of the first again in another folder: all speeds are measured afresh, embeddings come from the cache.

rank_backbones.csv has a row a command: command, backbones, pictures, image_size, threads, seconds, and of the third how many pairs of
backbones are more than 10 % apart in the first run and how many of these the second one swaps: pairs, swapped; the same among backbones
whose speed came without a warning in both runs (of a busy machine, or of windows that differ): calm_pairs, calm_swapped; and all four of
training: training_pairs, ... rank_backbones_speeds.csv has a row a backbone and step: the pictures a second of both runs, their difference
in %, and what the verb itself said against each number. Both end with the machine.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import cifar10, machine, parse, part_of, read_rows, write_rows

# Small ones of families that people use, convolutional, transformers and both.
BACKBONES = (
    "resnet10t", "vit_tiny_patch16_224", "convnext_atto", "resnet18", "regnetx_002", "regnety_002", "tf_efficientnet_lite0",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "edgenext_xx_small", "mambaout_femto", "repvgg_a0",
)  # fmt: skip
APART = 0.10  # of the slower one's speed
STEPS = {"inference": "images_per_second", "training": "train_images_per_second"}


def swaps(first: dict[str, float], second: dict[str, float], apart: float = APART) -> tuple[int, int]:
    """Pairs whose speeds in the first run differ by more than `apart`, and how many of them stand the other way round in the second.

    >>> swaps({"a": 100, "b": 105, "c": 120}, {"a": 106, "b": 105, "c": 104})
    (2, 2)
    """
    pairs = swapped = 0
    for one, other in itertools.combinations(first, 2):
        slow, fast = sorted((one, other), key=lambda name: first[name])
        if first[fast] > (1 + apart) * first[slow]:
            pairs += 1
            swapped += second[fast] <= second[slow]
    return pairs, swapped


def doubted(row: dict[str, str], step: str) -> bool:
    """Whether the verb said something against this step's speed.

    >>> doubted({"warnings": "training: its windows differ: ..."}, "inference")
    False
    """
    return any(word.startswith(f"{step}: ") for word in row.get("warnings", "").split("; "))


def benchmark(photos: Path, names: list[str], out: Path, args: argparse.Namespace, cache: Path) -> tuple[float, dict[str, dict[str, str]]]:
    """Seconds of the command, and the rows of its `results.csv` by backbone."""
    words = ["benchmark", str(photos), "--val", "0.2", "--backbones", *names, "--weights", "random", "--at", str(args.size)]
    words += ["--probe", "knn", "linear", "--device", "cpu", "--seconds", str(args.seconds), "--out", str(out)]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "visiontune", *words], env=os.environ | {"VISIONTUNE_CACHE": str(cache)}, check=False)
    seconds = time.perf_counter() - began
    rows = {row["name"].removesuffix(" (random)"): row for row in read_rows(out / "results.csv")} if done.returncode in (0, 1) else {}
    if done.returncode:
        reasons = [f"{name}: {row['reason']}" for name, row in rows.items() if row["reason"]]
        raise SystemExit(f"the benchmark ended with status {done.returncode}: {'; '.join(reasons) or 'see above'}")
    return seconds, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--more", default="ghostnet_050", help="the backbone that is added")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest window of a timing, as the verb has it")
    parser.add_argument("--quick", action="store_true", help="two backbones and one more, few pictures, short windows, to see that it runs")
    args = parse(parser, __file__)
    data = cifar10(args.cifar10, quick=args.quick)
    if args.quick:
        args.pictures, args.seconds, args.size = 100, 0.02, 32
        args.backbones, args.more = ["test_resnet", "test_convnext"], "test_byobnet"  # of a few hundred thousand parameters
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        photos = part_of(data / "train", work / "photos", per_class=args.pictures // 10)
        about = {"pictures": sum(1 for _ in photos.glob("*/*")), "image_size": args.size, "threads": torch.get_num_threads()}
        commands = {
            "all backbones": (args.backbones, work / "first"),
            "one backbone more": ([*args.backbones, args.more], work / "first"),
            "all backbones again, speeds afresh": (args.backbones, work / "second"),
        }
        rows: list[dict[str, Any]] = []
        results = []
        for command, (names, out) in commands.items():
            seconds, found = benchmark(photos, names, out, args, work / "cache")
            results.append({name: found[name] for name in names})
            rows.append({"command": command, "backbones": len(names), **about, "seconds": round(seconds, 1), **machine()})
            write_rows(args.csv, rows)
    first, _, second = results
    speeds: list[dict[str, Any]] = []
    for step, column in STEPS.items():
        before, after = ({name: float(row[column]) for name, row in result.items()} for result in (first, second))
        calm = {name: before[name] for name in before if not any(doubted(result[name], step) for result in (first, second))}
        for key, names in (("", before), ("calm_", calm)):
            prefix = f"{'training_' * (step == 'training')}{key}"
            rows[-1] |= dict(zip((f"{prefix}pairs", f"{prefix}swapped"), swaps(names, after), strict=True))
        for name in args.backbones:
            change = 100 * (after[name] / before[name] - 1)
            row = {"model": name, "step": step, "first_images_per_second": before[name], "second_images_per_second": after[name]}
            said = {f"{which}_warnings": result[name].get("warnings", "") for which, result in (("first", first), ("second", second))}
            speeds.append(row | {"change_percent": round(change, 1)} | said | machine())
    write_rows(args.csv, rows)
    write_rows(args.csv.with_stem(f"{args.csv.stem}_speeds"), speeds)


if __name__ == "__main__":
    main()
