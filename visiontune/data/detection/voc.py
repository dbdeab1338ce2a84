"""Pascal VOC: a folder with an XML file a picture, boxes as `xmin, ymin, xmax, ymax` in pixels.

Everingham et al. 2010, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html: the first pixel of a row is number 1, and
the last one still belongs to the box. Many tools write numbers from 0 instead; a folder in which a 0 or a fraction occurs is read so, and
one of LabelImg's, which writes corners from 0 but a 1 for the first (labelImg, libs/labelFile.py, `convert_points_to_bnd_box`).
"""

import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np

from visiontune.data.decode import Reading
from visiontune.data.detection.pairing import Stems, annotation_files, choose
from visiontune.data.detection.sizes import picture_sizes
from visiontune.data.detection.table import BoxTable, Problem
from visiontune.data.folder import list_pictures
from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted, some

SIDES = ("xmin", "ymin", "xmax", "ymax")
# A least coordinate that a count from 1 in whole pixels cannot have.
FROM_ZERO = re.compile(rb"<[xy]min>\s*(?:-|0\s*<|0*\.|0+\.|\d+\.\d*[1-9])")
# What LabelImg writes beside them; nobody gives it another database.
LABELIMG = re.compile(rb"<path>[^<]*</path>\s*<source>\s*<database>Unknown</database>\s*</source>")


@dataclass
class Annotation:
    """What one file says: `boxes` a name, four numbers and whether it is difficult, each; `size` height and width, 0 where unsaid;
    `from_zero` why its pixels are counted so, or nothing."""

    filename: str
    size: tuple[int, int]
    boxes: list[tuple[str, tuple[float, ...], bool]]
    from_zero: str


def read_voc(images: str, folder: str, *, split: str | None, key: str, reading: Reading) -> BoxTable:
    """The boxes of a folder of XML files; classes in alphabetical order.

    Args:
        images: the folder of the pictures, each of the name of its XML file, at any depth.
        folder: the XML files.
        split: a text file of names, to take those alone.
        key: the recipe's, for messages.
        reading: how files become pixels, where the XML does not say their sizes.

    Raises:
        UserError: if nothing fits together.
    """
    files = list(annotation_files(folder, ".xml"))
    wanted = range(len(files)) if split is None else choose(Stems(files), split, key=key)
    listed = list_pictures(images, key=f"{key}.images")
    stems = Stems.of(listed)
    problems: list[Problem] = []
    names: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    rows: list[tuple[int, str, tuple[float, ...], bool]] = []
    from_zero, found = "", 0
    for file in (files[i] for i in wanted):
        path = os.path.join(folder, file)
        annotation = _parse(path, problems)
        if annotation is None:
            continue
        number = stems.find(file)
        if number is None and annotation.filename:
            number = stems.find(annotation.filename)
        found += number is not None
        name = os.fsencode(annotation.filename or f"{os.path.splitext(file)[0]}.jpg") if number is None else listed.name(number)
        rows += [(len(names), *box) for box in annotation.boxes]
        names.append(name)
        sizes.append(annotation.size)
        from_zero = from_zero or annotation.from_zero
    if names and not found:
        first, pictures = os.fsdecode(names[0]), some(stems.names, 3)
        raise UserError(f"{key}: {images} has no picture for any of {counted(len(names), 'annotation')} in {folder}, the first is {first}; "
                        f"it holds {pictures}: pictures and their XML files have the same name")  # fmt: skip
    # Parts of one folder must be read alike, so the files of the other parts are asked, too.
    others = (os.path.join(folder, files[i]) for i in sorted({*range(len(files))} - {*wanted}))
    from_zero = from_zero or next(filter(None, map(_from_zero_in, others)), "")
    xyxy = np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4)
    if not from_zero:
        xyxy[:, :2] -= 1
    table = PictureTable.of(images, names)
    size = np.array(sizes, dtype=np.int32).reshape(-1, 2)
    if not size.all():
        unsaid = np.flatnonzero(~size.all(axis=1))
        size[unsaid] = picture_sizes(table.take(unsaid.tolist()), reading=reading)
    classes = sorted({row[1] for row in rows})
    left = len(listed) - found if split is None else 0
    counts = f"from 0: {from_zero}" if from_zero else "from 1, the last one within the box, as Pascal VOC has it"
    return BoxTable.of(
        table,
        np.array([row[0] for row in rows], dtype=np.int64),
        xyxy,
        np.array([classes.index(row[1]) for row in rows], dtype=np.int64),
        classes=classes,
        sizes=size,
        crowd=np.array([row[3] for row in rows], dtype=bool),
        source=folder,
        notes=[
            *listed.notes,
            *([f"{key}: {counted(left, 'picture', ',')} of {images} without an XML file left out"] if left else []),
            f"{key}: pixels in {folder} are counted {counts}",
        ],
        problems=problems,
    )


def _parse(path: str, problems: list[Problem]) -> Annotation | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
        root = ET.fromstring(data)
    except OSError as error:
        problems.append(Problem("unreadable annotation", path, f"cannot be read: {error.strerror}"))
        return None
    except (ET.ParseError, ValueError, LookupError) as error:
        problems.append(Problem("unreadable annotation", path, f"no XML: {error}" if data.strip() else "an empty file"))
        return None
    if root.tag != "annotation":
        problems.append(Problem("unreadable annotation", path, f"holds <{root.tag}>, not <annotation>"))
        return None
    boxes = []
    for i, thing in enumerate(root.findall("object"), 1):
        name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        said = [box.findtext(side) if box is not None else None for side in SIDES]
        try:
            xyxy = tuple(float(s) for s in said if s is not None)
        except ValueError:
            xyxy = ()
        if not name or len(xyxy) < 4:
            what = "has no name" if not name else f"has no box of {', '.join(SIDES)}, but {said}"
            problems.append(Problem("bad annotation", path, f"object {i} {what}"))
            continue
        boxes.append((name, xyxy, (thing.findtext("difficult") or "").strip() in ("1", "true", "True")))
    size = _whole(root.findtext("size/height")), _whole(root.findtext("size/width"))
    return Annotation((root.findtext("filename") or "").strip(), size if all(size) else (0, 0), boxes, _from_zero(data))


def _whole(text: str | None) -> int:
    try:
        return max(0, int(float(text or 0)))
    except (ValueError, OverflowError):
        return 0


def _from_zero(data: bytes) -> str:
    """Why the pixels of an annotation are counted from 0; nothing where they need not be."""
    if FROM_ZERO.search(data):
        return "a 0 or a fraction occurs among them"
    return "LabelImg wrote them" if LABELIMG.search(data) else ""


def _from_zero_in(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return _from_zero(file.read())
    except OSError:
        return ""
