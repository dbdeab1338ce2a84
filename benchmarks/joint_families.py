"""Every joint-embedding method on families of timm: the smallest member of each, on small pictures.

    python benchmarks/joint_families.py [--families resnet.py ...] [--methods dino ...] [--go-on] [--quick]

A family is a file of `timm/models`; its smallest member is the one with the fewest parameters. Each method is tried on one fixed batch of
noise (and one fixed mask): after a first look, in which running means and queues take what the batch gives and then stand still, 5 steps
of AdamW at 1e-3, or else at 1e-4. "trains" means that the loss is finite at every step and lower at the end. What a method says when it
refuses a family is kept.
"""

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from common import machine, parse, write_rows
from masked_families import families, smallest

import visiontune
from visiontune.errors import UserError
from visiontune.heads.prototypes import Centring
from visiontune.heads.queue import Queue
from visiontune.recipe.options import read_options

# Convolutional, transformer and mixed, of every age.
FAMILIES = (
    "resnet", "convnext", "efficientnet", "regnet", "mobilenetv3", "densenet", "cspnet", "nfnet", "dla", "ghostnet",
    "vision_transformer", "eva", "cait", "swin_transformer", "swin_transformer_v2", "pvt_v2", "levit", "xcit", "edgenext", "mlp_mixer",
    "fastvit", "metaformer",
)  # fmt: skip
_HEAD = {"projector_hidden": 64, "projector_out": 32}
_PROTOTYPES = _HEAD | {"prototypes": 64}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": _HEAD, "mocov2": _HEAD | {"queue": 64}, "mocov3": _HEAD, "byol": _HEAD,
    "simsiam": {"projector_hidden": 64, "projector_out": 64, "predictor_hidden": 32},
    "barlow_twins": {"projector_out": 64}, "vicreg": {"projector_out": 64}, "swav": _HEAD | {"prototypes": 32}, "dino": _PROTOTYPES,
    "ibot": _PROTOTYPES, "dinov2": _PROTOTYPES, "lejepa": _HEAD | {"directions": 64}, "distill": {"projector_hidden": 64},
}  # fmt: skip
MULTI_CROP = ("swav", "dino", "ibot", "dinov2", "lejepa")
SIZES = (64, 128, 224)
RATES = (1e-3, 1e-4)
CSV = Path(__file__).with_suffix(".csv")


def losses_of(method: str, name: str, size: int, lr: float = RATES[0], steps: int = 5) -> list[float]:
    """Losses before each step and after the last.

    Raises:
        UserError: if the method refuses the backbone, or the size.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = dict(METHODS[method])
    if method == "distill":
        options["teacher"] = timm.create_model("test_resnet", num_classes=0)
    module = getattr(visiontune, read_options("pretrain", method).class_name)(name, image_size=size, **options).train()
    H, W = module.picture_size
    batch: Any = [torch.randn(4, 3, H, W) for _ in range(1 if method == "distill" else 2)]
    if method in MULTI_CROP and takes_small_crops(module, (H // 2, W // 2)):
        batch += [torch.randn(4, 3, H // 2, W // 2) for _ in range(2)]
    if hasattr(module, "mask"):
        masks = module.mask(torch.cat(batch[:2]))
        module.mask = lambda *_: masks
    batch = batch[0] if method == "distill" else batch
    with torch.no_grad():
        module.training_step(batch, 0)
    for part in module.modules():
        if isinstance(part, Queue):
            part.add = lambda rows: None  # type: ignore[method-assign]
        if isinstance(part, Centring):
            part.momentum = 1.0
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, fused=True)
    losses = []
    for step in range(steps + 1):
        loss = module.training_step(batch, 0)
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


def takes_small_crops(module: Any, size: tuple[int, int]) -> bool:
    try:
        module.check_views([size])
    except UserError:
        return False
    return True


def trains(losses: list[float]) -> bool:
    return all(math.isfinite(x) for x in losses) and losses[-1] < losses[0]


def attempt(method: str, name: str) -> dict[str, Any]:
    """The outcome at the first size that works, else what was said at the last."""
    said = ""
    for size in SIZES:
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


def read_rows(path: Path = CSV) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--go-on", action="store_true", help="keep the rows of the CSV that are there, and add those that are missing")
    parser.add_argument("--quick", action="store_true", help="two methods on one family, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.families, args.methods = ["edgenext"], ["simclr", "dino"]
    rows: list[dict[str, Any]] = list(read_rows(args.csv)) if args.go_on and args.csv.is_file() else []
    done = {(r["family"], r["method"]) for r in rows}
    for family, names in families().items():
        if family not in args.families:
            continue
        missing = [m for m in args.methods if (family, m) not in done]
        name, parameters = smallest(names) if missing else ("", 0)
        for method in missing:
            began = time.perf_counter()
            rows.append({"family": family, "model": name, "parameters": parameters, "method": method, **attempt(method, name)})
            rows[-1] |= {"seconds": round(time.perf_counter() - began, 1), **machine()}
            write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
