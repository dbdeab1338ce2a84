"""What lies in a folder: pictures, and labels where its sub-folders are classes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from visiontune.data.index import open_index
from visiontune.data.sample import sample_folder
from visiontune.data.shards import is_shards, open_shards
from visiontune.data.table import PictureTable
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, counted, some


def list_pictures(root: str | Path, *, key: str = "data.train", labelled: bool | None = False) -> PictureTable:
    """List a folder's pictures in an order that depends on names alone, so that the same tree gives the same order everywhere.

    The listing is kept in the user's cache folder and brought up to date by the folders that changed.

    Args:
        root: a folder of pictures, or of tar shards (also `shards/train-*.tar`); `sample:digits/train` and `sample:digits/test`.
        key: the recipe's key, for error messages.
        labelled: take the first level of sub-folders as classes, in alphabetical order; of shards their `.cls` files. None does so
            where every picture has a class.

    Raises:
        UserError: if the folder is missing or holds no picture, or has no classes although `labelled`.
    """
    folder = str(sample_folder(str(root))) if str(root).startswith("sample:") else str(root)
    if is_shards(folder):
        return open_shards(folder, key=key, labelled=labelled)
    if not os.path.isdir(folder):
        raise UserError(missing_folder(key, folder))
    index = open_index(folder)
    if not len(index):
        try:
            there = sorted(os.listdir(folder))
            listed = f"it holds {some(there)}" if there else "it is empty"
        except OSError as error:
            listed = f"it cannot be listed ({error.strerror})"
        troubles = "".join(f"; {note.removeprefix('index: ')}" for note in index.notes(brief=True))
        raise UserError(f"{key}: no picture in {folder}; {listed}{troubles}; pictures end in {', '.join(SUFFIXES)}")
    first = int((index.labels < 0).sum())  # the root's own pictures, which have no class, come first
    if labelled is None:
        labelled = not first and len(index.classes) > 1
    if not labelled:
        first = 0
    elif len(index.classes) < 2:
        found = f"one class folder ({index.classes[0]})" if index.classes else f"{counted(len(index), 'picture')} and no class folders"
        raise UserError(f"{key}: {folder} holds {found}; labelled pictures lie in one sub-folder a class (flowers/train/rose/1.jpg)")
    notes = index.notes(brief=True)
    if first:
        notes.append(f"{key}: {counted(first, 'picture')} directly in {folder}, in no class folder, left out")
    return PictureTable(
        folder,
        index.names,
        index.offsets[first:],
        index.labels[first:] if labelled else None,
        index.classes if labelled else (),
        mapped=(index.file, index.fingerprint),
        notes=tuple(notes),
    )


def missing_folder(key: str, folder: str) -> str:
    """The end of a search for a folder: what is there instead."""
    parent = Path(folder).absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    beside = sorted(p.name for p in parent.iterdir() if p.is_dir())
    return f"{key}: no folder {folder}; {parent} holds {'the folders ' + some(beside) if beside else 'no folders'}"


def align_labels(val: PictureTable, classes: Sequence[str], key: str = "data.val") -> PictureTable:
    """Number the validation's classes as the training's.

    Raises:
        UserError: if validation has a class that training has not.
    """
    unknown = [c for c in val.classes if c not in classes]
    if unknown:
        raise UserError(f"{key}: {val.root} has classes that the training folder has not: {some(unknown)}; training has {some(classes)}")
    assert val.labels is not None
    number = np.array([list(classes).index(c) for c in val.classes], dtype=np.int64)
    return replace(val, labels=number[val.labels], classes=tuple(classes), mapped=None)


def few_labels(table: PictureTable, *, seed: int, fraction: float | None = None, per_class: int | None = None) -> PictureTable:
    """A stratified part of the labels, at least one picture a class; a smaller part is contained in a larger one of the same seed."""
    if fraction is None and per_class is None:
        return table
    return table.take(_stratified(table, seed=seed, fraction=fraction, per_class=per_class))


def _stratified(table: PictureTable, *, seed: int, fraction: float | None, per_class: int | None = None) -> list[int]:
    assert table.labels is not None
    chosen: list[int] = []
    for k in range(len(table.classes)):
        members = np.flatnonzero(table.labels == k)
        count = per_class if per_class is not None else max(1, round((fraction or 0) * len(members)))
        order = np.random.default_rng((seed, k)).permutation(members)
        chosen += order[:count].tolist()
    return chosen


def split_off(table: PictureTable, fraction: float, *, seed: int) -> tuple[PictureTable, PictureTable]:
    """A stratified part for validation: `(the rest, the part)`."""
    chosen = _stratified(table, seed=seed + 1, fraction=fraction)
    return table.take(np.setdiff1d(np.arange(len(table)), chosen).tolist()), table.take(chosen)
