"""Parts of labelled tables: few labels, a share for validation, and validation numbered as training is.

N pictures, K classes.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visiontune.data.table import PictureTable
from visiontune.errors import UserError, some


def align_labels(val: PictureTable, classes: Sequence[str], key: str = "data.val", *, several: bool = False) -> PictureTable:
    """Number the validation's classes as the training's, by names that read alike: macOS writes é as two characters, others as one.

    Args:
        val: labelled pictures.
        classes: those of the training.
        key: the recipe's, for messages.
        several: the training's pictures may have several labels: give `targets` then.

    Raises:
        UserError: if validation has a class that training has not, or several labels a picture where training has one.
    """
    by_form = {unicodedata.normalize("NFC", c): k for k, c in enumerate(classes)} | {c: k for k, c in enumerate(classes)}
    numbers = {c: by_form.get(c, by_form.get(unicodedata.normalize("NFC", c))) for c in val.classes}
    unknown = [c for c, k in numbers.items() if k is None]
    if unknown:
        raise UserError(f"{key}: {val.root} has classes that training has not: {some(unknown)}; training has {some(classes)}")
    number = np.array([*numbers.values()], dtype=np.int64)
    targets = None
    if val.targets is not None and not several:
        raise UserError(f"{key}: pictures of {val.root} may have several labels, those of the training have one each")
    if val.targets is not None:
        targets = np.zeros((len(val), len(classes)), dtype=np.uint8)
        for k, column in zip(number, val.targets.T, strict=True):  # two forms of a name are one class
            targets[:, k] |= column
        return replace(val, targets=targets, classes=tuple(classes))
    assert val.labels is not None
    labels = number[val.labels]
    if several:
        targets = np.zeros((len(val), len(classes)), dtype=np.uint8)
        targets[np.arange(len(val)), labels] = 1
        return replace(val, labels=None, targets=targets, classes=tuple(classes), mapped=None)
    return replace(val, labels=labels, classes=tuple(classes), mapped=None)


def few_labels(table: PictureTable, *, seed: int, fraction: float | None = None, per_class: int | None = None) -> PictureTable:
    """A stratified part of the labels, at least one picture a class; a smaller part is contained in a larger one of the same seed.

    Where pictures have several labels: `per_class` takes the first pictures of each class in an order of all (so that a class has that
    many or more), `fraction` a share of each group of pictures with the same rarest class, and the first of each class. Pictures
    without a label are a group, too.
    """
    if fraction is None and per_class is None:
        return table
    return table.take(_stratified(table, seed=seed, fraction=fraction, per_class=per_class))


def split_off(table: PictureTable, fraction: float, *, seed: int) -> tuple[PictureTable, PictureTable]:
    """A stratified part for validation: `(the rest, the part)`. The rest keeps at least one picture of each class.

    Raises:
        UserError: if no picture is left for validation.
    """
    chosen = np.array(_stratified(table, seed=seed + 1, fraction=fraction), dtype=np.int64)
    for k in np.flatnonzero(table.class_counts()).tolist():
        has = table.targets[:, k] if table.targets is not None else np.asarray(table.labels) == k
        if np.count_nonzero(has[chosen]) == np.count_nonzero(has):
            chosen = np.delete(chosen, np.flatnonzero(has[chosen])[-1])
    if not len(chosen):
        what = f"a share of {fraction:g} leaves none of {len(table)} pictures for validation, with one of each class to train on"
        raise UserError(f"data.val: {what}; give a larger share, or a folder or table")
    return table.take(np.setdiff1d(np.arange(len(table)), chosen).tolist()), table.take(chosen.tolist())


def _stratified(table: PictureTable, *, seed: int, fraction: float | None, per_class: int | None = None) -> list[int]:
    if table.targets is not None:
        return stratified_targets(table.targets, seed=seed, fraction=fraction, per_class=per_class)
    assert table.labels is not None
    chosen: list[int] = []
    for k in range(len(table.classes)):
        members = np.flatnonzero(table.labels == k)
        count = per_class if per_class is not None else max(1, round((fraction or 0) * len(members)))
        order = np.random.default_rng((seed, k)).permutation(members)
        chosen += order[:count].tolist()
    return chosen


def stratified_targets(targets: np.ndarray, *, seed: int, fraction: float | None, per_class: int | None = None) -> list[int]:
    """Numbers of pictures by what they show, `targets` `(N, K)`: the first of each class, and a share of those with the same rarest one.

    Whether a picture is taken depends on its place among those of a class or group alone, so that smaller parts lie in larger ones.
    """
    N, K = targets.shape
    order = np.random.default_rng(seed).permutation(N)
    has = np.concatenate([targets, ~targets.any(axis=1, keepdims=True)], axis=1).astype(bool)[order]  # (N, K + 1): the last is "no label"
    first = per_class if per_class is not None else 1
    taken = [np.flatnonzero(has[:, k])[:first] for k in range(K + 1)]
    if per_class is None:
        counts = has.sum(axis=0)
        rarest = np.where(has, counts, N + 1).argmin(axis=1)
        groups = (np.flatnonzero(rarest == k) for k in range(K + 1))
        taken += [group[: max(1, round((fraction or 0) * len(group)))] for group in groups]
    return order[np.unique(np.concatenate(taken))].tolist()
