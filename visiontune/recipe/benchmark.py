"""A recipe that measures backbones instead of training one: the options of `python -m visiontune benchmark`, as keys."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from visiontune.ranges import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from visiontune.recipe.detection import BoxSource
from visiontune.recipe.sections import Columns, Precision, Reading, Section

Probe = Literal["knn", "linear", "few", "finetune", "detect"]
LISTS = ("backbones", "probe")  # keys that may hold one name instead of a list


def _listed(value: Any) -> Any:
    """One name stands for a list of it."""
    return [value] if isinstance(value, str) else value


class BenchmarkData(Reading):
    """Labelled pictures, or pictures with boxes, that the backbones are judged on."""

    train: str | BoxSource = Field(
        description="pictures in one sub-folder a class, or a table with their labels, or sample:digits/train; or pictures with their boxes"
    )
    val: str | OpenFraction | BoxSource | None = Field(
        None, description="likewise, with the same classes, or a share of `train` to set aside; default: 0.2 of a folder or of boxes"
    )
    root: str | None = Field(None, description="folder that the paths in a table are relative to; default: the table's own")
    columns: Columns = Field(default_factory=Columns, description="which column of a table holds what")
    label_separator: Annotated[str, Field(min_length=1)] | Literal[False] | None = Field(
        None, description="stands between several labels in a cell of a table, or false: a cell is one label as it is"
    )


class BenchmarkRecipe(Section):
    """Measure backbones: what their embeddings or trainings reach, speed, memory and cost."""

    task: Literal["benchmark"]
    backbones: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] = Field(
        description="timm's names and wildcards ('vit_tiny*'), run folders, exported folders and .safetensors files"
    )
    weights: Literal["timm", "random"] = Field("timm", description="of timm's names: timm (fetched) or random")
    data: BenchmarkData = Field(description="pictures with labels or boxes")
    probe: Annotated[list[Probe], BeforeValidator(_listed)] = Field(
        [], description="how backbones are judged; default: knn and linear, or detect where there are boxes"
    )
    epochs: PositiveInt | None = Field(None, description="of `finetune` and `detect`, alike for all backbones; default: few")
    shots: Annotated[list[PositiveInt], Field(min_length=1)] = Field([1, 5, 10], description="labels of each class for the probe `few`")
    device: str = Field("auto", description="auto (the fastest that is there), cpu, cuda, cuda:1, mps")
    precision: Precision = Field("auto", description="of what is timed, as trainer.precision of other tasks")
    compile: bool = Field(False, description="time steps by torch.compile, too")
    training: bool = Field(True, description="time optimiser steps")
    seconds: PositiveFloat = Field(1.0, description="shortest window of a timing; seven count")
    seed: NonNegativeInt = Field(0, description="of random weights and of pictures that are set aside")
    against: str | None = Field(None, description="results.csv, or folder, of another benchmark to compare with")
    fresh: bool = Field(False, description="measure again what is there")
