"""The LightningModule of a recipe, with its weights, mean and standard deviation."""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch._dynamo import config as dynamo

from visiontune import backbones
from visiontune.build.detecting import detector_options
from visiontune.build.pictures import Tables, estimate_statistics, picture_size
from visiontune.errors import UserError, counted, near
from visiontune.module import Module
from visiontune.recipe import DetectRecipe, PretrainRecipe, Recipe, Validated
from visiontune.recipe.schema import is_path, options_of, repeats_of
from visiontune.run import Run


def weights_path(weights: str) -> Path:
    """A weights file, an exported folder, or a run's `weights/backbone`; of a staged run its last stage is meant.

    Raises:
        UserError: if a run has no weights yet.
    """
    path = Path(weights)
    if not path.is_dir() or not (path / "recipe.yaml").is_file():
        return path
    run = Run(path)
    if stages := run.stage_runs():
        run = list(stages.values())[-1]
    if not (run.backbone / "config.json").is_file():
        cure = f"python -m visiontune.fit --resume {path}"
        raise UserError(f"backbone.weights: the run {run.folder} has no weights/backbone yet; finish it first: {cure}")
    return run.backbone


PROGRAMS = 6  # of a compiled block at most: see `compile_blocks`


def make_module(recipe: Recipe, tables: Tables, *, resumed: bool = False) -> tuple[Module, list[str]]:
    """The LightningModule of a derived recipe, with its weights, and what was loaded in words.

    A resumed run gets its weights from the checkpoint; the file that it once started from may be gone.
    """
    o, b = recipe.optim, recipe.backbone
    steps_per_epoch = len(tables.train) // recipe.data.batch_size * repeats_of(recipe)
    common: dict[str, Any] = {
        "image_size": recipe.data.image_size,
        "channels": recipe.data.channels,
        "backbone_args": b.args,
        "stem": b.stem,
        "weights": "timm" if b.weights == "timm" and not resumed else "random",
        "optimizer": o.name,
        "lr": o.lr,
        "weight_decay": o.weight_decay,
        "weight_decay_end": o.weight_decay_end,
        "betas": o.betas,
        "momentum": o.momentum,
        "warmup_steps": round((o.warmup_epochs or 0) * steps_per_epoch),
        "total_steps": steps_per_epoch * recipe.epochs,
        "min_lr_factor": o.min_lr_factor,
        "layer_decay": o.layer_decay,
        "clip": o.clip,
    }
    torch.manual_seed(recipe.seed)
    options = options_of(recipe)
    cls = getattr(importlib.import_module(f"visiontune.{_room(recipe)}.{options.name}"), options.class_name)
    if isinstance(recipe, PretrainRecipe):
        own = recipe.method.model_dump(exclude={"name"})
    elif isinstance(recipe, DetectRecipe):
        assert tables.boxes is not None
        own = detector_options(recipe, tables.boxes[0])
    else:
        train = tables.train
        own = recipe.head.model_dump(exclude={"name"}) | {"tune": recipe.tune}
        own |= {"num_classes": len(train.classes), "class_names": train.classes, "labels": "single" if train.targets is None else "multi"}
        own |= {"class_counts": train.class_counts().tolist(), "pictures": len(train)}

    module: Module
    config, report = None, None
    if is_path(b.weights):
        config = backbones.read_config(Path(b.weights))
    module = cls(b.name, **own, **common)
    if is_path(b.weights) and not resumed:
        report = module.load_backbone(b.weights, partial=b.partial)
    notes = report.lines() + module.load_rest(b.weights) if report else []
    notes.append(_set_statistics(module, recipe, tables, config, report, resumed=resumed))
    if isinstance(recipe, Validated):
        _choose_monitor(recipe, module)
    notes += module.notes
    if module.spec.stem != "timm" and module.face.strides:
        strides = ", ".join(map(str, module.face.strides))
        notes.append(f"stem {module.spec.stem}: its maps have strides of {strides} pixels, with timm's stem 2 to 4 times as many")
    if module.face.grid is not None and math.prod(module.face.grid) < 4:
        (rows, columns), (height, width) = module.face.grid, picture_size(recipe)
        own = "smaller patches (backbone.args.patch_size)" if backbones.has_attention(module.backbone) else "backbone.stem=small"
        cure = f"larger pictures (data.image_size), or {own} where it takes that, show it more"
        notes.append(f"of {height}x{width} pixels the last features are {rows}x{columns}: {cure}")
    size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    notes.append(
        f"{options.class_name} on {b.name}: {size / 1e6:.2f} M parameters to train, embedding of {module.face.width}, "
        f"pictures of {picture_size(recipe)[0]}x{picture_size(recipe)[1]}"
    )
    if recipe.compile:
        blocks = sum(compile_blocks(encoder) for encoder in module.encoders)
        notes.append(f"compiled {counted(blocks, 'block')} of the backbone one by one")
    return module, notes


