"""Pictures a second as the verb `benchmark` tells them, beside a bare `torch.utils.benchmark` loop on the same network.

    python benchmarks/throughput_parity.py [--backbones resnet18 ...] [--size 64] [--batch 16] [--rounds 11] [--seconds 0.5] [--quick]

Of each backbone (timm's, random weights of seed 0) two steps: inference and training, as `visiontune/benchmark/steps.py` makes them. Both
sides time the same network, batch and threads in one process, in turn, and which goes first alternates: ours with the verb's windows
(`visiontune/benchmark/timing.py`), the bare one with `Timer(...).blocked_autorange`, whose statement is a plain forward, or a plain
forward, backward and AdamW, on random pictures of its own. `ratio` is ours over the bare one's of the same round, the median of all rounds;
low and high are the quartiles.

A row a backbone and step: model, step, image_size, batch, threads, rounds, ours_images_per_second, bare_images_per_second, ratio,
ratio_low, ratio_high, and the machine.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import machine, parse, write_rows
from rank_backbones import BACKBONES
from torch import nn
from torch.utils.benchmark import Timer

from visiontune.backbones import create
from visiontune.benchmark.steps import Steps
from visiontune.benchmark.timing import Stopwatch, quartiles

CLASSES = 10
STATEMENTS = {
    "inference": "with torch.inference_mode():\n    network(images)",
    "training": """
loss = F.cross_entropy(network(images), labels)
loss.backward()
optimizer.step()
optimizer.zero_grad(set_to_none=True)""",
}


def bare(step: str, network: nn.Module, size: int, batch: int, seconds: float) -> float:
    """Pictures a second."""
    network.train(step == "training")
    things: dict[str, Any] = {"torch": torch, "F": nn.functional, "network": network, "images": torch.randn(batch, 3, size, size)}
    if step == "training":  # a learning rate of 0 costs the same, and the network stays what it is
        things |= {"optimizer": torch.optim.AdamW(network.parameters(), lr=0.0), "labels": torch.zeros(batch, dtype=torch.long)}
    timer = Timer(STATEMENTS[step], globals=things, num_threads=torch.get_num_threads())  # it takes one thread unless it is told
    return batch / timer.blocked_autorange(min_run_time=seconds).median


def ours(steps: Steps, step: str, batch: int, watch: Stopwatch) -> float:
    made = {"inference": steps.inference, "training": steps.training}[step](batch, False)
    return batch * statistics.median(watch.rates(made))


def measure(name: str, step: str, *, size: int, batch: int, rounds: int, seconds: float, windows: int = 7) -> dict[str, Any]:
    """One row, without the machine."""
    torch.manual_seed(0)
    network = create(name, image_size=size, num_classes=CLASSES)  # one a step: what inference mode leaves in it cannot be trained through
    steps = Steps(network, size=(size, size), channels=3, device=torch.device("cpu"), precision="32-true")
    watch = Stopwatch(seconds / windows, windows, steps.synchronize)
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(steps, step, batch, watch),
        "bare": lambda: bare(step, network, size, batch, seconds),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            found[side].append(sides[side]())
    ratios = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    middle = {side: statistics.median(rates) for side, rates in found.items()}
    row: dict[str, Any] = {"model": name, "step": step, "image_size": size, "batch": batch, "threads": torch.get_num_threads()}
    row |= {"rounds": rounds} | {f"{side}_images_per_second": round(rate, 1) for side, rate in middle.items()}
    low, high = quartiles(ratios)
    return row | {"ratio": round(statistics.median(ratios), 3), "ratio_low": round(low, 3), "ratio_high": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side in each round, at least")
    parser.add_argument("--quick", action="store_true", help="three backbones, two short rounds, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.backbones, args.rounds, args.seconds = args.backbones[:3], 2, 0.2
    rows: list[dict[str, Any]] = []
    for name in args.backbones:
        for step in STATEMENTS:
            row = measure(name, step, size=args.size, batch=args.batch, rounds=args.rounds, seconds=args.seconds)
            rows.append(row | machine())
            write_rows(args.csv, rows)
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"farthest from the bare loop: {worst['model']}, {worst['step']}: {worst['ratio']:.3f} of its pictures a second")


if __name__ == "__main__":
    main()
