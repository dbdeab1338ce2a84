"""Every number that a recipe leaves open, with the reason."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiontune import backbones, optim
from visiontune.build.detecting import box_view, fill_detection, fill_size, words_on_small
from visiontune.build.modules import weights_path
from visiontune.build.pictures import Tables, base_views, fill_batch, picture_size, views_of
from visiontune.build.tuning import fill_tuning
from visiontune.data.loader import auto_workers
from visiontune.errors import UserError, counted
from visiontune.module import Module
from visiontune.recipe import DetectRecipe, PretrainRecipe, Recipe
from visiontune.recipe.schema import is_path, options_of, repeats_of

SIZE = 224  # pixels of a side, where nothing tells


def derive(recipe: Recipe, tables: Tables, processes: int, *, stands_in: bool = False) -> tuple[Recipe, list[str]]:
    """A copy in which nothing is `auto` or unset any more, and a line of reason for each number that was found.

    Args:
        recipe: as it was given.
        tables: its pictures.
        processes: of this machine that train.
        stands_in: random weights stand for ones that another stage will make.
    """
    fresh = recipe.backbone.weights == "random" and not stands_in
    found = recipe.model_copy(deep=True)
    notes = _derive_backbone(found)
    own = dict(Module.OPTIM) | {"betas": (0.9, 0.999), "momentum": 0.9} | options_of(recipe).optim
    o = found.optim

    parts = processes * found.trainer.num_nodes * found.trainer.accumulate_grad_batches
    if not isinstance(found, DetectRecipe):
        notes += fill_batch(found, len(tables.train), parts=parts)
    if isinstance(found, PretrainRecipe):
        notes += _derive_method(found, len(tables.train))
    elif isinstance(found, DetectRecipe):
        notes += fill_detection(found, len(tables.train), fresh=fresh, on_cpu=on_cpu(found.trainer.accelerator), parts=parts)
        if tables.boxes is not None:
            notes += words_on_small(tables.boxes[0], picture_size(found))
        box_view(found)
    else:
        several = tables.train.targets is not None
        notes += fill_tuning(found, len(tables.train), fresh=fresh, several=several, on_cpu=on_cpu(found.trainer.accelerator))
    batch = found.data.batch_size
    if o.name is None or o.name == own["name"]:
        end = own.get("weight_decay_end")
        if end is not None and o.weight_decay_end is None and o.weight_decay in (None, own["weight_decay"]):
            o.weight_decay_end = end
            notes.append(f"weight decay from {own['weight_decay']:g} to {end:g}: the method's; optim.weight_decay_end says otherwise")
        for key in ("lr", "weight_decay", "betas", "momentum"):
            if getattr(o, key) is None:
                setattr(o, key, own.get(key))
    elif "lr" in own:
        notes.append(f"optimiser {o.name}: the recipe's; {options_of(recipe).name}'s own is {own['name']} with optim.lr={own['lr']:g}")
    o.name = o.name or own["name"]
    generic = {"sgd": (0.03, 5e-4), "lars": (0.3, 1e-6), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}[o.name]
    o.lr = generic[0] if o.lr is None else o.lr
    o.weight_decay = generic[1] if o.weight_decay is None else o.weight_decay
    o.betas, o.momentum = o.betas or (0.9, 0.999), 0.9 if o.momentum is None else o.momentum
    if o.lr_scale != "none":
        scaled = optim.scale_lr(o.lr, batch, o.lr_scale)
        reason = f", scaled {o.lr_scale} to a batch of {batch}" if batch != 256 else ", which this run has"
        notes.append(f"learning rate {scaled:.4g}: {o.lr:g} for a batch of 256{reason}")
        o.lr, o.lr_scale = scaled, "none"
    if found.epochs is None:
        found.epochs = epochs_for(len(tables.train))
        notes.append(f"epochs {found.epochs}: {FEWER if found.epochs > 100 else 'the recipe leaves it open'}")
    if o.warmup_epochs is None:
        o.warmup_epochs = min(40.0, found.epochs / 10)
        notes.append(f"warm-up {counted(o.warmup_epochs, 'epoch', 'g')}: a tenth of {found.epochs}, at most 40")
    if o.warmup_epochs >= found.epochs:
        run = counted(found.epochs, "epoch")
        top = o.lr * found.epochs / o.warmup_epochs
        notes.append(f"warm-up {o.warmup_epochs:g} in a run of {run}: the learning rate only rises, to {top:.4g} of {o.lr:.4g} at its end")

    if found.data.workers == "auto":
        found.data.workers, why = auto_workers(processes)
        notes.append(f"workers {found.data.workers}: {why}")
    if found.trainer.precision == "auto":
        found.trainer.precision, why = auto_precision(found.trainer.accelerator)
        notes.append(f"precision {found.trainer.precision}: {why}")
    if not isinstance(found, DetectRecipe):
        notes += views_of(found)[1]
    steps = len(tables.train) // batch
    left = len(tables.train) - steps * batch
    rest = f" ({counted(left, 'picture')} left out, others in each epoch)" if left else ""
    repeats = repeats_of(found)
    times = f" x {repeats} repeats" if repeats > 1 else ""
    total = steps * repeats * found.epochs
    given = "log_every_n_steps" in found.trainer.model_fields_set
    if found.trainer.log_every_n_steps * (1 if given else 20) > total > 0:  # a curve of fewer points shows little
        found.trainer.log_every_n_steps = max(1, total // (10 if given else 20))
        notes.append(f"metrics every {counted(found.trainer.log_every_n_steps, 'step')}: the whole run has {total}")
    notes.append(f"steps {total}: {counted(found.epochs, 'epoch')} of {counted(steps, 'batch')} of {batch}{times}{rest}")
    return found, notes


def _derive_backbone(found: Recipe) -> list[str]:
    """Fill in, in place, what the weights tell: name, arguments and stem of the backbone, and the size of its pictures."""
    b, data, notes = found.backbone, found.data, []
    made = None
    if is_path(b.weights):
        path = weights_path(b.weights)
        b.weights = str(path)
        config = backbones.read_config(path)
        made = backbones.Spec.of(config) if config else None
    if made and not b.name:
        b.name = made.name
        args, stem = (f" {made.shape_args}" if made.shape_args else ""), (f" with a {made.stem} stem" if made.stem != "timm" else "")
        notes.append(f"backbone {b.name}{args}{stem}: as its weights were made")
    if not b.name:
        raise UserError(f"backbone.name: is missing, and {b.weights} does not say which backbone it is; give a timm name")
    if made and b.name.split(".", 1)[0] == made.name:  # which of timm's weights a name means besides does not matter
        b.args, b.stem = made.shape_args | b.args, b.stem or made.stem
    b.stem = b.stem or "timm"
    if isinstance(found, DetectRecipe):
        notes += fill_size(found, on_cpu=on_cpu(found.trainer.accelerator))
    if data.image_size is None:
        if made:
            data.image_size, why = made.image_size, "as its weights were made"
        elif isinstance(found, PretrainRecipe):
            data.image_size, why = SIZE, "the recipe leaves it open" if b.weights == "timm" else "neither the recipe nor the weights tell"
        else:
            data.image_size, why = size_of(b.weights, b.name)
        size = "x".join(map(str, data.image_size)) if isinstance(data.image_size, tuple) else data.image_size
        notes.append(f"image_size {size}: {why}")
    return notes


def size_of(weights: str, name: str) -> tuple[int | tuple[int, int], str]:
    """Pixels of the pictures that a backbone is tuned on where neither the recipe nor a config beside its weights tells, and why."""
    size = backbones.timm_size(name) if weights != "random" else None
    if size is None:
        return SIZE, "neither the recipe nor the weights tell"
    return size, "as timm's weights were made" if weights == "timm" else f"timm's for {name}, the weights do not tell"


def _derive_method(recipe: PretrainRecipe, pictures: int) -> list[str]:
    """Fill in, in place, options that depend on how many pictures there are, and the size of small crops beside the large ones'."""
    method, augment, notes = recipe.method, recipe.data.augment, []
    for name, rows in options_of(recipe).by_pictures.items():
        if getattr(method, name) is not None:
            continue
        most, value = next(row for row in rows if row[0] is None or pictures <= row[0])
        setattr(method, name, value)
        reason = f"up to {most:,}; large folders take {rows[-1][1]:,}" if most else "a large folder"
        notes.append(f"{name} {value:,}: for {counted(pictures, 'picture')} ({reason})")

    small = base_views(recipe).get("local")
    if small and (augment.local is None or (augment.local.image_size is None and augment.local.views != 0)):
        size = recipe.data.image_size
        height, width = (_share_of(small["image_size"], side) for side in (size if isinstance(size, tuple) else (size, size)))
        if augment.local is None:
            augment.local = type(augment).model_validate({"local": {}}).local
        augment.local.image_size = height if height == width else (height, width)
        count = small["views"] if augment.local.views is None else augment.local.views
        notes.append(f"{counted(count, 'small crop')} of {height}x{width} pixels: as {small['image_size']} beside 224")
    elif small and augment.local.views != 0:
        given, large = augment.local.image_size, recipe.data.image_size
        if np.any(np.greater_equal(given, large)):
            sizes = f"{given} pixels beside large views of {large}"
            notes.append(f"data.augment.local.image_size: {sizes}: small ones are meant to be smaller; leave it out to have it follow")
    if (teacher := getattr(method, "teacher", None)) and Path(teacher).exists():
        method.teacher = str(weights_path(teacher))  # a run's weights/backbone
    return notes


def _share_of(small: int, side: int) -> int:
    """A small crop's side, meant for pictures of 224, beside another side; in whole patches of 16, or of 8 for small pictures."""
    patch = 16 if side >= 160 else 8
    return max(patch, patch * round(side * small / 224 / patch))


FEWER = "few pictures need more passes for as many steps (El-Nouby et al. 2021, arXiv 2112.10740); 100 of 1.28 million, at most 800"


def epochs_for(pictures: int) -> int:
    """Passes of a pretraining: 100 over ImageNet's 1.28 million, more over fewer pictures by the root of how many fewer, at most 800.

    El-Nouby et al. 2021 (arXiv 2112.10740) find pretraining on thousands of pictures to want as many steps as on many. The root is ours
    and not searched: half way, by orders of magnitude, between as many steps and as many epochs.

    >>> [epochs_for(n) for n in (5_000, 50_000, 320_000, 1_280_000, 10_000_000)]
    [800, 506, 200, 100, 100]
    """
    return min(800, max(100, round(100 * math.sqrt(1.28e6 / pictures))))


def on_cpu(accelerator: str) -> bool:
    """Whether Lightning will train on the CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()))


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
