"""A million files: how long the first listing takes, how long opening it again, a look-up, and what a loader worker's memory adds.

python benchmarks/million_files.py [/somewhere/on/ext4] [--folders 1000] [--files 1000] [--rounds 5] [--quick]

Every listing is a process of its own, ours and LightlyTrain's in turns, on a tree that was walked once before (a warm cache for both).
The files are hard links, one small JPEG a folder. Needs lightly-train 0.18 in the environment (AGPL: a thing to measure, never a
dependency); without it only our rows are written.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, parse, work_in, write_rows


def make_tree(root: Path, folders: int, files: int) -> None:
    from PIL import Image

    for d in range(folders):
        folder = root / f"{d:05d}"
        folder.mkdir(parents=True)
        first = folder / f"photo_{0:07d}.jpg"
        Image.new("RGB", (32, 32), (d % 256, d // 256, 7)).save(first)
        for i in range(1, files):
            os.link(first, folder / f"photo_{i:07d}.jpg")


# ---------------------------------------------------------------- what a child process measures


def ours_first(root: str) -> float:
    from visiontune.data.index import open_index

    started = time.perf_counter()
    open_index(root, fresh=True)
    return time.perf_counter() - started


def ours_again(root: str) -> float:
    from visiontune.data.folder import list_pictures

    started = time.perf_counter()
    list_pictures(root)
    return time.perf_counter() - started


def look_up(root: str) -> float:
    """Seconds of one look-up, in random order."""
    import numpy as np

    from visiontune.data.folder import list_pictures
    from visiontune.data.order import permute

    table = list_pictures(root)
    order = permute(np.arange(min(len(table), 200_000)), len(table), seed=0, epoch=0).tolist()
    started = time.perf_counter()
    for index in order:
        table.path(index)
    return (time.perf_counter() - started) / len(order)


def lightly_first(root: str) -> float:
    import peers

    with tempfile.TemporaryDirectory() as scratch:  # its own imports and first-call costs are not its listing
        (Path(scratch) / "a").mkdir()
        (Path(scratch) / "a" / "x.jpg").write_bytes(b"")
        peers.lightly_train_index(scratch)
    started = time.perf_counter()
    peers.lightly_train_index(root)
    return time.perf_counter() - started


def worker_memory(root: str) -> float:
    """Bytes of private dirty memory of a loader worker at the end of a whole pass: the mean of two workers."""
    from visiontune.data.folder import list_pictures
    from visiontune.data.loader import Pictures, make_loader
    from visiontune.data.order import TrainOrder
    from visiontune.data.views import Augment, View, Views

    table = list_pictures(root)
    augment = Augment(Views((View(crop_scale=(0.2, 1.0), flip=0.5),)), (32, 32))
    loader = make_loader(Pictures(table, augment, replace=True), TrainOrder(len(table), 250, 0, lambda: 0), workers=2)
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    return statistics.mean(private_dirty(w.pid) for w in loader.loader._iterator._workers)


def private_dirty(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Private_Dirty in smaps_rollup")


def child(name: str, root: Path) -> float:
    done = subprocess.run([sys.executable, __file__, "--child", name, str(root)], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="the tree of files stays there for the next time (default: a temporary folder)")
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="2,500 files, one round, to see that it runs")
    args = parse(parser, __file__)
    if args.child:
        print(globals()[args.child](str(args.root)))
        return
    if args.quick:
        args.folders, args.files, args.rounds = 10, 250, 1
    with work_in(args.root) as root:
        if args.folders * args.files != 1_000_000 and args.csv == Path(__file__).absolute().with_suffix(".csv"):
            args.csv = root / args.csv.name  # the committed rows are of a million
        measure(root, args)


def measure(root: Path, args: argparse.Namespace) -> None:
    large, small = root / "large", root / "small"
    for tree, folders, files in ((large, args.folders, args.files), (small, 1, 1000)):
        if not tree.is_dir():
            make_tree(tree, folders, files)
            time.sleep(3)  # what changed within two seconds is listed again
    measures = ["ours_first", "ours_again", "look_up"] + ["lightly_first"] * (importlib.util.find_spec("lightly_train") is not None)
    found: dict[str, list[float]] = {m: [] for m in measures}
    child("ours_first", large)
    for _ in range(args.rounds):
        for measure in measures:
            found[measure].append(child(measure, large))
    rows = []
    middle = {m: statistics.median(v) for m, v in found.items()}
    for measure, values in found.items():
        row = {"what": measure, "files": args.folders * args.files, "median": middle[measure], "min": min(values), "max": max(values)}
        row |= {"unit": "s", "rounds": args.rounds}
        if measure == "ours_first" and "lightly_first" in middle:
            row["ratio_to_lightly"] = round(middle["ours_first"] / middle["lightly_first"], 3)
        rows.append(row | machine())
        write_rows(args.csv, rows)
    dirty = {tree.name: child("worker_memory", tree) for tree in (small, large)}
    for name, value in dirty.items():
        rows.append({"what": f"worker_memory_{name}", "files": 1000 if name == "small" else args.folders * args.files, "median": value})
        rows[-1] |= {"unit": "bytes", "rounds": 1} | machine()
    rows.append({"what": "worker_memory_added", "files": args.folders * args.files, "median": dirty["large"] - dirty["small"]})
    rows[-1] |= {"unit": "bytes", "rounds": 1} | machine()
    write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
