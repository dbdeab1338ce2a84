"""What it brings, and costs, that a training on the CPU keeps the memory that it frees (`visiontune.build.keep_freed_memory`).

    python benchmarks/cpu_memory.py [--pairs 3] [--steps 4] [--quick]

The same training steps on random pictures in two processes, one after the other, with glibc's defaults and with memory kept; which goes
first alternates. `ratio` is seconds kept over seconds by default, of the median step of each process; memory is the process's largest.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from common import machine, parse, write_rows

from visiontune import MAE, Classifier, SimCLR
from visiontune.build import keep_freed_memory

# module and its arguments, pictures a step, their side
CASES: dict[str, tuple[type, str, dict[str, Any], int, int]] = {
    "Classifier, EfficientNet-Lite0": (Classifier, "tf_efficientnet_lite0", {"num_classes": 10}, 64, 160),
    "SimCLR, ResNet-10-T": (SimCLR, "resnet10t", {}, 64, 64),
    "MAE, ViT-Ti": (MAE, "vit_tiny_patch16_224", {"decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4}, 64, 160),
}


def steps(case: str, count: int, keep: bool, most: int) -> dict[str, float]:
    """Seconds of the median step, and the largest memory of this process in MB."""
    if keep:
        assert keep_freed_memory(), "needs glibc, and no settings for malloc in the environment"
    kind, backbone, options, batch, side = CASES[case]
    batch = min(batch, most)
    torch.manual_seed(0)
    module = kind(backbone, image_size=side, **options)
    x = torch.randint(0, 255, (batch, 3, side, side), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    given = [x, torch.arange(batch) % 10] if kind is Classifier else [x, x.flip(3)] if kind is SimCLR else x
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
    times = []
    for _ in range(count + 1):
        began = time.perf_counter()
        loss = module.training_step(given, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(times[1:]), "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--most", type=int, default=1024, help="pictures a step, at most")
    parser.add_argument("--quick", action="store_true", help="one case, one pair, one step of few pictures, to see that it runs")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KEEP"), help="used by the script itself")
    args = parse(parser, __file__)
    if args.quick:
        args.pairs, args.steps, args.most = 1, 1, 4
    if args.one:
        print(json.dumps(steps(args.one[0], args.steps, args.one[1] == "kept", args.most)))
        return
    rows: list[dict[str, Any]] = []
    for case, (_, _, _, batch, side) in list(CASES.items())[: 1 if args.quick else None]:
        found: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
        for pair in range(args.pairs):
            for which in ("default", "kept") if pair % 2 == 0 else ("kept", "default"):
                command = [sys.executable, __file__, "--one", case, which, "--steps", str(args.steps), "--most", str(args.most)]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[which].append(json.loads(said.splitlines()[-1]))
        ratios = [k["seconds"] / d["seconds"] for d, k in zip(found["default"], found["kept"], strict=True)]
        row: dict[str, Any] = {"step": case, "batch": min(batch, args.most), "image_size": side, "pairs": args.pairs}
        for which, runs in found.items():
            row[f"{which}_s"] = round(statistics.median(r["seconds"] for r in runs), 3)
            row[f"{which}_mb"] = round(statistics.median(r["memory_mb"] for r in runs))
        row |= {"ratio": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}
        rows.append(row | machine())
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
