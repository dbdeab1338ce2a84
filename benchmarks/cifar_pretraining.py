"""What minutes of pretraining bring on CIFAR-10: k-NN and linear probe of the frozen embedding, before and after, over seeds.

    python benchmarks/cifar_pretraining.py [CIFAR10] [--recipes cifar/mae_vit cifar/simclr_convnext] [--seeds 0 1] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*; --quick does without. Each row is one run of the shipped recipe through the command; "start"
is the same backbone with the random weights that the run began with, probed in the same process.
"""

import argparse
import tempfile
from pathlib import Path

from common import cifar10, fit, machine, parse, write_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--recipes", nargs="+", default=["cifar/mae_vit", "cifar/simclr_convnext"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="one recipe, one epoch, to see that it runs")
    args = parse(parser, __file__)
    data = cifar10(args.cifar10, quick=args.quick)
    if args.quick:
        args.recipes, args.seeds = args.recipes[:1], args.seeds[:1]
    rows = []
    for seed in args.seeds:
        for recipe in args.recipes:
            with tempfile.TemporaryDirectory() as folder:
                settings = [f"data.train={data}/train", f"probe.train={data}/train", f"probe.val={data}/test", f"seed={seed}"]
                result = fit(recipe, folder, *settings, *(["epochs=1"] if args.quick else []))
            rows.append(
                {
                    "recipe": recipe,
                    "seed": seed,
                    **{k: round(100 * result[k], 2) for k in ("knn_top1_start", "knn_top1", "probe_top1_start", "probe_top1")},
                    "gain_points": round(100 * (result["probe_top1"] - result["probe_top1_start"]), 2),
                    "seconds": round(result["seconds"]),
                    "images_seen": result["images_seen"],
                    "images_per_second": result["images_per_second"],
                    "peak_memory_mb": result["peak_memory_bytes"] // 2**20,
                    "parameters": result["parameters"],
                    **machine(),
                }
            )
            write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
