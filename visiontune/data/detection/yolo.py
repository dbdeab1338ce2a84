"""YOLO: a text file a picture, a line a box: class number, then centre and size as shares of the picture's width and height.

Names of the classes stand in a `data.yaml` (`names:`) or `classes.txt`. A picture without a text file is one with nothing on it. A line of
a class and three or more points is an outline; its box is the one around it. With `kpt_shape:` in the `data.yaml` lines go on with the
numbers of keypoints, which are left out.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.decode import Reading
from visiontune.data.detection.pairing import Stems, annotation_files, choose, stem
from visiontune.data.detection.sizes import picture_sizes
from visiontune.data.detection.table import BoxTable, Problem
from visiontune.data.folder import list_pictures
from visiontune.errors import UserError, counted, some

NAME_LISTS = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
# Folders above the text files that are looked through for names: ROOT/labels/train has them in ROOT.
LEVELS = 3
# Shares of a picture may go over its edge by drawing or rounding, but not by its whole width: then they are pixels.
MOST = 2.0
EDGE = 1.1  # of an outline, whose points are drawn: what is farther out are other numbers, such as keypoints'


def read_yolo(images: str, folder: str, *, split: str | None, names: tuple[str, ...] | None, key: str, reading: Reading) -> BoxTable:
    """The boxes of a folder of text files; classes in the order of their numbers.

    Args:
        images: the folder of the pictures; a text file has its picture's name and place: `images/train/a.jpg`, `labels/train/a.txt`.
        folder: the text files.
        split: a text file of names, to take those alone.
        names: of the classes, where there is no file of them.
        key: the recipe's, for messages.
        reading: how files become pixels: their sizes are needed here.

    Raises:
        UserError: if nothing fits together, or nobody says what the classes are called.
    """
    listed = table = list_pictures(images, key=f"{key}.images")
    stems = Stems.of(table)
    if split is not None:
        table = table.take(choose(stems, split, key=key))
        stems = Stems.of(table)
    own, keypoints, where = _class_names(folder, images, key)
    classes = own or names
    if not classes:
        looked = f"no .yaml with 'names' and no classes.txt in {folder}, {images} or the {LEVELS - 1} folders above them"
        cure = "write a classes.txt with a name a line"
        raise UserError(f"{key}: nobody says what the classes of {folder} are called: there is {looked}; {cure}")
    problems: list[Problem] = []
    owners: list[int] = []
    rows: list[tuple[float, ...]] = []
    used = 0
    without: list[str] = []
    for file in annotation_files(folder, ".txt"):
        if os.path.basename(file) in NAME_LISTS:
            continue
        picture = stems.whole.get(stem(file))
        if picture is None:
            without.append(file)
            continue
        used += 1
        found = _parse(os.path.join(folder, file), table.path(picture), picture, len(classes), keypoints, problems)
        rows += found
        owners += [picture] * len(found)
    if not used:
        theirs, mine = some(without, 3) or "no text files", some(stems.names, 3)
        raise UserError(f"{key}: no text file in {folder} has the name and place of a picture in {images}: {theirs} there, {mine} here; "
                        "images/train belongs to labels/train")  # fmt: skip
    if split is None:
        problems += [Problem("no picture", os.path.join(folder, file), f"no picture {stem(file)} in {images}") for file in without]
    sizes = picture_sizes(table, reading=reading)
    owner = np.array(owners, dtype=np.int64)
    numbers = np.array(rows, dtype=np.float64).reshape(-1, 5)
    read = sizes[owner].all(axis=1)  # without its size a picture's shares cannot become pixels; it cannot be shown, either
    owner, numbers = owner[read], numbers[read]
    corners = np.concatenate([numbers[:, 1:3] - numbers[:, 3:] / 2, numbers[:, 1:3] + numbers[:, 3:] / 2], axis=1)
    notes = [*listed.notes, *([f"{key}: names of the classes from {where}"] if own else [])]
    empty = len(table) - len(np.unique(owner))
    if empty:
        notes.append(f"{key}: {counted(empty, 'picture', ',')} of {len(table):,} without boxes")
    return BoxTable.of(
        table,
        owner,
        corners * sizes[owner][:, [1, 0, 1, 0]],
        numbers[:, 0].astype(np.int64),
        classes=classes,
        sizes=sizes,
        source=folder,
        notes=notes,
        problems=problems,
    )


def _parse(path: str, picture_path: str, picture: int, K: int, keypoints: int, problems: list[Problem]) -> list[tuple[float, ...]]:
    """Class, centre and size of each box; `keypoints` numbers behind them are left out."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError as error:
        problems.append(Problem("unreadable annotation", path, f"cannot be read: {error.strerror}", picture))
        return []
    found: list[tuple[float, ...]] = []
    for at, words in enumerate(lines, 1):
        if not words:
            continue
        try:
            label, *rest = map(float, words)
        except ValueError:
            problems.append(Problem("bad annotation", path, f"line {at}: {' '.join(words)[:60]!r} is not numbers", picture))
            continue
        if keypoints and len(rest) == 4 + keypoints:
            rest = rest[:4]
        outline = len(rest) >= 6 and len(rest) % 2 == 0
        if not outline and len(rest) != 4:
            what = f"line {at}: {counted(len(words), 'number')}; expected class, centre x and y, width, height"
            problems.append(Problem("bad annotation", path, what, picture))
        elif not np.isfinite([label, *rest]).all() or max(map(abs, rest)) > (EDGE if outline else MOST):
            cure = "; of keypoints data.yaml must tell kpt_shape" if outline else ""
            what = f"line {at}: {' '.join(words)[:60]}; expected shares of the picture's width and height, 0 to 1, not pixels{cure}"
            problems.append(Problem("bad annotation", path, what, picture))
        elif label != int(label) or not 0 <= label < K:
            what = f"line {at}: class {words[0]}; there are {counted(K, 'class')}, numbered from 0 to {K - 1}"
            problems.append(Problem("unknown class", picture_path, what, picture))
        elif outline:
            x, y = rest[::2], rest[1::2]
            found.append((label, (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)))
        else:
            found.append((label, *rest))
    return found


