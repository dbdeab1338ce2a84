"""A recipe that measures backbones instead of training one: the options of `python -m visiontune benchmark`, as keys."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from visiontune.ranges import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from visiontune.recipe.sections import Columns, Precision, Reading, Section

Probe = Literal["knn", "linear", "few"]
LISTS = ("backbones", "probe")  # keys that may hold one name instead of a list


def _listed(value: Any) -> Any:
    """One name stands for a list of it."""
    return [value] if isinstance(value, str) else value


class BenchmarkData(Reading):
    """Labelled pictures that the embeddings are judged on."""

    train: str = Field(description="pictures in one sub-folder a class, or a table with their labels; or sample:digits/train")
    val: str | OpenFraction | None = Field(
        None, description="folder or table with the same classes, or a share of `train` to set aside, by class; default: 0.2 of a folder"
    )
    root: str | None = Field(None, description="folder that the paths in a table are relative to; default: the table's own")
    columns: Columns = Field(default_factory=Columns, description="which column of a table holds what")
    label_separator: Annotated[str, Field(min_length=1)] | Literal[False] | None = Field(
        None, description="stands between several labels in a cell of a table, or false: a cell is one label as it is"
    )


class BenchmarkRecipe(Section):
    """Measure backbones: accuracy of their embeddings, speed, memory and cost."""

    task: Literal["benchmark"]
    backbones: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] = Field(
        description="timm's names and wildcards ('vit_tiny*'), run folders, exported folders and .safetensors files"
    )
    weights: Literal["timm", "random"] = Field("timm", description="of timm's names: timm (fetched) or random")
    data: BenchmarkData = Field(description="labelled pictures")
    probe: Annotated[list[Probe], BeforeValidator(_listed)] = Field(["knn", "linear"], description="how embeddings are judged")
    shots: Annotated[list[PositiveInt], Field(min_length=1)] = Field([1, 5, 10], description="labels of each class for the probe `few`")
    device: str = Field("auto", description="auto (the fastest that is there), cpu, cuda, cuda:1, mps")
    precision: Precision = Field("auto", description="of what is timed, as trainer.precision of other tasks")
    compile: bool = Field(False, description="time steps by torch.compile, too")
    training: bool = Field(True, description="time optimiser steps")
    seconds: PositiveFloat = Field(1.0, description="shortest window of a timing; seven count")
    seed: NonNegativeInt = Field(0, description="of random weights and of pictures that are set aside")
    against: str | None = Field(None, description="results.csv, or folder, of another benchmark to compare with")
    fresh: bool = Field(False, description="measure again what is there")
