"""Settings to objects: the only room that knows both.

`derive` fills in every number that the recipe leaves open, with its reason; the rest turns the filled-in recipe into pictures, a
module and a Trainer.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import convert_sync_batchnorm

from visiontune import backbones, optim
from visiontune.data.datamodule import Broken, PictureData
from visiontune.data.folder import PictureTable, align_labels, few_labels, list_pictures, split_off
from visiontune.data.loader import Pictures, auto_workers, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.views import Augment, CenterCrop, Views
from visiontune.errors import UserError, some
from visiontune.module import Module
from visiontune.recipe import ClassifyRecipe, PretrainRecipe, Recipe
from visiontune.recipe.schema import is_path, options_of
from visiontune.run import Run


@dataclass(frozen=True)
class Tables:
    """The pictures of a run.

    Attributes:
        train: to train on.
        val: to validate on, or None.
        probe: labelled training and validation pictures of the probe, or None.
        notes: what was decided, in words.
    """

    train: PictureTable
    val: PictureTable | None
    probe: tuple[PictureTable, PictureTable] | None
    notes: list[str]


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- pictures


def find_pictures(recipe: Recipe) -> Tables:
    """List the folders that a recipe names.

    Raises:
        UserError: if one is missing, empty, or too small for a batch.
    """
    notes: list[str] = []
    val: PictureTable | None = None
    probe = None
    if isinstance(recipe, ClassifyRecipe):
        data = recipe.data
        train = list_pictures(data.train, labelled=True)
        if isinstance(data.val, str):
            val = align_labels(list_pictures(data.val, key="data.val", labelled=True), train.classes)
        else:
            train, val = split_off(train, data.val, seed=recipe.seed)
        total = len(train)
        train = few_labels(train, seed=recipe.seed, fraction=data.labels_fraction, per_class=data.labels_per_class)
        used = f"{len(train)} of {total}" if len(train) < total else str(total)
        notes.append(
            f"pictures: {used} with labels to train, {len(val)} to validate, {len(train.classes)} classes: {some(train.classes, 10)}"
        )
        missing = [c for k, c in enumerate(train.classes) if train.labels is not None and not (train.labels == k).any()]
        if missing:
            raise UserError(f"data.train: no picture of {some(missing)}")
    else:
        train = list_pictures(recipe.data.train)
        notes.append(f"pictures: {len(train)} without labels in {recipe.data.train}")
        if recipe.probe:
            labelled = list_pictures(recipe.probe.train, key="probe.train", labelled=True)
            judged = align_labels(list_pictures(recipe.probe.val, key="probe.val", labelled=True), labelled.classes, key="probe.val")
            probe = (labelled, judged)
            notes.append(f"probe: {len(labelled)} labelled pictures to fit, {len(judged)} to score")
    if len(train) < recipe.data.batch_size:
        raise UserError(
            f"data.batch_size: got {recipe.data.batch_size}, but there are {len(train)} pictures to train on; "
            f"give at most that, e.g. data.batch_size={max(1, len(train) // 2)}"
        )
    return Tables(train, val, probe, notes)


def picture_size(recipe: Recipe) -> tuple[int, int]:
    size = recipe.data.image_size
    return (size, size) if isinstance(size, int) else size


def make_data(recipe: Recipe, tables: Tables, broken_csv: Path | None) -> PictureData:
    views = Views.of(options_of(recipe).views, recipe.data.augment.model_dump(exclude_none=True))
    assert isinstance(recipe.data.workers, int), "derive() comes first"
    return PictureData(
        tables.train,
        Augment(views, picture_size(recipe)),
        val=tables.val,
        val_transform=CenterCrop(picture_size(recipe)),
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        seed=recipe.seed,
        broken=Broken(broken_csv, limit=recipe.data.max_broken, total=len(tables.train)),
        labelled=isinstance(recipe, ClassifyRecipe),
    )


def clean_loader(recipe: Recipe, table: PictureTable, batch_size: int) -> Callable[[], Any]:
    """Makes a loader of clean pictures with labels, whole in every process."""

    def loader() -> Any:
        dataset = Pictures(table, CenterCrop(picture_size(recipe)))
        return make_loader(dataset, EvalOrder(len(table), batch_size), workers=0)

    return loader


# ---------------------------------------------------------------- what the recipe leaves open


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
    steps = len(tables.train) // batch
    left = len(tables.train) - steps * batch
    rest = f" ({left} pictures are left out, others in each epoch)" if left else ""
    notes.append(f"steps {steps * found.epochs}: {found.epochs} epochs of {steps} batches of {batch}{rest}")
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


# ---------------------------------------------------------------- everything before the first step


@dataclass(frozen=True)
class Prepared:
    """A run up to its Trainer, with nothing written yet.

    Attributes:
        recipe: with every number filled in.
        tables: its pictures.
        module: with its weights.
        notes: what was found and decided, in words.
    """

    recipe: Recipe
    tables: Tables
    module: Module
    notes: list[str]


def prepare(recipe: Recipe, *, resumed: bool = False) -> Prepared:
    """Pictures, numbers and module of a run: whatever can be wrong with a recipe is found here.

    Raises:
        UserError: in one sentence.
    """
    tables = find_pictures(recipe)
    processes = processes_here(recipe)
    check_split(recipe, processes * recipe.trainer.num_nodes)
    recipe, derived = derive(recipe, tables, processes)
    module, loaded = make_module(recipe, tables, resumed=resumed)
    return Prepared(recipe, tables, module, [*tables.notes, *derived, *loaded])


def rehearse(stages: dict[str, Recipe]) -> dict[str, Prepared]:
    """Prepare every stage before the first one trains; a backbone that an earlier stage will make stands in with random weights."""
    prepared: dict[str, Prepared] = {}
    for name, recipe in stages.items():
        recipe = recipe.model_copy(deep=True)
        if recipe.backbone.weights.startswith("stage:"):
            source = prepared[recipe.backbone.weights.removeprefix("stage:")].module.spec
            recipe.backbone.weights = "random"
            if recipe.backbone.name in (None, source.name):
                recipe.backbone.name = source.name
                recipe.backbone.args = {k: v for k, v in source.args.items() if k != "img_size"} | recipe.backbone.args
        try:
            prepared[name] = prepare(recipe)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}" if name else str(error)) from error
    return prepared


def check_split(recipe: Recipe, world_size: int) -> None:
    """A global batch must divide evenly.

    Raises:
        UserError: if it does not.
    """
    accumulate = recipe.trainer.accumulate_grad_batches
    parts = world_size * accumulate
    if recipe.data.batch_size % parts:
        near_size = max(parts, recipe.data.batch_size // parts * parts)
        raise UserError(
            f"data.batch_size: got {recipe.data.batch_size}, which {world_size} devices x {accumulate} accumulated batches do not divide; "
            f"try data.batch_size={near_size}"
        )


# ---------------------------------------------------------------- module and trainer


def make_module(recipe: Recipe, tables: Tables, *, resumed: bool = False) -> tuple[Module, list[str]]:
    """The LightningModule of a derived recipe, with its weights, and what was loaded in words.

    A resumed run gets its weights from the checkpoint; the file that it once started from may be gone.
    """
    o, b = recipe.optim, recipe.backbone
    steps_per_epoch = len(tables.train) // recipe.data.batch_size
    common: dict[str, Any] = {
        "image_size": recipe.data.image_size,
        "backbone_args": b.args,
        "weights": "timm" if b.weights == "timm" and not resumed else "random",
        "optimizer": o.name,
        "lr": o.lr,
        "weight_decay": o.weight_decay,
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
    else:
        own = recipe.head.model_dump(exclude={"name"})
        own |= {"tune": recipe.tune, "num_classes": len(tables.train.classes), "class_names": tables.train.classes}

    module: Module
    config, report = None, None
    if is_path(b.weights):
        config = backbones.read_config(Path(b.weights))
    module = cls(b.name, **own, **common)
    if is_path(b.weights) and not resumed:
        report = backbones.load_weights(module.backbone, b.weights, partial=b.partial)
    notes = report.lines() if report else []
    notes.append(_set_statistics(module, recipe, config, report))
    size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    notes.append(
        f"{options.class_name} on {b.name}: {size / 1e6:.2f} M parameters to train, embedding of {module.face.width}, "
        f"pictures of {picture_size(recipe)[0]}x{picture_size(recipe)[1]}"
    )
    if recipe.compile:
        blocks = compile_blocks(module.backbone)
        notes.append(f"compiled {blocks} blocks of the backbone one by one")
    return module, notes


def _room(recipe: Recipe) -> str:
    return "pretrain" if isinstance(recipe, PretrainRecipe) else "finetune"


def _set_statistics(module: Module, recipe: Recipe, config: dict[str, Any] | None, report: Any) -> str:
    """Mean and standard deviation: the recipe's, else those of the weights, else timm's of the backbone."""
    given = recipe.data.mean, recipe.data.std
    weights = (config or {}).get("pretrained_cfg", {})
    mean, std = weights.get("mean"), weights.get("std")
    source = "of the weights"
    if not mean and report is not None and report.layout == "mae":
        # timm's configurations of these names say 0.5, the published files were trained with ImageNet's
        mean, std, source = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "ImageNet's, as for every file of facebookresearch/mae"
    if not mean:
        mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
        source = f"timm's for {module.spec.name}"
    if any(given):
        source = "of the recipe"
    mean, std = given[0] or mean, given[1] or std
    with torch.no_grad():
        module.mean.copy_(torch.tensor(mean).view_as(module.mean))
        module.std.copy_(torch.tensor(std).view_as(module.std))
    return f"mean {_numbers(mean)} and std {_numbers(std)}: {source}"


def _numbers(values: Any) -> str:
    rounded = [f"{v:.3f}" for v in values]
    return rounded[0] if len(set(rounded)) == 1 else "/".join(rounded)


def compile_blocks(model: torch.nn.Module) -> int:
    """Compile a backbone's repeated blocks in place: parameter names stay, and `self.log` never breaks a graph."""
    count = 0
    for name in ("blocks", "stages", "layer1", "layer2", "layer3", "layer4", "layers"):
        part = getattr(model, name, None)
        for block in part.children() if part is not None else ():
            block.compile(dynamic=False)  # blocks of other widths are other programs, not one with symbols for sizes
            count += 1
    if not count:
        model.compile(dynamic=False)
        count = 1
    return count


