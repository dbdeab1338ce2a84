"""The recipe as types. A field's description is the manual; `python -m visiontune schema` prints it all for editors."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, Field, create_model

from visiontune.data.columns import TableSettings
from visiontune.data.detection.views import BOX_PIPELINES
from visiontune.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from visiontune.recipe.benchmark import LISTS, BenchmarkRecipe
from visiontune.recipe.detection import BoxesData, BoxSource, DetectionHead, default_head
from visiontune.recipe.options import methods, named_views, read_options
from visiontune.recipe.sections import Backbone, Data, LabelledData, Optim, PretrainOptim, Probe, Section, TrainerSection, Tune, named


@functools.cache
def _method_model(name: str) -> type[BaseModel]:
    options = read_options("pretrain", name)
    fields: dict[str, Any] = {"name": (Literal[name], Field(description=options.summary))}  # type: ignore[valid-type]
    fields |= {o.name: (o.type, Field(o.default, description=o.meaning)) for o in options.options}
    return create_model(options.class_name, __base__=Section, __doc__=options.summary, **fields)


@functools.cache
def _head_model() -> type[BaseModel]:
    options = read_options("finetune", "classify")
    fields: dict[str, Any] = {"name": (Literal["linear"], Field("linear", description="timm's own classifier"))}
    fields |= {o.name: (o.type, Field(o.default, description=o.meaning)) for o in options.options}
    return create_model("LinearHead", __base__=Section, __doc__="The classifier on the backbone.", **fields)


Method: Any = Annotated[Union[tuple(_method_model(m) for m in methods())], Field(discriminator="name"), BeforeValidator(named)]  # noqa: UP007
Head: Any = Annotated[_head_model(), BeforeValidator(named)]


class Common(Section):
    backbone: Backbone = Field(description="the network")
    epochs: PositiveInt | None = Field(
        None, description="passes over the training pictures; default: the more the fewer pictures there are, as the run prints"
    )
    seed: NonNegativeInt = Field(0, description="of everything random")
    compile: bool = Field(False, description="compile the backbone block by block (torch.compile)")
    checkpoint_minutes: PositiveFloat = Field(15.0, description="minutes between checkpoints within an epoch; each epoch ends with one")
    trainer: TrainerSection = Field(default_factory=TrainerSection, description="handed to Lightning's Trainer")


class PretrainRecipe(Common):
    """Learn a backbone from pictures without labels."""

    task: Literal["pretrain"]
    method: Method = Field(description="how; a bare name or {name: ..., options}")
    data: Data = Field(description="pictures")
    probe: Probe | None = Field(None, description="labelled pictures to judge the embedding on meanwhile")
    optim: PretrainOptim = Field(default_factory=PretrainOptim, description="the optimiser")


class Validated(Common):
    """What every task has that is validated."""

    monitor: str | None = Field(None, description="validation metric that the best weights are kept by")
    patience: PositiveInt | None = Field(None, description="stop after this many epochs in which `monitor` got no better; default: never")
    optim: Optim = Field(default_factory=Optim, description="the optimiser")


class ClassifyRecipe(Validated):
    """Teach a classifier on a backbone from labelled pictures."""

    task: Literal["classify"]
    tune: Tune = Field(
        "full",
        description="full: everything; head: the classifier on the frozen backbone; head_then_full: one after the other; "
        "last:N: the last N blocks; lora: low-rank adapters",
    )
    head: Head = Field(default_factory=_head_model(), description="the classifier")
    data: LabelledData = Field(description="labelled pictures")
    monitor: str | None = Field(
        None, description="validation metric that the best weights are kept by; default: top1, with several labels a picture macro_ap"
    )


class DetectRecipe(Validated):
    """Teach a detection head, and the backbone under it, from pictures with boxes."""

    task: Literal["detect"]
    head: DetectionHead = Field(default_factory=default_head, description="what makes boxes of the backbone's features")
    data: BoxesData = Field(description="pictures with boxes")
    monitor: str | None = Field(None, description="validation metric that the best weights are kept by: map (the default), map50, map75")


Judged = ClassifyRecipe | DetectRecipe  # what ends with a score on pictures that it did not see
Recipe = PretrainRecipe | Judged
TRAININGS: dict[str, type[Common]] = {"pretrain": PretrainRecipe, "classify": ClassifyRecipe, "detect": DetectRecipe}
TASKS: dict[str, type[Section]] = {**TRAININGS, "benchmark": BenchmarkRecipe}


def options_of(recipe: Recipe) -> Any:
    """The class behind a recipe, as read from its source."""
    if isinstance(recipe, PretrainRecipe):
        return read_options("pretrain", recipe.method.name)
    return read_options("finetune", recipe.task)


def repeats_of(recipe: Recipe) -> int:
    """Steps in a row on the same pictures, decoded once. Those with boxes are read anew for each step."""
    return getattr(recipe.data, "repeats", 1)


def share_seed(recipe: Judged) -> int:
    """By which a share of the training pictures is set aside for validation."""
    return recipe.seed if recipe.data.val_seed is None else recipe.data.val_seed


def table_settings(section: Data | Probe) -> TableSettings:
    """What a section of a recipe says of its tables."""
    columns = section.columns
    label = tuple(columns.label) if isinstance(columns.label, list) else columns.label
    return TableSettings(section.root, columns.path, label, columns.split, getattr(section, "label_separator", None))


def type_of_val(section: str) -> str:
    """What may stand there."""
    field = (Probe if section == "probe" else LabelledData).model_fields["val"]
    return str(field.description)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Union[tuple(TASKS.values())]).json_schema()  # noqa: UP007
    bare = {"type": "string", "enum": list(methods())}
    pretrain = schema["$defs"]["PretrainRecipe"]["properties"]["method"]
    schema["$defs"]["PretrainRecipe"]["properties"]["method"] = {
        "description": pretrain.get("description", ""),
        "anyOf": [bare, *pretrain.pop("oneOf", [])],
    }
    for section, pipelines in (("Data", named_views()), ("LabelledData", named_views()), ("BoxesData", BOX_PIPELINES)):
        augment = schema["$defs"][section]["properties"]["augment"]
        bare = {"type": "string", "enum": list(pipelines)}
        reference = {k: augment.pop(k) for k in ("$ref", "allOf") if k in augment}
        augment["anyOf"] = [bare, reference]
    measured = schema["$defs"]["BenchmarkRecipe"]["properties"]
    for key in LISTS:
        several = {k: measured[key].pop(k) for k in ("type", "items", "minItems") if k in measured[key]}
        measured[key]["anyOf"] = [several["items"], several]
    single = schema.pop("anyOf")
    stage = {"type": "object", "properties": {"stages": {"type": "object"}, "extends": {"type": "string"}}, "required": ["stages"]}
    extended = {"type": "object", "properties": {"extends": {"type": "string"}}, "required": ["extends"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "visiontune recipe",
        "anyOf": [*single, stage, extended],
        **schema,
    }


def is_path(weights: str) -> bool:
    """Whether `backbone.weights` names a file or folder."""
    return weights not in ("random", "timm") and not weights.startswith("stage:")


def absolute(recipe: Recipe) -> Recipe:
    """A copy whose relative paths are absolute, so that it means the same from any working directory."""
    found = recipe.model_copy(deep=True)
    places: list[tuple[Any, str]] = [(found.backbone, "weights")]
    for section in (found.data, getattr(found, "probe", None)):
        places += [(section, key) for key in ("train", "val", "root")] if section else []
    for source in (found.data.train, getattr(found.data, "val", None)):
        places += [(source, key) for key in ("images", "boxes", "split")] if isinstance(source, BoxSource) else []
    for key in ("teacher", "teacher_weights"):
        if (path := getattr(getattr(found, "method", None), key, None)) and Path(path).exists():
            setattr(found.method, key, str(Path(path).absolute()))  # type: ignore[union-attr]
    if isinstance(found.data.augment.albumentations, str):
        places.append((found.data.augment, "albumentations"))
    for section, key in places:
        value = getattr(section, key, None)
        if isinstance(value, str) and not value.startswith("sample:") and (key != "weights" or is_path(value)):
            setattr(section, key, str(Path(value).absolute()))
    return found