def _choose_monitor(recipe: Validated, module: Any) -> None:
    """Fill in what the best weights are kept by.

    Raises:
        UserError: for a name that is no validation metric of this run.
    """
    monitors: Sequence[str] = module.monitors
    recipe.monitor = (recipe.monitor or monitors[0]).removeprefix("val/")
    if recipe.monitor not in monitors:
        raise UserError(f"monitor: got {recipe.monitor!r}; allowed here: {', '.join(monitors)}{near(recipe.monitor, monitors)}")


def _room(recipe: Recipe) -> str:
    return "pretrain" if isinstance(recipe, PretrainRecipe) else "finetune"


def _set_statistics(module: Module, recipe: Recipe, tables: Tables, config: dict[str, Any] | None, report: Any, *, resumed: bool) -> str:
    """Mean and standard deviation: the recipe's, else those of the weights, else timm's of the backbone, or estimated from pictures.

    Raises:
        UserError: if the recipe gives another number of them than there are channels.
    """
    data, channels = recipe.data, recipe.data.channels
    for key in ("mean", "std"):
        given = getattr(data, key)
        if isinstance(given, list) and len(given) != channels:
            raise UserError(f"data.{key}: got {given}; expected {channels} numbers, one a channel, or `estimate`")
    weights = (config or {}).get("pretrained_cfg", {})
    mean, std = weights.get("mean"), weights.get("std")
    source = "of the weights"
    if not mean and report is not None and report.layout == "mae":
        # timm's configurations of these names say 0.5, the published files were trained with ImageNet's
        mean, std, source = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "ImageNet's, as for every file of facebookresearch/mae"
    estimate = "estimate" in (data.mean, data.std)
    if mean is None or len(mean) != channels:
        mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
        source = f"timm's for {module.spec.name}"
        # timm's numbers are of photos: what another sensor sees is measured
        estimate |= channels not in (1, 3) and not (data.mean and data.std)
    if estimate and resumed:
        return "mean and std: those of the checkpoint"
    if estimate:
        mean, std, count = estimate_statistics(recipe, tables.train)
        source = f"estimated from {count} training pictures"
        if data.value_range is None and max(mean) + 2 * max(std) < 0.25:
            source += "; they are very dark: of pictures with more than 8 bits, say what is white with data.value_range"
    given_mean, given_std = (v if isinstance(v, list) else None for v in (data.mean, data.std))
    if given_mean or given_std:
        source = f"of the recipe, the rest {source}" if estimate else "of the recipe"
    mean, std = given_mean or mean, given_std or std
    if estimate:
        data.mean, data.std = [round(m, 6) for m in mean], [round(s, 6) for s in std]  # numbers, in the run's recipe
    with torch.no_grad():
        module.mean.copy_(torch.tensor(mean).view_as(module.mean))
        module.std.copy_(torch.tensor(std).view_as(module.std))
    return f"mean {_numbers(mean)} and std {_numbers(std)}: {source}"


def _numbers(values: Any) -> str:
    rounded = [f"{v:.3f}" for v in values]
    return rounded[0] if len(set(rounded)) == 1 else "/".join(rounded)


def compile_blocks(model: torch.nn.Module, backend: Any = "inductor") -> int:
    """Compile a backbone's repeated blocks in place: parameter names stay, and `self.log` never breaks a graph. Returns how many."""
    blocks = backbones.repeated_blocks(model) or [model]
    # All modules share the code that torch counts programs of, and beyond eight it would go on uncompiled without a word: each block has
    # one of its own, unless it is like another, for training and evaluation, for two sizes of views and a last batch that is smaller.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(dynamo, limit, max(getattr(dynamo, limit), PROGRAMS * len(blocks)))
    dynamo.optimize_ddp = False  # DDP would have programs cut where its buckets end; blocks are small enough to be sent one by one
    for block in blocks:
        block.compile(dynamic=False, backend=backend)  # blocks of other widths are other programs, not one with symbols for sizes
    return len(blocks)
