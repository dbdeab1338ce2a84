"""Sections of a recipe that detects: annotated pictures, what training does to them, and the heads with their options."""

import dataclasses
import functools
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, create_model

from visiontune.data.detection.views import BOX_PIPELINES, BoxView
from visiontune.ranges import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt
from visiontune.recipe.options import attribute_meanings, detection_heads, read_options
from visiontune.recipe.sections import Ascending, Pixels, Section, ShareSeed, named, pipeline_named

DEFAULT = "fcos"
OWN = "package.module.Class"  # stands for the name of a head of the user's own


class BoxSource(Section):
    """Pictures and the boxes in them."""

    images: str = Field(description="folder of pictures")
    boxes: str = Field(description="COCO's .json, a folder of Pascal VOC's .xml, or a folder of YOLO's .txt")
    split: str | None = Field(None, description="text file of names, a line each, of the pictures to take; default: all")


def _augment_model() -> type[BaseModel]:
    ranged: dict[str, Any] = {
        "scale": Annotated[tuple[PositiveFloat, PositiveFloat], Ascending],
        "sizes": Annotated[tuple[PositiveFloat, PositiveFloat], Ascending],
        "hue": Annotated[float, Field(ge=0, le=0.5)],
        "brightness": NonNegativeFloat,
        "contrast": NonNegativeFloat,
        "saturation": NonNegativeFloat,
        "plain_end": Annotated[float, Field(ge=0, lt=1)],
        "albumentations": str | list[str | dict[str, Any]],
    }
    meanings = attribute_meanings(BoxView.__doc__ or "")
    fields: dict[str, Any] = {
        f.name: (ranged.get(f.name, Fraction) | None, Field(None, description=meanings.get(f.name))) for f in dataclasses.fields(BoxView)
    }
    pipeline = Literal[tuple(BOX_PIPELINES)]  # type: ignore[valid-type]
    return create_model(
        "BoxAugment",
        __base__=Section,
        __doc__="Keys that replace those of the pipeline.",
        pipeline=(pipeline | None, Field(None, description="start from this; default: standard, large_scale for random weights")),
        **fields,
    )


_BoxViews: Any = _augment_model()
BoxAugment: Any = Annotated[_BoxViews, BeforeValidator(pipeline_named)]


class BoxesData(Pixels):
    """Pictures with boxes."""

    train: BoxSource = Field(description="pictures to train on, with their boxes")
    val: BoxSource | OpenFraction = Field(description="pictures to validate on, with their boxes, or a share of `train` to set aside")
    val_seed: ShareSeed = Field(None, description="of the pictures that a share `val` sets aside; default: the run's seed")
    batch_size: PositiveInt = Field(16, description="pictures per optimiser step over all devices and accumulation")
    augment: BoxAugment = Field(default_factory=_BoxViews, description="replaces keys of the pipeline")  # type: ignore[valid-type]
    min_box: NonNegativeFloat = Field(1.0, description="training boxes of at most so many pixels in width or height are left out")
    labels_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the training pictures to use, with at least one of each class"
    )


@functools.cache
def _head_model(name: str) -> type[BaseModel]:
    """Options of the module that trains, and of the head itself."""
    detector, head = read_options("finetune", "detect"), read_options("heads.detect", name)
    fields: dict[str, Any] = {"name": (Literal[name], Field(description=head.summary))}  # type: ignore[valid-type]
    fields |= {o.name: (o.type, Field(o.default, description=o.meaning)) for o in (*detector.options, *own_options(name))}
    return create_model(f"{name.title().replace('_', '')}Head", __base__=Section, __doc__=head.summary, **fields)


def own_options(name: str) -> tuple[Any, ...]:
    """What a head takes beside what the detector hands to every head."""
    shared = {o.name for o in read_options("finetune", "detect").options}
    return tuple(o for o in read_options("heads.detect", name).options if o.name not in shared) if name in detection_heads() else ()


@functools.cache
def _users_model() -> type[BaseModel]:
    fields: dict[str, Any] = {"name": (str, Field(description=f"{OWN} of a head of your own"))}
    fields |= {o.name: (o.type, Field(o.default, description=o.meaning)) for o in read_options("finetune", "detect").options}
    fields["args"] = (dict[str, Any], Field(default_factory=dict, description="more keywords of the class"))
    return create_model("OwnHead", __base__=Section, __doc__="A head of your own.", **fields)


def _tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", "")
    return OWN if isinstance(name, str) and "." in name else str(name)


def _with_name(value: Any) -> Any:
    """A bare string means `{name: ...}`; options without a name are those of the first choice."""
    value = named(value)
    return {"name": DEFAULT} | value if isinstance(value, dict) else value


_tagged = [Annotated[_head_model(name), Tag(name)] for name in detection_heads()] + [Annotated[_users_model(), Tag(OWN)]]
DetectionHead: Any = Annotated[Union[tuple(_tagged)], Discriminator(_tag), BeforeValidator(_with_name)]  # noqa: UP007


def default_head() -> Any:
    return _head_model(DEFAULT)(name=DEFAULT)
