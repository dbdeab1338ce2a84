"""Annotations in whatever format they are, as one table."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from visiontune.data.decode import Reading
from visiontune.data.detection.coco import read_coco
from visiontune.data.detection.pairing import Stems, annotation_files, choose
from visiontune.data.detection.table import BoxTable, align_classes
from visiontune.data.detection.voc import read_voc
from visiontune.data.detection.yolo import NAME_LISTS, read_yolo
from visiontune.data.folder import missing_folder
from visiontune.data.shards import is_shards
from visiontune.errors import UserError, counted, some

# Annotations that nobody can follow: to go on without them would teach that there is nothing.
FATAL = ("unreadable annotation", "bad annotation", "unknown class")
WORDS = {
    "no box": "annotation without a box",
    "unknown picture": "annotation of a picture that is not listed",
    "no picture": "annotation file without a picture",
}
FORMATS = "COCO's .json, a folder of Pascal VOC's .xml, or a folder of YOLO's .txt"


def read_boxes(
    images: str,
    boxes: str,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    key: str = "data.train",
    strict: bool = True,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> BoxTable:
    """Pictures and their boxes. The format is that of what lies there.

    Args:
        images: the folder of the pictures.
        boxes: a COCO JSON file, or a folder of Pascal VOC XML or YOLO text files.
        split: a text file of names, a line each, to take those pictures alone.
        classes: names in the order of their numbers, such as those of the training for its validation; None: those of the annotations.
        key: the recipe's key, for messages.
        strict: annotations that cannot be understood are an error; else they are left out and kept as `problems`.
        reading: how files become pixels, for their sizes.

    Raises:
        UserError: if something is missing, cannot be understood, or has a class that `classes` has not.
    """
    if not os.path.isdir(images):
        raise UserError(missing_folder(f"{key}.images", images))
    if is_shards(images):
        raise UserError(f"{key}.images: {images} holds shards; pictures with boxes are read from files: unpack the .tar first")
    kind = format_of(boxes, key=key)
    if kind == "coco":
        table = read_coco(images, boxes, key=key, reading=reading)
        if split is not None:
            part = table.take(choose(Stems.of(table.pictures), split, key=key))
            table = replace(part, problems=tuple(p._replace(picture=-1) for p in table.problems))
    elif kind == "voc":
        table = read_voc(images, boxes, split=split, key=key, reading=reading)
    else:
        table = read_yolo(images, boxes, split=split, names=None if classes is None else tuple(classes), key=key, reading=reading)
    if strict:
        _raise_for(table, key)
        table = replace(table, notes=(*table.notes, *_words_on(table, key)))
    if classes is not None:
        table = align_classes(table, classes, key=key, strict=strict)
    if strict and not len(table.label):
        raise UserError(f"{key}: there is not one box in {boxes} for {counted(len(table), 'picture', ',')} of {images}")
    return table


def format_of(boxes: str, *, key: str = "data.train") -> str:
    """`coco`, `voc` or `yolo`.

    Raises:
        UserError: if it is none of them.
    """
    if os.path.isfile(boxes):
        if boxes.lower().endswith(".json"):
            return "coco"
        folder = os.path.dirname(os.path.abspath(boxes))
        raise UserError(f"{key}.boxes: {boxes} is no .json file; expected {FORMATS}; {folder} holds {some(sorted(os.listdir(folder)))}")
    if not os.path.isdir(boxes):
        parent = os.path.dirname(os.path.abspath(boxes))
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        raise UserError(
            f"{key}.boxes: there is no {boxes}; {parent} holds {some(sorted(os.listdir(parent))) or 'nothing'}; expected {FORMATS}"
        )
    if next(annotation_files(boxes, ".xml"), None) is not None:
        return "voc"
    if any(os.path.basename(file) not in NAME_LISTS for file in annotation_files(boxes, ".txt")):
        return "yolo"
    there = sorted(os.listdir(boxes))
    inner = [name for name in there if name.lower().endswith(".json")]
    cure = f"; did you mean {os.path.join(boxes, inner[0])}?" if inner else ""
    raise UserError(f"{key}.boxes: {boxes} holds {some(there) or 'nothing'}; expected {FORMATS}{cure}")


def _words_on(table: BoxTable, key: str) -> list[str]:
    """What is left out without being an error, since it may well be meant: told, for it is background where it is not."""
    counts, said = Counter(p.kind for p in table.problems if p.kind not in FATAL), []
    for kind, count in counts.items():
        first = next(p for p in table.problems if p.kind == kind)
        said.append(f"{key}: left out: {counted(count, WORDS.get(kind, kind), ',')}, such as {first.path} ({first.detail})")
    return said


def _raise_for(table: BoxTable, key: str) -> None:
    fatal = [p for p in table.problems if p.kind in FATAL]
    if not fatal:
        return
    kinds = Counter(p.kind for p in fatal)
    said = []
    for kind, count in kinds.items():
        examples = some((f"{p.path} ({p.detail})" for p in fatal if p.kind == kind), 3)
        said.append(f"{counted(count, kind, ',')}: {examples}")
    raise UserError(f"{key}: {table.source}: {'; '.join(said)}; repair or remove them")
