"""What six minutes of masked pretraining bring on 5,000 photos: linear probe and fine-tuning on 1,000 labels, against random weights.

    python benchmarks/masked_cifar.py [CIFAR10] [--recipes cifar/masked_mae ...] [--seeds 0 1 2] [--jobs 2] [--epochs 1] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*; --quick does without. Each row is one run of a shipped recipe through the command: pretraining
on 500 photos a class without their labels, fine-tuning on 100 labels a class from it, and the same from random weights; accuracies are of
the test photos. "start" is the same backbone with the random weights that the pretraining began with, probed in the same process. Each job
has an equal share of the cores. After all runs the mean and spread over seeds are printed.
"""

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import cifar10, fit, machine, parse, part_of, write_rows

RECIPES = [f"cifar/masked_{name}" for name in ("mae", "simmim", "spark_resnet", "spark_convnext", "ijepa")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of pretraining, instead of the recipes'")
    parser.add_argument("--quick", action="store_true", help="one recipe, one seed, one epoch a stage on few pictures, to see that it runs")
    args = parse(parser, __file__)
    data, quick = cifar10(args.cifar10, quick=args.quick), []
    if args.quick:
        args.recipes, args.seeds, args.epochs, args.jobs = args.recipes[:1], args.seeds[:1], 1, 1
        quick = [f"stages.{stage}.{key}" for stage in ("finetune", "scratch") for key in ("epochs=1", "data.labels_per_class=10")]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = part_of(data / "train", Path(folder) / "photos", per_class=10 if args.quick else 500)
        test = part_of(data / "test", Path(folder) / "test", per_class=5) if args.quick else data / "test"

        def one(job: tuple[int, str]) -> None:
            seed, recipe = job
            settings = [f"seed={seed}", "data.workers=0"]
            settings += [f"data.train={photos}", f"probe.train={photos}", f"probe.val={test}"]
            settings += [f"stages.{stage}.data.val={test}" for stage in ("finetune", "scratch")]
            settings += [f"stages.pretrain.epochs={args.epochs}"] if args.epochs else []
            with tempfile.TemporaryDirectory() as run:
                result = fit(recipe, run, *settings, *quick)
            rows.append(row(recipe, seed, result) | {"threads": threads, "jobs": args.jobs, **machine()})
            write_rows(args.csv, rows)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(one, [(seed, recipe) for seed in args.seeds for recipe in args.recipes]))
    summarise(rows)


def row(recipe: str, seed: int, result: dict[str, Any]) -> dict[str, Any]:
    pretrain, tuned, scratch = (result["stages"][s] for s in ("pretrain", "finetune", "scratch"))
    percent = {
        "probe_start": pretrain["probe_top1_start"],
        "probe": pretrain["probe_top1"],
        "knn_start": pretrain["knn_top1_start"],
        "knn": pretrain["knn_top1"],
        "tuned_scratch": scratch["top1_last"],
        "tuned": tuned["top1_last"],
    }
    out: dict[str, Any] = {"recipe": recipe, "seed": seed} | {k: round(100 * v, 2) for k, v in percent.items()}
    out["probe_gain"] = round(out["probe"] - out["probe_start"], 2)
    out["tuned_gain"] = round(out["tuned"] - out["tuned_scratch"], 2)
    out |= {"loss": round(pretrain["loss"], 4), "baseline": round(pretrain["loss_baseline"], 4)}
    out |= {"seconds": round(pretrain["seconds"]), "images_seen": pretrain["images_seen"], "parameters": pretrain["parameters"]}
    return out


def summarise(rows: list[dict[str, Any]]) -> None:
    for recipe in dict.fromkeys(r["recipe"] for r in rows):
        own = [r for r in rows if r["recipe"] == recipe]
        for before, after in (("probe_start", "probe"), ("tuned_scratch", "tuned")):
            a, b = ([r[k] for r in own] for k in (before, after))
            spread = [statistics.stdev(v) if len(v) > 1 else float("nan") for v in (a, b)]
            print(
                f"{recipe} {after}: {statistics.mean(a):.1f} (sd {spread[0]:.1f}) -> {statistics.mean(b):.1f} (sd {spread[1]:.1f}), "
                f"{statistics.mean(b) - statistics.mean(a):+.1f} points, {len(own)} seeds"
            )


if __name__ == "__main__":
    main()
