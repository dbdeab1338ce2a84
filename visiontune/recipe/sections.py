"""Sections of a recipe that say which network, which pictures, which optimiser. A field's description is the manual."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, create_model

from visiontune.data.policy import POLICIES
from visiontune.data.views import View
from visiontune.finetune import ways
from visiontune.ranges import Fraction, NonNegativeFloat, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from visiontune.recipe.options import attribute_meanings, named_views

Auto = Literal["auto"]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number first")
    return pair


def _apart(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("two different numbers, the smaller first")
    return pair


Ascending, Apart = AfterValidator(_ascending), AfterValidator(_apart)
Byte = Annotated[int, Field(ge=0, le=255)]
Size = PositiveInt | tuple[PositiveInt, PositiveInt]


def _way(text: str) -> str:
    ways.Way.of(text)
    return text


def _of_a_share(seed: int | None, info: ValidationInfo) -> int | None:
    if seed is not None and not isinstance(info.data.get("val", 0.0), float):
        raise ValueError("data.val to be a share of data.train, whose pictures it draws")
    return seed


ShareSeed = Annotated[NonNegativeInt | None, AfterValidator(_of_a_share)]  # of a section whose `val` stands before it
Tune = Annotated[str, AfterValidator(_way), WithJsonSchema({"type": "string", "pattern": ways.PATTERN, "examples": ["full", "last:2"]})]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=False)


class Backbone(Section):
    """Which network, and where its weights come from."""

    name: str | None = Field(None, description="timm's name; may be left out where `weights` is a run folder, which knows it")
    weights: str = Field("random", description="random | timm (fetched) | a weights file | a run folder | stage:NAME")
    args: dict[str, Any] = Field(default_factory=dict, description="more arguments for timm.create_model, e.g. {drop_path_rate: 0.1}")
    stem: Literal["timm", "small"] | None = Field(
        None,
        description="small: convnets begin with a 3x3 convolution of stride 1 and no pool, for pictures of 32 to 64 pixels; "
        "default: that of the weights, else timm's",
    )
    partial: bool = Field(False, description="load what fits of `weights` and leave the rest at random, with a list of it")


def _view_fields() -> dict[str, Any]:
    ranged: dict[str, Any] = {
        "crop_scale": Annotated[tuple[OpenFraction | Literal[1], Fraction], Ascending],
        "crop_ratio": Annotated[tuple[PositiveFloat, PositiveFloat], Ascending],
        "rotate": Annotated[float, Field(ge=0, le=180)],
        "brightness": NonNegativeFloat,
        "contrast": NonNegativeFloat,
        "saturation": NonNegativeFloat,
        "hue": Annotated[float, Field(ge=0, le=0.5)],
        "blur_sigma": Annotated[tuple[PositiveFloat, PositiveFloat], Ascending],
        "solarize_threshold": Annotated[int, Field(ge=0, le=255)],
        "policy": Literal[POLICIES],
        "magnitude": Annotated[float, Field(ge=0, le=30)],
    }
    meanings = attribute_meanings(View.__doc__ or "")
    return {f.name: (ranged.get(f.name, Fraction) | None, Field(None, description=meanings.get(f.name))) for f in dataclasses.fields(View)}


def _augment_model() -> type[BaseModel]:
    view = _view_fields()
    second = create_model("SecondView", __base__=Section, __doc__="What differs in the second view.", **view)
    local = create_model(
        "LocalViews",
        __base__=Section,
        __doc__="Small crops besides, as in DINO's multi-crop.",
        views=(NonNegativeInt | None, Field(None, description="how many")),
        image_size=(Size | None, Field(None, description="pixels of a side, or [height, width]; 96 unless the pipeline says otherwise")),
        **view,
    )
    pipeline = Literal[tuple(named_views())]  # type: ignore[valid-type]
    return create_model(
        "Augment",
        __base__=Section,
        __doc__="Keys that replace the method's own views; what is not named stays as the method has it.",
        pipeline=(pipeline | None, Field(None, description="start from the views of this method or paper instead of the method's own")),
        views=(PositiveInt | None, Field(None, description="how many views of each picture")),
        second=(second | None, Field(None, description="keys that differ in the second view")),
        local=(local | None, Field(None, description="small crops besides")),
        albumentations=(
            str | list[str | dict[str, Any]] | None,
            Field(None, description="transforms of albumentations after all else: a list of names and settings, or a YAML or JSON file"),
        ),
        **view,
    )


def pipeline_named(value: Any) -> Any:
    """A bare string means `{pipeline: ...}`."""
    return {"pipeline": value} if isinstance(value, str) else value


_Views: Any = _augment_model()
Augment: Any = Annotated[_Views, BeforeValidator(pipeline_named)]


class Columns(Section):
    """Which column of a table holds what; what is not named is found and printed."""

    path: str | None = Field(None, description="of pictures: their paths, or in a folder of `datasets` the pictures themselves")
    label: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="of labels; a list names columns of zeros and ones, one a class"
    )
    split: str | None = Field(None, description="of parts: train or training; val, valid, validation or dev; test")


class Reading(Section):
    """How pictures of any task are read."""

    image_size: Size | None = Field(None, description="pixels of a side, or [height, width]; default: that of the weights, else 224")
    workers: NonNegativeInt | Auto = Field("auto", description="loader processes for each device")
    channels: PositiveInt = Field(3, description="3 and 1 (grey) take any picture; others TIFF and .npy files with that many channels")
    value_range: Annotated[tuple[float, float], Apart] | None = Field(
        None, description="what becomes black and white in pictures of more than 8 bits; default: all 16 bits, 0 to 1 for floats"
    )
    background: tuple[Byte, Byte, Byte] = Field((255, 255, 255), description="RGB that transparent pixels are laid on")
    mean: list[Fraction] | Literal["estimate"] | None = Field(
        None,
        description="of each channel in [0, 1], or `estimate`; default: of the weights, else timm's, estimated for channels other than 3",
    )
    std: list[PositiveFloat] | Literal["estimate"] | None = Field(None, description="likewise")


class Pixels(Reading):
    """How pictures of any training are read and handed over."""

    batch_size: PositiveInt = Field(256, description="pictures per optimiser step over all devices and accumulation")
    max_broken: Fraction = Field(0.01, description="largest share of unreadable pictures; five are forgiven in any folder")


class Data(Pixels):
    """Pictures of the training."""

    train: str = Field(
        description="folder of pictures, at any depth, or of tar shards; a table (.csv, .tsv, .parquet, a folder of `datasets`); "
        "or sample:digits/train"
    )
    root: str | None = Field(None, description="folder that the paths in a table are relative to; default: the table's own")
    columns: Columns = Field(default_factory=Columns, description="which column of a table holds what")
    augment: Augment = Field(default_factory=_Views, description="replaces keys of the method's own views")  # type: ignore[valid-type]
    repeats: PositiveInt = Field(
        1, description="steps in a row on other crops of the same pictures, decoded once: for loader-bound machines"
    )


class LabelledData(Data):
    """Pictures in one sub-folder a class, or a table with their labels."""

    batch_size: PositiveInt = Field(64, description="pictures per optimiser step over all devices and accumulation")
    val: str | OpenFraction | None = Field(
        None,
        description="folder or table with the same classes, or a share of `train` to set aside, by class; "
        "left out where the table `train` has a column that tells",
    )
    val_seed: ShareSeed = Field(None, description="of the pictures that a share `val` sets aside; default: the run's seed")
    label_separator: Annotated[str, Field(min_length=1)] | Literal[False] | None = Field(
        None, description="stands between several labels in a cell of a table (default: | and ;), or false: a cell is one label as it is"
    )
    sampling: Literal["natural", "balanced", "sqrt"] = Field(
        "natural", description="natural: each picture once an epoch; balanced: each class equally often; sqrt: by the root of its pictures"
    )
    labels_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="share of each class's training pictures to use")
    labels_per_class: PositiveInt | None = Field(None, description="training pictures to use of each class")


class Probe(Section):
    """k-NN and linear probe on labelled pictures while pretraining; the backbone stays bit-identical."""

    train: str = Field(description="folder with one sub-folder a class, or a table")
    val: str | None = Field(
        None, description="folder or table with the same classes; left out where the table `train` has a column that tells"
    )
    root: str | None = Field(None, description="folder that the paths in a table are relative to; default: the table's own")
    columns: Columns = Field(default_factory=Columns, description="which column of a table holds what")
    label_separator: Annotated[str, Field(min_length=1)] | Literal[False] | None = Field(
        None, description="stands between several labels in a cell of a table (default: | and ;), or false: a cell is one label as it is"
    )
    every: PositiveInt = Field(10, description="epochs between probes; one is made before the first step and one at the end, too")
    batch_size: PositiveInt = Field(256, description="pictures at a time")


class Optim(Section):
    """The optimiser. What is not given is the method's own."""

    name: Literal["adamw", "adam", "sgd", "lars"] | None = Field(None, description="default: the method's")
    lr: PositiveFloat | None = Field(None, description="learning rate, for a batch of 256 unless lr_scale is none; default: the method's")
    lr_scale: Literal["linear", "sqrt", "none"] = Field("none", description="how lr follows batch_size")
    weight_decay: NonNegativeFloat | None = Field(None, description="of weights with more than one dimension; default: the method's")
    weight_decay_end: NonNegativeFloat | None = Field(
        None,
        description="what weight_decay comes to at the end, along half a cosine; default: the method's, with its own optimiser and decay",
    )
    betas: tuple[BelowOne, BelowOne] | None = Field(None, description="of adamw and adam; default: the method's")
    momentum: Fraction | None = Field(None, description="of sgd and lars; default: 0.9")
    warmup_epochs: NonNegativeFloat | None = Field(None, description="linear warm-up; default: a tenth of the epochs, at most 40")
    min_lr_factor: Fraction = Field(0.0, description="what the cosine ends at, as a share of lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="factor of lr from each layer to the one below")
    clip: PositiveFloat | None = Field(None, description="largest norm of the gradient")


class PretrainOptim(Optim):
    lr_scale: Literal["linear", "sqrt", "none"] = Field("linear", description="how lr follows batch_size")


Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"]


class TrainerSection(Section):
    """Handed to Lightning's Trainer."""

    precision: Precision = Field(
        "auto", description="auto: bf16-mixed where the device computes it natively, 16-mixed on older CUDA devices, else 32-true"
    )
    devices: PositiveInt | list[NonNegativeInt] | Auto = Field("auto", description="number of devices, or their indices")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field("auto", description="kind of device")
    strategy: str = Field("auto", description="auto, ddp, fsdp (weights shared out, for large ones), or another name that Lightning knows")
    num_nodes: PositiveInt = Field(1, description="machines")
    accumulate_grad_batches: PositiveInt = Field(1, description="batches per optimiser step; batch_size counts them all")
    check_val_every_n_epoch: PositiveInt = Field(
        1, description="epochs between validations; must divide `epochs`: the last one is validated"
    )
    log_every_n_steps: PositiveInt = Field(10, description="optimiser steps between training metrics")
    sync_batchnorm: bool | None = Field(None, description="default: true where several CUDA devices train")
    deterministic: bool = Field(False, description="refuse operations without a deterministic form")
    tf32: bool | None = Field(
        None, description="fp32 products with 10 bits of mantissa on NVIDIA GPUs; default: torch's, yes for convolutions, no for matrices"
    )


def named(value: Any) -> Any:
    """A bare string means `{name: ...}`."""
    return {"name": value} if isinstance(value, str) else value
