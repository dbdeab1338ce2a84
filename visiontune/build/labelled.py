"""The labelled pictures that a recipe names: training and validation, how few, and how uneven."""

import os
from dataclasses import replace

import numpy as np

from visiontune.data.annotations import open_split
from visiontune.data.columns import TableSettings
from visiontune.data.folder import list_pictures
from visiontune.data.parts import align_labels, few_labels, split_off
from visiontune.data.rows import is_table
from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted, some
from visiontune.recipe import ClassifyRecipe
from visiontune.recipe.schema import share_seed, table_settings, type_of_val
from visiontune.recipe.sections import Probe

# Pictures of the largest class for one of the smallest, above which a run says it: below, a classifier hardly favours one.
UNEVEN = 3


def labelled_tables(recipe: ClassifyRecipe) -> tuple[PictureTable, PictureTable, list[str]]:
    """Pictures to train and to validate on, and in words what was found.

    Raises:
        UserError: if one is missing or empty, or they do not fit together.
    """
    data = recipe.data
    train, val = _pair("data", data.train, data.val, table_settings(data), data.max_broken)
    notes = [*train.notes, *(val.notes if val is not None else ())]
    if val is None:
        assert isinstance(data.val, float)
        train, val = split_off(train, data.val, seed=share_seed(recipe))
    total = len(train)
    train = few_labels(train, seed=recipe.seed, fraction=data.labels_fraction, per_class=data.labels_per_class)
    used = f"{len(train)} of {total}" if len(train) < total else str(total)
    classes = f"{counted(len(train.classes), 'class')}: {some(train.classes, 10)}"
    notes.append(f"pictures: {used} with labels to train, {len(val)} to validate, {classes}")
    if absent := [train.classes[k] for k in np.flatnonzero(train.class_counts() == 0)]:
        raise UserError(f"data.train: no picture of {some(absent)}")
    return train, val, [*notes, *_words_on_counts(train, data.sampling, corrections_of(recipe))]


def corrections_of(recipe: ClassifyRecipe) -> list[str]:
    """Settings of a recipe that make up for classes of very different size, as `key=value`: one at most, see `checks`."""
    said = (
        ("data.sampling", recipe.data.sampling, "natural"),
        ("head.class_weights", recipe.head.class_weights, "none"),
        ("head.logit_adjustment", recipe.head.logit_adjustment, 0),
    )
    return [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value, off in said if value != off]


def probe_tables(probe: Probe, max_broken: float) -> tuple[PictureTable, PictureTable]:
    """Pictures to fit a probe on and to score it on.

    Raises:
        UserError: if one is missing or empty, they do not fit together, or have several labels a picture.
    """
    train, val = _pair("probe", probe.train, probe.val, table_settings(probe), max_broken)
    assert val is not None
    if train.targets is not None:
        raise UserError(
            f"probe.train: pictures of {probe.train} may have several labels, k-NN and linear probe take one each; "
            "name another column with probe.columns.label"
        )
    return train, val


def _pair(
    section: str, train: str, val: str | float | None, settings: TableSettings, max_broken: float
) -> tuple[PictureTable, PictureTable | None]:
    """Both tables with the same classes; no second one where a share of the first is to be set aside."""
    key = f"{section}.train"
    if is_table(train) and (val is None or (isinstance(val, str) and os.path.abspath(val) == os.path.abspath(train))):
        found, judged = open_split(train, settings, key=key, max_broken=max_broken)
        new = [
            c
            for c, trained, judging in zip(found.classes, found.class_counts(), judged.class_counts(), strict=True)
            if judging > trained == 0
        ]
        if new:
            raise UserError(f"{key}: {train} has classes in its rows for validation that those for training have not: {some(new)}")
        return found, judged
    if val is None:
        raise UserError(f"{section}.val: is missing; {type_of_val(section)}")
    found = list_pictures(train, key=key, labelled=True, settings=settings, max_broken=max_broken)
    if not isinstance(val, str):
        return found, None
    several = found.targets is not None
    own = replace(settings, split=None)  # a table of its own is for validation whole
    judged = list_pictures(val, key=f"{section}.val", labelled=True, fewest=1, settings=own, several=several, max_broken=max_broken)
    return found, align_labels(judged, found.classes, key=f"{section}.val", several=several)


def _words_on_counts(train: PictureTable, sampling: str, corrections: list[str]) -> list[str]:
    """What a person should know of how many pictures each class has, and of what makes up for it, if anything does."""
    counts, notes = train.class_counts(), []
    most, least = int(counts.argmax()), int(counts.argmin())
    if train.targets is not None:
        bare = int((~train.targets.any(axis=1)).sum())
        each = train.targets.sum() / len(train)
        notes.append(f"labels: {each:.2f} a picture" + (f", {counted(bare, 'picture', ',')} without any" if bare else ""))
    span = f"{counted(counts[most], 'picture', ',')} of {train.classes[most]}, {counts[least]:,} of {train.classes[least]}"
    if sampling != "natural":
        how = "equally often" if sampling == "balanced" else "as often as the root of its number of pictures says"
        notes.append(f"sampling {sampling}: each class comes {how} ({span})")
    elif counts[most] > UNEVEN * counts[least]:
        times = f"{counts[most] / counts[least]:.0f} times as many"
        fair = "top1 favours the frequent ones, look at balanced_accuracy" if train.targets is None else "look at macro_f1 beside micro_f1"
        cure = "data.sampling=balanced or sqrt shows rare classes more often, or head.class_weights=balanced weighs them in the loss"
        cure = f"{corrections[0]} is set against it" if corrections else f"{cure}: one of the two"
        notes.append(f"imbalance: {span}, {times}; {fair}; {cure}")
    return notes
