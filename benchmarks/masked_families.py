"""Which masked method trains which family of timm: the smallest member of each, on small pictures.

    python benchmarks/masked_families.py [--families resnet.py swin_transformer.py ...] [--docs docs/masked.md] [--quick]

A family is a file of `timm/models`; its smallest member is the one with the fewest parameters. Each of mae, ijepa, spark and simmim (the
last where spark does not train) is tried at the smallest of a few picture sizes that it accepts: one fixed batch of noise and one fixed
mask, 5 steps of AdamW at 1e-3, or else at 1e-4. "trains"
means that the loss is finite at every step and lower at the end. What a method says when it refuses a family is kept in full. Writes
the CSV, and the table between the two marks in the docs.
"""

import argparse
import csv
import importlib
import math
import re
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from common import machine, parse, write_rows
from timm.models import _registry
from torch.overrides import TorchFunctionMode

from visiontune.errors import UserError

CLASSES = {"mae": "MAE", "ijepa": "IJEPA", "spark": "SparK", "simmim": "SimMIM"}
SIZES = (64, 96, 128, 192, 224, 256)
LARGEST = 512
RATES = (1e-3, 1e-4)
SMALL: dict[str, dict[str, Any]] = {
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "ijepa": {"predictor_dim": 32, "predictor_depth": 1, "predictor_heads": 2},
    "simmim": {},
    "spark": {"decoder_dim": 32},
}
CSV = Path(__file__).with_suffix(".csv")
MARKS = ("<!-- families: written by benchmarks/masked_families.py -->", "<!-- end of families -->")


def families() -> dict[str, list[str]]:
    """Files of `timm/models` and the names in each, without the toys that timm keeps for its own tests."""
    current = {n for n in timm.list_models() if not n.startswith("test_")}
    return {module: sorted(current & names) for module, names in sorted(_registry._module_to_models.items()) if current & names}


class _NoInit(TorchFunctionMode):
    """Leaves out random initialisation, which is slow without memory and of no use there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "erfinv_", "clamp_", "mul_", "add_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def smallest(names: list[str]) -> tuple[str, int]:
    """The member with the fewest parameters, made without memory; and how many."""
    counts = {}
    for name in names:
        try:
            with torch.device("meta"), _NoInit(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts[name] = sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
        except Exception:  # a member that cannot be made so is another one's place
            continue
    name = min(counts, key=lambda n: counts[n])
    return name, counts[name]


def losses_of(method: str, name: str, size: int, lr: float = RATES[0], steps: int = 5) -> list[float]:
    """Losses before each step and after the last, on one batch and one mask.

    Raises:
        UserError: if the method refuses the backbone, or the size.
    """
    torch.manual_seed(0)
    cls = getattr(importlib.import_module("visiontune"), CLASSES[method])
    squares = {"mask_size": size // 5} if method == "simmim" and size % 32 else {}  # CrossViT takes 240 pixels alone
    module = cls(name, image_size=size, **SMALL[method], **squares).train()
    images = torch.randn(2, 3, *module.picture_size)
    mask = module.mask(images)
    module.mask = lambda *_: mask
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, fused=True)
    losses = []
    for step in range(steps + 1):
        loss = module.training_step(images, 0)
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


def trains(losses: list[float]) -> bool:
    return all(math.isfinite(x) for x in losses) and losses[-1] < losses[0]


def attempt(method: str, name: str) -> dict[str, Any]:
    """The outcome at the first size that works, else what was said at the last."""
    said = ""
    for size in (*SIZES, None):
        if size is None:  # its own, unless that is large
            size = timm.get_pretrained_cfg(name).input_size[-1]
            if size > LARGEST:
                break
        try:
            for lr in RATES:
                losses = losses_of(method, name, size, lr)
                if trains(losses):
                    break
        except UserError as error:
            said = str(error)
            if said.startswith("backbone.name"):  # no size would help
                break
            continue
        except Exception as error:  # a defect, ours or timm's: named in the table rather than hidden
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if not trains(losses):
            said = f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in 5 steps"
            continue
        return {"outcome": "trains", "image_size": size, "lr": lr, "first": round(losses[0], 4), "last": round(losses[-1], 4), "said": ""}
    return {"outcome": "refused", "image_size": "", "lr": "", "first": "", "last": "", "said": said}


def table(rows: list[dict[str, Any]]) -> str:
    """One line a family: what trains it, or why nothing does."""
    lines = ["| family (`timm/models`) | tried with | trains by | otherwise |", "|---|---|---|---|"]
    for family in dict.fromkeys(r["family"] for r in rows):
        own = [r for r in rows if r["family"] == family]
        good = [f"`{r['method']}`" for r in own if r["outcome"] == "trains"]
        why = "" if good else own[-1]["said"].partition("; use")[0]
        lines.append(f"| {family} | {own[0]['model']} | {', '.join(good) or 'none'} | {why} |")
    return "\n".join(lines)


def write_docs(page: Path, rows: list[dict[str, Any]]) -> None:
    text = page.read_text()
    if not all(mark in text for mark in MARKS):
        raise SystemExit(f"{page}: has no lines {MARKS[0]!r} and {MARKS[1]!r} to write the table between")
    inside = f"{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}"
    page.write_text(re.sub(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), lambda _: inside, text, flags=re.DOTALL))


def read_rows(path: Path = CSV) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+")
    parser.add_argument("--go-on", action="store_true", help="keep the rows of the CSV that are there, and add families that are missing")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--quick", action="store_true", help="one family, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.families = ["edgenext"]
    rows: list[dict[str, Any]] = list(read_rows(args.csv)) if args.go_on and args.csv.is_file() else []
    done = {r["family"] for r in rows}
    for family, names in families().items():
        if (args.families and family not in args.families) or family in done:
            continue
        name, parameters = smallest(names)
        for method in CLASSES:
            if method == "simmim" and rows[-1]["outcome"] == "trains":  # by spark, which a convnet is better served with
                continue
            began = time.perf_counter()
            found = attempt(method, name)
            rows.append({"family": family, "model": name, "parameters": parameters, "method": method, **found})
            rows[-1] |= {"seconds": round(time.perf_counter() - began, 1), **machine()}
            write_rows(args.csv, rows)
    if args.docs:
        write_docs(args.docs, rows)


if __name__ == "__main__":
    main()
