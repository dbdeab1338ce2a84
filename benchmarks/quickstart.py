"""The quickstart over seeds: accuracy from 50 labels with and without pretraining, and what each stage costs.

python benchmarks/quickstart.py [--seeds 0 1 2] [--quick]
"""

import argparse
import tempfile
import time

from common import fit, machine, parse, write_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch a stage, to see that it runs")
    args = parse(parser, __file__)
    rows = []
    for seed in args.seeds[:1] if args.quick else args.seeds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            stages = fit("quickstart", folder, f"seed={seed}", *(["epochs=1"] if args.quick else []))["stages"]
        row = {"seed": seed, "whole_command_seconds": round(time.monotonic() - began)}
        for name in ("finetune", "scratch"):
            row |= {
                f"{name}_top1_best": round(100 * stages[name]["top1"], 2),
                f"{name}_top1_last": round(100 * stages[name]["top1_last"], 2),
            }
        row["gain_points"] = round(row["finetune_top1_best"] - row["scratch_top1_best"], 2)
        row |= {f"{name}_seconds": round(stage["seconds"], 1) for name, stage in stages.items()}
        rows.append(row | {"val_pictures": stages["scratch"]["val_pictures"]} | machine())
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
