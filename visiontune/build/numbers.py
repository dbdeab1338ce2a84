"""Every number that a recipe leaves open, with the reason."""

from pathlib import Path
from typing import Any

import torch

from visiontune import backbones, optim
from visiontune.build.modules import weights_path
from visiontune.build.pictures import Tables, views_of
from visiontune.data.loader import auto_workers
from visiontune.errors import UserError
from visiontune.module import Module
from visiontune.recipe import Recipe
from visiontune.recipe.schema import is_path, options_of


def derive(recipe: Recipe, tables: Tables, processes: int) -> tuple[Recipe, list[str]]:
    """A copy in which nothing is `auto` or unset any more, and a line of reason for each number that was found."""
    found, notes = recipe.model_copy(deep=True), []
    own = dict(Module.OPTIM) | {"betas": (0.9, 0.999), "momentum": 0.9} | options_of(recipe).optim
    o, batch = found.optim, found.data.batch_size

    config = None
    if is_path(found.backbone.weights):
        path = weights_path(found.backbone.weights)
        found.backbone.weights = str(path)
        config = backbones.read_config(path)
    if config and not found.backbone.name:
        found.backbone.name = config["architecture"]
        args = {k: v for k, v in config.get("model_args", {}).items() if k not in ("img_size", "in_chans")}
        found.backbone.args = args | found.backbone.args
        notes.append(f"backbone {found.backbone.name} {args or ''}: as its weights were made")
    elif config and found.backbone.name == config["architecture"]:
        args = {k: v for k, v in config.get("model_args", {}).items() if k not in ("img_size", "in_chans")}
        found.backbone.args = args | found.backbone.args
    if not found.backbone.name:
        raise UserError(f"backbone.name: is missing, and {found.backbone.weights} does not say which backbone it is; give a timm name")

    if o.name is None or o.name == own["name"]:
        for key in ("lr", "weight_decay", "betas", "momentum"):
            if getattr(o, key) is None:
                setattr(o, key, own[key])
    o.name = o.name or own["name"]
    generic = {"sgd": (0.03, 5e-4), "lars": (0.3, 1e-6), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}[o.name]
    o.lr = generic[0] if o.lr is None else o.lr
    o.weight_decay = generic[1] if o.weight_decay is None else o.weight_decay
    o.betas, o.momentum = o.betas or (0.9, 0.999), 0.9 if o.momentum is None else o.momentum
    if o.lr_scale != "none":
        scaled = optim.scale_lr(o.lr, batch, o.lr_scale)
        notes.append(f"learning rate {scaled:.4g}: {o.lr:g} for a batch of 256, scaled {o.lr_scale} to a batch of {batch}")
        o.lr, o.lr_scale = scaled, "none"
    if o.warmup_epochs is None:
        o.warmup_epochs = min(40.0, found.epochs / 10)
        notes.append(f"warm-up {o.warmup_epochs:g} epochs: a tenth of {found.epochs}, at most 40")

    if found.data.workers == "auto":
        found.data.workers, why = auto_workers(processes)
        notes.append(f"workers {found.data.workers}: {why}")
    if found.trainer.precision == "auto":
        found.trainer.precision, why = auto_precision(found.trainer.accelerator)
        notes.append(f"precision {found.trainer.precision}: {why}")
    notes += views_of(found)[1]
    steps = len(tables.train) // batch
    left = len(tables.train) - steps * batch
    rest = f" ({left} pictures are left out, others in each epoch)" if left else ""
    repeats = found.data.repeats
    times = f" x {repeats} repeats" if repeats > 1 else ""
    total = steps * repeats * found.epochs
    if found.trainer.log_every_n_steps > total > 0:
        found.trainer.log_every_n_steps = max(1, total // 10)
        notes.append(f"metrics every {found.trainer.log_every_n_steps} steps: the whole run has {total}")
    notes.append(f"steps {total}: {found.epochs} epochs of {steps} batches of {batch}{times}{rest}")
    return found, notes


def auto_precision(accelerator: str) -> tuple[Any, str]:
    """The fastest precision that keeps quality on this machine, and why."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability()[0] >= 8:
            return "bf16-mixed", f"{name} computes bf16 natively"
        return "16-mixed", f"{name} has fast fp16 but no bf16"
    if accelerator in ("auto", "mps", "gpu") and torch.backends.mps.is_available():
        return "32-true", "mixed precision brings little on Apple's GPUs"
    if "amx_bf16" in cpu_flags():
        return "bf16-mixed", "this CPU multiplies bf16 matrices natively (AMX)"
    # AVX512-BF16 alone is no gain to count on: see benchmarks/cpu_precision.py
    return "32-true", "this CPU has no matrix unit for bf16; there mixed precision can be slower than fp32"


def cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    except OSError:
        pass
    return set()
