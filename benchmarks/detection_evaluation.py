"""Seconds of COCO's average precision over 500 pictures: `visiontune.metrics.MeanAveragePrecision` beside torchmetrics with pycocotools.

    python benchmarks/detection_evaluation.py [--pictures 500] [--classes 20] [--most 100] [--rounds 5] [--quick]

Pictures are made up (seed 0): 640 x 480 pixels, 1 to 20 true boxes of up to half of its sides, nine tenths of them found with an error of a
few pixels, some with another class, and false boxes up to --most predictions. All counters get the same tensors, in batches of 16, and take
turns, the first of which alternates; the seconds are of all updates and of `compute`. Ours counts with faster-coco-eval where it is
installed (the package's extra `detection`), else with pycocotools. `largest_difference` is between ours and the row's counter, over
average precision and recall, also by size of box, and of each class.

A row a counter: counter, pictures, classes, boxes, predictions, rounds, seconds, seconds_low, seconds_high, times_ours (its seconds over
ours, the median of rounds), map, largest_difference, versions and the machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from common import machine, need, parse, write_rows
from torch import Tensor

from visiontune.boxes import Boxes
from visiontune.metrics import MeanAveragePrecision
from visiontune.metrics.detection import find_counter

BATCH = 16
WIDTH, HEIGHT = 640, 480
# ours, torchmetrics'
NAMES = {
    "map": "map", "map50": "map_50", "map75": "map_75", "map_small": "map_small", "map_medium": "map_medium", "map_large": "map_large",
    "mar1": "mar_1", "mar10": "mar_10", "mar": "mar_100", "mar_small": "mar_small", "mar_medium": "mar_medium", "mar_large": "mar_large",
    "ap": "map_per_class",
}  # fmt: skip
DIGITS = 4


def pictures(count: int, classes: int, most: int, seed: int = 0) -> tuple[list[Boxes], list[Boxes]]:
    """Predictions and truth of each picture."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def boxes(M: int) -> Tensor:
        """`(M, 4)`, of all sizes: sides are squares of uniform numbers."""
        sides = torch.tensor([WIDTH, HEIGHT]) / 2 * uniform(M, 2).square() + 4
        corners = uniform(M, 2) * (torch.tensor([WIDTH, HEIGHT]) - sides)
        return torch.cat([corners, corners + sides], dim=1)

    found, truth = [], []
    for _ in range(count):
        M = int(torch.randint(1, 21, (), generator=generator))
        real, labels = boxes(M), torch.randint(classes, (M,), generator=generator)
        seen = uniform(M) < 0.9
        near = real[seen] + 4 * torch.randn(int(seen.sum()), 4, generator=generator)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        said = torch.where(uniform(len(near)) < 0.1, torch.randint(classes, (len(near),), generator=generator), labels[seen])
        false = boxes(max(0, most - len(near)))
        scores = torch.cat([0.2 + 0.8 * uniform(len(near)), 0.6 * uniform(len(false))])
        all_labels = torch.cat([said, torch.randint(classes, (len(false),), generator=generator)])
        found.append(Boxes(torch.cat([near, false])[:most], all_labels[:most], scores[:most]))
        truth.append(Boxes(real, labels))
    return found, truth


def ours(found: list[Boxes], truth: list[Boxes], classes: int) -> dict[str, Tensor]:
    metric = MeanAveragePrecision(classes)
    for i in range(0, len(found), BATCH):
        metric.update(found[i : i + BATCH], truth[i : i + BATCH])
    return metric.compute()


def torchmetrics_by(backend: str) -> Callable[..., dict[str, Tensor]]:
    def count(found: list[Boxes], truth: list[Boxes], classes: int) -> dict[str, Tensor]:
        from torchmetrics.detection import MeanAveragePrecision as Theirs

        # Its own recalls are COCO's in fp32, where 0.6 lies above 3 of 5 boxes: classes of such numbers then differ from pycocotools.
        recalls = np.linspace(0, 1, 101).tolist()
        metric = Theirs(backend=backend, class_metrics=True, rec_thresholds=recalls)  # type: ignore[arg-type]
        for i in range(0, len(found), BATCH):
            said: Any = [{"boxes": b.xyxy, "labels": b.labels, "scores": b.scores} for b in found[i : i + BATCH]]
            metric.update(said, [{"boxes": b.xyxy, "labels": b.labels} for b in truth[i : i + BATCH]])
        return metric.compute()

    return count


def largest_difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Over all numbers that both have; what there is no box of is nan here and -1 there."""
    pairs = [(mine[a].flatten().double().nan_to_num(-1), theirs[b].flatten().double()) for a, b in NAMES.items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--most", type=int, default=100, help="predictions of a picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="60 pictures, one round, to see that it runs")
    args = parse(parser, __file__)
    need("pycocotools", "pycocotools>=2.0.8", "the comparison")
    if args.quick:
        args.pictures, args.rounds = 60, 1
    found, truth = pictures(args.pictures, args.classes, args.most)
    counters = {"visiontune": ours, "torchmetrics, pycocotools": torchmetrics_by("pycocotools")}
    own = find_counter()
    if own == "faster_coco_eval":  # what of the difference is the counting's, and what is ours
        counters["torchmetrics, faster_coco_eval"] = torchmetrics_by("faster_coco_eval")
    times: dict[str, list[float]] = {name: [] for name in counters}
    values: dict[str, dict[str, Tensor]] = {}
    for turn in range(args.rounds + 1):  # the first is a warm-up
        for name in list(counters)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            values[name] = counters[name](found, truth, args.classes)
            if turn:
                times[name].append(time.perf_counter() - began)
    about = {"pictures": args.pictures, "classes": args.classes, "boxes": sum(map(len, truth)), "predictions": sum(map(len, found))}
    versions = {name: version(name) for name in ("torchmetrics", "pycocotools", *(["faster-coco-eval"] if len(counters) > 2 else []))}
    rows: list[dict[str, Any]] = []
    for name, taken in times.items():
        difference = largest_difference(values["visiontune"], values[name]) if name != "visiontune" else 0.0
        row: dict[str, Any] = {"counter": f"visiontune, {own}" if name == "visiontune" else name, **about, "rounds": args.rounds}
        row |= {"seconds": round(statistics.median(taken), 3), "seconds_low": round(min(taken), 3), "seconds_high": round(max(taken), 3)}
        times_ours = statistics.median(a / b for a, b in zip(taken, times["visiontune"], strict=True))
        row |= {"times_ours": round(times_ours, 2), "map": round(float(values[name]["map"]), DIGITS)}
        rows.append(row | {"largest_difference": f"{difference:.1e}"} | versions | machine())
        write_rows(args.csv, rows)
        assert difference < 0.5 * 10**-DIGITS, f"{name} says something else: by {difference}"


if __name__ == "__main__":
    main()
