"""Every number that a recipe leaves open, with the reason."""

import math
from pathlib import Path
from typing import Any

import torch

from visiontune import backbones, optim
from visiontune.build.modules import weights_path
from visiontune.build.pictures import Tables, views_of
from visiontune.data.loader import auto_workers
from visiontune.errors import UserError, counted
from visiontune.module import Module
from visiontune.recipe import PretrainRecipe, Recipe
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
    made = backbones.Spec.of(config) if config else None
    if made and not found.backbone.name:
        found.backbone.name = made.name
        args, stem = (f" {made.shape_args}" if made.shape_args else ""), (f" with a {made.stem} stem" if made.stem != "timm" else "")
        notes.append(f"backbone {made.name}{args}{stem}: as its weights were made")
    if made and found.backbone.name == made.name:
        found.backbone.args = made.shape_args | found.backbone.args
    found.backbone.stem = found.backbone.stem or (made.stem if made else "timm")
    if not found.backbone.name:
        raise UserError(f"backbone.name: is missing, and {found.backbone.weights} does not say which backbone it is; give a timm name")

    if isinstance(found, PretrainRecipe):
        notes += _method_numbers(found, len(tables.train))
    if o.name is None or o.name == own["name"]:
        for key in ("lr", "weight_decay", "weight_decay_end", "betas", "momentum"):
            if getattr(o, key) is None:
                setattr(o, key, own.get(key))
    o.name = o.name or own["name"]
    generic = {"sgd": (0.03, 5e-4), "lars": (0.3, 1e-6), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}[o.name]
    o.lr = generic[0] if o.lr is None else o.lr
    o.weight_decay = generic[1] if o.weight_decay is None else o.weight_decay
    o.betas, o.momentum = o.betas or (0.9, 0.999), 0.9 if o.momentum is None else o.momentum
    if o.lr_scale != "none":
        scaled = optim.scale_lr(o.lr, batch, o.lr_scale)
        notes.append(f"learning rate {scaled:.4g}: {o.lr:g} for a batch of 256, scaled {o.lr_scale} to a batch of {batch}")
        o.lr, o.lr_scale = scaled, "none"
    if found.epochs is None:
        found.epochs = epochs_for(len(tables.train)) if isinstance(found, PretrainRecipe) else 100
        notes.append(f"epochs {found.epochs}: {FEWER if found.epochs > 100 else 'the recipe leaves it open'}")
    if o.warmup_epochs is None:
        o.warmup_epochs = min(40.0, found.epochs / 10)
        notes.append(f"warm-up {counted(o.warmup_epochs, 'epoch', 'g')}: a tenth of {found.epochs}, at most 40")

    if found.data.workers == "auto":
        found.data.workers, why = auto_workers(processes)
        notes.append(f"workers {found.data.workers}: {why}")
    if found.trainer.precision == "auto":
        found.trainer.precision, why = auto_precision(found.trainer.accelerator)
        notes.append(f"precision {found.trainer.precision}: {why}")
    notes += views_of(found)[1]
    steps = len(tables.train) // batch
    left = len(tables.train) - steps * batch
    rest = f" ({counted(left, 'picture')} left out, others in each epoch)" if left else ""
    repeats = found.data.repeats
    times = f" x {repeats} repeats" if repeats > 1 else ""
    total = steps * repeats * found.epochs
    if found.trainer.log_every_n_steps > total > 0:
        found.trainer.log_every_n_steps = max(1, total // 10)
        notes.append(f"metrics every {counted(found.trainer.log_every_n_steps, 'step')}: the whole run has {total}")
    notes.append(f"steps {total}: {counted(found.epochs, 'epoch')} of {counted(steps, 'batch')} of {batch}{times}{rest}")
    return found, notes


def _method_numbers(recipe: PretrainRecipe, pictures: int) -> list[str]:
    """Options of the method that depend on how many pictures there are, and the size of small crops beside the large ones'."""
    notes = []
    for name, rows in options_of(recipe).by_pictures.items():
        if getattr(recipe.method, name) is not None:
            continue
        most, value = next(row for row in rows if row[0] is None or pictures <= row[0])
        setattr(recipe.method, name, value)
        reason = f"for up to {most:,}; large folders take {rows[-1][1]:,}" if most else "as for any large folder"
        notes.append(f"{name} {value:,}: there are {pictures:,} pictures ({reason})")

    wanted, given = options_of(recipe).views.get("local"), recipe.data.augment.local
    if wanted and (given is None or given.image_size is None) and not (given and given.views == 0):
        size = recipe.data.image_size
        sides = (size, size) if isinstance(size, int) else size
        # the same share of the picture's side as in the paper, of 224 pixels; in whole patches of 8, or of 16 where there are many
        small = [max(8, (16 if s >= 160 else 8) * round(s * wanted["image_size"] / 224 / (16 if s >= 160 else 8))) for s in sides]
        if max(sides) != 224:
            notes.append(f"small crops of {small[0]}x{small[1]} pixels: as {wanted['image_size']} beside 224, in whole patches of 8")
        recipe.data.augment = recipe.data.augment.model_copy(deep=True)
        if recipe.data.augment.local is None:
            recipe.data.augment.local = type(recipe.data.augment).model_validate({"local": {}}).local
        recipe.data.augment.local.image_size = small[0] if small[0] == small[1] else (small[0], small[1])
    if teacher := getattr(recipe.method, "teacher", None):
        recipe.method.teacher = str(weights_path(teacher)) if Path(teacher).exists() else teacher  # a run's weights/backbone
    return notes


FEWER = "few pictures need more passes for as many steps (El-Nouby et al. 2021, arXiv 2112.10740); 100 of 1.28 million, at most 800"


def epochs_for(pictures: int) -> int:
    """Passes of a pretraining: 100 over ImageNet's 1.28 million, more over fewer pictures by the root of how many fewer, at most 800.

    El-Nouby et al. 2021 (arXiv 2112.10740) find pretraining on thousands of pictures to want as many steps as on many. The root is ours
    and not searched: half way, by orders of magnitude, between as many steps and as many epochs.

    >>> [epochs_for(n) for n in (5_000, 50_000, 320_000, 1_280_000, 10_000_000)]
    [800, 506, 200, 100, 100]
    """
    return min(800, max(100, round(100 * math.sqrt(1.28e6 / pictures))))


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