def make_trainer(recipe: Recipe, folder: Path, *, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer from the recipe's `trainer` section."""
    t = recipe.trainer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _trainer(
            accelerator=t.accelerator,
            devices=t.devices,
            strategy=t.strategy,
            num_nodes=t.num_nodes,
            precision=t.precision,
            max_epochs=recipe.epochs,
            accumulate_grad_batches=t.accumulate_grad_batches,
            log_every_n_steps=t.log_every_n_steps,
            deterministic=t.deterministic,
            use_distributed_sampler=False,  # our order knows ranks itself
            num_sanity_val_steps=0,
            enable_checkpointing=True,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
        )


def processes_here(recipe: Recipe) -> int:
    """Training processes on this machine: one a device."""
    devices = recipe.trainer.devices
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return devices
    return max(1, torch.cuda.device_count()) if recipe.trainer.accelerator != "cpu" else 1


def tensorboard(folder: Path) -> list[Any]:
    """TensorBoard's logger where it is installed."""
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        return []
    from lightning.pytorch.loggers import TensorBoardLogger

    return [TensorBoardLogger(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)]


def _trainer(**settings: Any) -> L.Trainer:
    try:
        return L.Trainer(**settings)
    except (MisconfigurationException, ValueError, RuntimeError) as error:  # a device, strategy or precision that is not there
        raise UserError(f"trainer: Lightning refuses these settings here: {str(error).strip().splitlines()[0]}") from error


def sync_batch_norms(module: Module, recipe: Recipe, trainer: L.Trainer) -> None:
    """Batch norms over all processes, by timm's function: Lightning's (torch's) drops the activation inside timm's BatchNormAct2d.

    By default where several CUDA devices train; torch's synchronised norm refuses the CPU.
    """
    wanted = recipe.trainer.sync_batchnorm
    if wanted if wanted is not None else trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
        convert_sync_batchnorm(module)
