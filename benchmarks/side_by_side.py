"""The same pretraining by visiontune and by LightlyTrain: seconds, and what the embedding is worth.

    python benchmarks/side_by_side.py [CIFAR10] --peer-python PEER/bin/python [--methods simclr dino] [--cases photos cifar]
        [--seeds 0 1] [--epochs 3 20] [--workers 2] [--accelerator cpu] [--go-on] [--together] [--quick]

PEER is an environment with lightly-train 0.18 and timm (`pip install "lightly-train==0.18.*" timm`). Cases:
- photos: JPEG photos of 500x375, trained on at 96 pixels. Loading counts.
- cifar: 5,000 pictures of CIFAR10/train (the first 500 of each class) at 32 pixels. Arithmetic counts. The embedding of both
  backbones is judged by k-NN on CIFAR10/test, the 5,000 with their labels being the neighbours; "start" is the untrained backbone.

Both sides have the same backbone (timm, random weights), pictures, epochs, batch, loader processes, seeds, fp32, and
LightlyTrain's default augmentation, hyperparameters and schedule, which visiontune gets as a recipe (see benchmarks/lightly_train_run.py).
What differs: the way of enlarging, reducing and blurring, random numbers, and when each saves and reports.
Runs are whole commands, one at a time; which side goes first alternates. (With --together both run at once on half of the cores each, for
k-NN alone: no times are noted.) `seconds` are of the training itself,
from Lightning's `on_fit_start` to `on_fit_end`, checkpoints included; `command_seconds` of the command.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import torch
from common import cifar10, fit, machine, parse, skip, write_rows

from visiontune import SimCLR
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.parts import align_labels
from visiontune.data.views import CenterCrop
from visiontune.evaluate import embed_all, knn_predict

PEER = Path(__file__).with_name("lightly_train_run.py")
CASES = {
    "photos": {"image_size": 96, "local_size": 40, "batch_size": 64},
    "cifar": {"image_size": 32, "local_size": 16, "batch_size": 64},
}


def make_pictures(case: str, folder: Path, cifar10: Path, count: int) -> None:
    if case == "photos":
        peers.make_photos(folder, 500, 375, None, count, seed=0)
        return
    for kind in sorted(d for d in (cifar10 / "train").iterdir() if d.is_dir()):
        (folder / kind.name).mkdir(parents=True)
        for file in sorted(kind.iterdir())[: count // 10]:
            shutil.copy(file, folder / kind.name / file.name)


def peer(python: str, what: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, str(PEER), what, str(folder / "settings.json"), str(folder)], check=True, env=environment)
    return json.loads((folder / "said.json").read_text())


def recipe(settings: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    own = {"train": settings["data"], **{k: settings[k] for k in ("image_size", "batch_size", "workers")}}
    return {
        "task": "pretrain",
        "method": theirs["method"],
        "backbone": {"name": settings["backbone"], "weights": "random"},
        "data": theirs["data"] | own,
        "optim": theirs["optim"],
        "epochs": settings["epochs"],
        "seed": settings["seed"],
        "trainer": {"precision": "32-true", "devices": 1, "accelerator": settings["accelerator"]},
    }


def train(side: str, python: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`seconds`, `command_seconds`, and a file of `weights`."""
    if side == "theirs":
        began = time.monotonic()
        said = peer(python, "train", settings, folder / "theirs")
        return said | {"command_seconds": time.monotonic() - began}
    file = folder / "ours.yaml"
    file.write_text(json.dumps(recipe(settings, peer(python, "recipe", settings, folder / "numbers"))))  # JSON is YAML
    began = time.monotonic()
    result = fit(str(file), folder / "ours")
    seconds = {"seconds": result["seconds"], "command_seconds": time.monotonic() - began}
    steps = settings["pictures"] // settings["batch_size"] * settings["epochs"]
    assert result["images_seen"] == steps * settings["batch_size"], result
    return seconds | {"steps": steps, "weights": str(folder / "ours" / "run" / "weights" / "backbone")}


