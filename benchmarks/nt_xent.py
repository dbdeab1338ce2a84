"""Time and memory of NT-Xent, forward and backward, against lightly's NTXentLoss.

    python benchmarks/nt_xent.py [--rows 512 4096 16384] [--dim 128] [--rounds 31] [--threads 2] [--quick]

`rows` is both views together, 2B. Rounds alternate between the two in one process, so that a busy moment meets both; the ratio of
medians counts, the ratios of single rounds are its spread (low and high: the middle 80 % of rounds). Loss and gradient are asserted
equal in every round: the loss to 1e-5, the gradient to 1e-5 of its largest entry.

Memory is what one forward and backward adds to a process of its own: the kernel's high-water mark of resident memory, set back just
before the call (VmHWM after writing 5 to /proc/self/clear_refs; Linux only), less what was resident then. A small call comes first, so
that libraries and threads are there. It counts everything, whoever asked for it, the inputs' gradients too.
"""

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import machine, need, parse, write_rows
from torch import Tensor

from visiontune.losses import nt_xent

TEMPERATURE = 0.1


def contender(which: str) -> Callable[[Tensor, Tensor], Tensor]:
    if which == "ours":
        return lambda z0, z1: nt_xent(z0, z1, TEMPERATURE)
    from lightly.loss import NTXentLoss

    return NTXentLoss(TEMPERATURE)


def views(rows: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views that agree about half, as after some training."""
    torch.manual_seed(seed)
    shared = torch.randn(rows // 2, dim)
    return tuple((shared + torch.randn_like(shared)).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def resident(what: str) -> int:
    """Bytes: `VmRSS`, now, or `VmHWM`, the highest so far."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))  # type: ignore[union-attr]


def added_memory(which: str, rows: int, dim: int, threads: int) -> int:
    torch.set_num_threads(threads)
    loss = contender(which)
    loss(*views(64, dim, 0)).backward()
    z0, z1 = views(rows, dim, 1)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    loss(z0, z1).backward()
    return resident("VmHWM") - before


def measure(rows: int, dim: int, rounds: int, threads: int) -> dict[str, Any]:
    losses = {which: contender(which) for which in ("ours", "lightly")}
    times: dict[str, list[float]] = {which: [] for which in losses}
    loss_differences, gradient_differences = [], []
    for i in range(rounds + 1):  # the first is a warm-up
        z0, z1 = views(rows, dim, i)
        values, gradients = {}, {}
        for which in list(losses)[:: 1 if i % 2 else -1]:
            z0.grad = z1.grad = None
            began = time.perf_counter()
            loss = losses[which](z0, z1)
            loss.backward()
            if i:
                times[which].append(time.perf_counter() - began)
            values[which], gradients[which] = loss.item(), torch.cat([z0.grad, z1.grad])
            del loss
        loss_differences.append(abs(values["ours"] - values["lightly"]))
        largest = gradients["lightly"].abs().max()
        gradient_differences.append(((gradients["ours"] - gradients["lightly"]).abs().max() / largest).item())
        assert loss_differences[-1] < 1e-5, loss_differences
        assert gradient_differences[-1] < 1e-5, gradient_differences
    ratios = statistics.quantiles([a / b for a, b in zip(times["ours"], times["lightly"], strict=True)], n=10, method="inclusive")
    row: dict[str, Any] = {"rows": rows, "dim": dim, "rounds": rounds, "threads": threads}
    row |= {f"{which}_ms": round(1000 * statistics.median(taken), 2) for which, taken in times.items()}
    row |= {"ratio": round(statistics.median(times["ours"]) / statistics.median(times["lightly"]), 3)}
    row |= {"ratio_low": round(ratios[0], 3), "ratio_high": round(ratios[-1], 3)}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # one process for each call
        memory = {which: pool.apply(added_memory, (which, rows, dim, threads)) for which in losses}
    row |= {f"{which}_memory_mb": round(added / 1e6, 1) for which, added in memory.items()}
    row |= {"memory_ratio": round(memory["ours"] / memory["lightly"], 3)}
    row |= {"loss_difference": f"{max(loss_differences):.1e}", "gradient_difference": f"{max(gradient_differences):.1e}"}
    return row | {"lightly": version("lightly"), **machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three rounds of 512 rows, to see that it runs")
    args = parse(parser, __file__)
    need("lightly", "lightly>=1.5.20", "the comparison")
    torch.set_num_threads(args.threads)
    results = []
    for rows in [512] if args.quick else args.rows:
        results.append(measure(rows, args.dim, 3 if args.quick else args.rounds, args.threads))
        write_rows(args.csv, results)


if __name__ == "__main__":
    main()
