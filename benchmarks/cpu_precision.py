"""fp32 against bf16 autocast on this CPU: training steps of the two CIFAR recipes, in turn, on random pictures.

python benchmarks/cpu_precision.py [--steps 12] [--quick]
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import machine, parse, write_rows

from visiontune import MAE, SimCLR

VIT = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
CONV = {"patch_size": 2, "depths": [1, 1, 2, 1], "dims": [32, 64, 128, 256]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="three steps")
    args = parse(parser, __file__)
    torch.manual_seed(0)
    decoder = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4}
    x = torch.randint(0, 255, (128, 3, 32, 32), dtype=torch.uint8)
    cases = {
        "MAE, ViT of 1.2 M": (MAE("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, **decoder), x),
        "SimCLR, ConvNeXt of 1.0 M": (SimCLR("convnext_atto", image_size=32, backbone_args=CONV, projector_hidden=512), [x, x.flip(3)]),
    }
    rows = []
    for name, (module, batch) in cases.items():
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        times: dict[bool, list[float]] = {False: [], True: []}
        for step in range((3 if args.quick else args.steps) + 2):
            for mixed in times:
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    loss = module.training_step(batch, 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step > 1:
                    times[mixed].append(time.perf_counter() - began)
        ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
        row = {
            "step": name,
            "batch": 128,
            "fp32_s": round(statistics.median(times[False]), 4),
            "bf16_s": round(statistics.median(times[True]), 4),
        }
        row |= {"bf16_over_fp32": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        rows.append(row | {"avx512_bf16": "avx512_bf16" in flags, "amx_bf16": "amx_bf16" in flags, **machine()})
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