def knn(backbone: str, weights: str, neighbours: Path, test: Path, size: int, seed: int = 0) -> float:
    """Share of test pictures whose class their neighbours' embeddings tell; the embedding is the backbone's pooled last features."""
    torch.manual_seed(seed)
    module = SimCLR(backbone, weights=weights, image_size=size, mean=peers.IMAGENET_MEAN, std=peers.IMAGENET_STD)
    tables = [list_pictures(neighbours, labelled=True)]
    tables.append(align_labels(list_pictures(test, labelled=True), tables[0].classes))
    loaders = [make_loader(Pictures(t, CenterCrop((size, size))), EvalOrder(len(t), 256), workers=0) for t in tables]
    (x, y), (z, truth) = (embed_all(module, loader) for loader in loaders)
    return float((knn_predict(x, y, z) == truth).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10", help="train/CLASS/* and test/CLASS/*")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has lightly-train 0.18")
    parser.add_argument("--methods", nargs="+", choices=("simclr", "dino"), default=["simclr", "dino"])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", nargs=2, type=int, default=[3, 20], help="of photos and of cifar")
    parser.add_argument("--pictures", nargs=2, type=int, default=[1500, 5000], help="photos and pictures of CIFAR-10")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", help="gpu is for k-NN after many epochs")
    parser.add_argument("--quick", action="store_true", help="one method, one epoch on few pictures, one seed, to see that it runs")
    parser.add_argument("--together", action="store_true", help="both sides at once, for k-NN; no times")
    parser.add_argument("--go-on", action="store_true", help="add to the rows of the CSV that are there")
    args = parse(parser, __file__)
    if subprocess.run([args.peer_python, "-c", "import lightly_train"], capture_output=True, check=False).returncode:
        skip(f'needs lightly-train 0.18, which {args.peer_python} does not have; pip install "lightly-train==0.18.*" timm in an '
             "environment of its own, and give its Python with --peer-python")  # fmt: skip
    args.cifar10 = cifar10(args.cifar10, quick=args.quick)
    if args.together:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    if args.quick:
        args.methods, args.seeds, args.epochs, args.pictures = args.methods[:1], args.seeds[:1], [1, 1], [256, 1000]
    rows: list[dict[str, Any]] = []
    if args.go_on and args.csv.is_file():
        with args.csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
    ratios: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in args.cases:
            which = list(CASES).index(case)
            pictures = Path(scratch) / case
            make_pictures(case, pictures, args.cifar10, args.pictures[which])
            fixed = CASES[case] | {"data": str(pictures), "pictures": args.pictures[which], "epochs": args.epochs[which]}
            for method in args.methods:
                for turn, seed in enumerate(args.seeds):
                    settings = fixed | {"method": method, "backbone": args.backbone, "workers": args.workers, "seed": seed}
                    settings["accelerator"] = args.accelerator
                    with tempfile.TemporaryDirectory() as folder:
                        order = ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours")
                        with ThreadPoolExecutor(2 if args.together else 1) as pool:
                            found = pool.map(lambda side: train(side, args.peer_python, settings, Path(folder)), order)  # noqa: B023
                            runs = dict(zip(order, found, strict=True))
                        row = compare(case, settings, runs, args.cifar10, timed=not args.together)
                    row["first"] = "together" if args.together else order[0]
                    if not args.together:
                        ratios.setdefault((case, method), []).append(row["ratio"])
                    rows.append(row | machine())
                    write_rows(args.csv, rows)
    for (case, method), each in ratios.items():
        spread = f"{min(each):.3f} to {max(each):.3f}, {len(each)} pairs"
        print(f"{case} {method}: {statistics.median(each):.3f} of LightlyTrain's seconds ({spread})")


def compare(case: str, settings: dict[str, Any], runs: dict[str, dict[str, Any]], cifar10: Path, *, timed: bool) -> dict[str, Any]:
    assert runs["ours"]["steps"] == runs["theirs"]["steps"], runs
    row: dict[str, Any] = {"case": case} | {
        k: settings[k] for k in ("method", "backbone", "pictures", "image_size", "batch_size", "epochs", "workers", "seed")
    }
    for clock in ("seconds", "command_seconds") if timed else ():
        row |= {f"{side}_{clock}": round(runs[side][clock], 2) for side in ("ours", "theirs")}
    if timed:
        row["ratio"] = round(runs["ours"]["seconds"] / runs["theirs"]["seconds"], 3)
        row["command_ratio"] = round(runs["ours"]["command_seconds"] / runs["theirs"]["command_seconds"], 3)
    if case == "cifar":
        judged = (Path(settings["data"]), cifar10 / "test", settings["image_size"])
        row["start_knn"] = round(100 * knn(settings["backbone"], "random", *judged, seed=settings["seed"]), 2)
        row |= {f"{side}_knn": round(100 * knn(settings["backbone"], runs[side]["weights"], *judged), 2) for side in ("ours", "theirs")}
    return row


if __name__ == "__main__":
    main()