def _class_names(folder: str, images: str, key: str) -> tuple[tuple[str, ...], int, str]:
    """Names, the numbers of keypoints in a line, and the file that says them; none where there is no such file."""
    for place in _places(folder, images):
        for file in sorted(place.glob("*.yaml")) + sorted(place.glob("*.yml")):
            names, keypoints = _from_yaml(file, key)
            if names:
                return names, keypoints, str(file)
        for file in (place / name for name in NAME_LISTS):
            lines = file.read_text("utf-8-sig", errors="replace").splitlines() if file.is_file() else []
            if names := tuple(line.strip() for line in lines if line.strip()):
                return names, 0, str(file)
    return (), 0, ""


def _places(folder: str, images: str) -> list[Path]:
    places: list[Path] = []
    for start in (Path(folder).absolute(), Path(images).absolute()):
        places += [start, *start.parents][:LEVELS]
    return list(dict.fromkeys(places))


def _from_yaml(file: Path, key: str) -> tuple[tuple[str, ...], int]:
    import yaml

    try:
        said: Any = yaml.safe_load(file.read_text("utf-8-sig"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return (), 0  # some other file; if it was the one, its names are missed and asked for
    names = said.get("names") if isinstance(said, dict) else None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(
                f"{key}: {file}: names are numbered {some(sorted(names, key=str))}; expected 0 to {len(names) - 1} without gaps"
            )
        names = [names[i] for i in range(len(names))]
    shape = said.get("kpt_shape") if isinstance(said, dict) else None
    keypoints = shape[0] * shape[1] if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape) else 0
    return (tuple(map(str, names)) if isinstance(names, list) else ()), keypoints
