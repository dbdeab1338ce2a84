"""Pictures a second from JPEG files to normalised float tensors: ours, timm's, torchvision's and LightlyTrain's loader.

python benchmarks/input_pipeline.py [/scratch/folder] [--workers 2] [--rounds 5] [--cases crop_500x400 ...] [--quick]

Each measurement is a process of its own with the same number of loader workers; the loaders take turns in every round. The clock runs
from the arrival of the first batch over the rest of one pass; both sides end with normalised float32 on the CPU. Two-view loaders count
pictures, not views. All sides take LightlyTrain's SimCLR numbers (crop, jitter, grey, blur), ours without its fixed blur kernel.
Needs timm, torchvision and lightly-train 0.18 in the environment (see benchmarks/peers.py); a peer that is missing is left out.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peers
from common import machine, parse, work_in, write_rows

SIZE = 224
# width, height, bytes a file, pictures, batch, loaders; "ours" first
CASES = {
    "crop_500x400": (500, 400, None, 3000, 64, ("ours_crop", "timm", "torchvision", "torchvision_tensor")),
    "simclr_500x400": (500, 400, None, 3000, 64, ("ours_simclr", "lightly_train", "torchvision_simclr")),
    "crop_3000x2000_2.0MB": (3000, 2000, 2_000_000, 240, 8, ("ours_crop", "timm", "torchvision")),
    "simclr_3000x2000_2.0MB": (3000, 2000, 2_000_000, 240, 8, ("ours_simclr", "lightly_train")),
    "crop_3000x2000_0.8MB": (3000, 2000, 800_000, 240, 8, ("ours_crop", "timm", "torchvision")),
    "simclr_3000x2000_0.8MB": (3000, 2000, 800_000, 240, 8, ("ours_simclr", "lightly_train")),
}
NEEDS = {"timm": "timm", "lightly_train": "lightly_train", "torchvision_simclr": "lightly_train"}  # the last takes its numbers


class Ours:
    """visiontune's loader, and the normalisation that its modules do on the device."""

    def __init__(self, folder: Path, keys: dict, *, batch_size: int, workers: int) -> None:
        from visiontune import SimCLR
        from visiontune.data.folder import list_pictures
        from visiontune.data.loader import Pictures, make_loader
        from visiontune.data.order import TrainOrder
        from visiontune.data.views import Augment, Views

        table = list_pictures(folder)
        dataset = Pictures(table, Augment(Views.of(keys), (SIZE, SIZE)), replace=True)
        self.loader = make_loader(dataset, TrainOrder(len(table), batch_size, 0, lambda: 0), workers=workers)
        # The normalisation is the module's own; its network takes no part.
        self.module = SimCLR("resnet18", mean=peers.IMAGENET_MEAN, std=peers.IMAGENET_STD, projector_hidden=8)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            yield self.module.views(batch["images"]), batch["labels"]


def our_keys(loader: str) -> dict:
    """LightlyTrain's SimCLR numbers as ours: read in a process of its own, since importing it changes OpenCV's and Pillow's settings."""
    if loader == "ours_crop":
        return {"crop_scale": (0.08, 1.0), "flip": 0.5}
    jitter = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    return {"views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, **jitter, "grey": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0)}


def check_numbers() -> None:
    theirs, ours = peers.lightly_train_views(), our_keys("ours_simclr")
    for key in ours.keys() & theirs.keys():
        a, b = (v if isinstance(v, tuple | list) else (v,) for v in (theirs[key], ours[key]))
        same = all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))
        assert same, f"{key}: LightlyTrain takes {theirs[key]}, we {ours[key]}"


def open_loader(loader: str, folder: Path, batch: int, workers: int):
    settings = {"batch_size": batch, "workers": workers}
    if loader.startswith("ours"):
        return Ours(folder, our_keys(loader), **settings)
    if loader == "timm":
        return peers.timm_loader(folder, image_size=SIZE, **settings)
    if loader == "torchvision":
        return peers.torchvision_loader(folder, image_size=SIZE, **settings)
    if loader == "torchvision_tensor":
        return peers.torchvision_loader(folder, image_size=SIZE, backend="tensor", **settings)
    if loader == "torchvision_simclr":
        return peers.torchvision_simclr_loader(folder, peers.lightly_train_views(), image_size=SIZE, **settings)
    return peers.lightly_train_loader(folder, image_size=SIZE, **settings)


def measure(loader: str, folder: Path, batch: int, workers: int) -> float:
    """Pictures a second."""
    seen, started = 0, 0.0
    for content in open_loader(loader, folder, batch, workers):
        views = peers.views(content)
        assert all(v.dtype.is_floating_point and tuple(v.shape[1:]) == (3, SIZE, SIZE) for v in views)
        if started:
            seen += len(views[0])
        else:
            started = time.perf_counter()
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="its photos stay for the next time (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round over 200 small photos, to see that it runs")
    args = parse(parser, __file__)
    if args.child:
        loader, batch = args.child
        import torch

        torch.set_num_threads(1)  # on all sides: the workers have the cores
        print(measure(loader, args.folder, int(batch), args.workers))
        return
    if args.quick:
        args.rounds, args.cases = 1, [case for case in args.cases if case.endswith("_500x400")]
    if importlib.util.find_spec("lightly_train"):
        check_numbers()
    with work_in(args.folder) as folder:
        measure_all(folder, args)


def measure_all(folder: Path, args: argparse.Namespace) -> None:
    rows = []
    for case in args.cases:
        width, height, size, count, batch, loaders = CASES[case]
        count = 200 if args.quick else count
        photos = folder / f"{case.removeprefix('crop_').removeprefix('simclr_')}{'_quick' if args.quick else ''}"
        if not photos.is_dir():
            peers.make_photos(photos, width, height, size, count, 0)
        files = [f.stat().st_size for f in photos.rglob("*.jpg")]
        loaders = tuple(name for name in loaders if name not in NEEDS or importlib.util.find_spec(NEEDS[name]))
        found: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.rounds):
            for name in loaders:
                words = [sys.executable, __file__, str(photos), "--workers", str(args.workers), "--child", name, str(batch)]
                # Large pages for large tensors, as visiontune.fit asks of torch: for all sides, whose main processes normalise too.
                environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}
                done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
                found[name].append(float(done.stdout.strip().splitlines()[-1]))
        ours = found[loaders[0]]
        for name, values in found.items():
            # of each round, so that what slowed the machine slowed both
            ratios = [a / b for a, b in zip(ours, values, strict=True)]
            row = {"case": case, "loader": name, "pictures_per_second": round(statistics.median(values), 1)}
            row |= {"min": round(min(values), 1), "max": round(max(values), 1), "ours_is_faster_by": round(statistics.median(ratios), 2)}
            row |= {"ratio_min": round(min(ratios), 2), "ratio_max": round(max(ratios), 2), "rounds": args.rounds, "workers": args.workers}
            rows.append(
                row | {"pictures": len(files), "mean_bytes": round(statistics.mean(files)), "batch": batch} | versions() | machine()
            )
            write_rows(args.csv, rows)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torchvision", "lightly-train", "pillow", "opencv-python-headless", "albumentations"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


if __name__ == "__main__":
    main()
