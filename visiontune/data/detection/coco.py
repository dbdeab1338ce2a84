"""COCO's JSON: `images`, `categories` and `annotations` with `bbox: [x, y, width, height]` in pixels.

Lin et al. 2014 (arXiv 1405.0312), https://cocodataset.org/#format-data. Categories are numbered from any number on, with gaps.
"""

import json
import os
from typing import Any

import numpy as np

from visiontune.data.decode import Reading
from visiontune.data.detection.sizes import picture_sizes
from visiontune.data.detection.table import BoxTable, Problem
from visiontune.data.missing import missing_files, rooted
from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted, near, some

NEEDED = ("images", "annotations", "categories")


def read_coco(images: str, file: str, *, key: str, reading: Reading) -> BoxTable:
    """The boxes of a COCO file; classes in the order of their numbers.

    Args:
        images: the folder that `file_name` is relative to.
        file: the JSON.
        key: the recipe's, for messages.
        reading: how files become pixels, where the JSON does not say their sizes.

    Raises:
        UserError: if it is no such file, or none of its pictures is there.
    """
    said = _load(file, key)
    categories = sorted(_entries(said, "categories", ("id", "name"), file, key), key=lambda c: (isinstance(c["id"], str), c["id"]))
    pictures = _entries(said, "images", ("id", "file_name"), file, key)
    annotations = _entries(said, "annotations", ("image_id", "category_id"), file, key)
    categories, notes = _without_groups(categories, annotations, key)
    names = [str(c["name"]) for c in categories]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"{key}: {file}: several categories have the name {some(map(repr, twice))}; give each its own")
    number = _numbers([p["id"] for p in pictures], "images", file, key)
    label_of = _numbers([c["id"] for c in categories], "categories", file, key)
    table = PictureTable.of(*rooted(images, [os.fsencode(str(p["file_name"])) for p in pictures]))
    _must_be_there(table, file, key)

    problems: list[Problem] = []
    rows: list[tuple[int, int, bool]] = []
    boxes: list[Any] = []
    areas: list[float] = []
    for i, a in enumerate(annotations):
        picture, box = number.get(a["image_id"]), a.get("bbox")
        where = f"annotation {a.get('id', f'number {i}')}"
        if picture is None:
            problems.append(Problem("unknown picture", file, f"{where}: no image has the id {a['image_id']!r}"))
        elif a["category_id"] not in label_of:
            problems.append(Problem("unknown class", table.path(picture), f"{where}: no category has the id {a['category_id']!r}", picture))
        elif not _is_box(box):
            problems.append(Problem("no box", table.path(picture), f"{where}: bbox is {str(box)[:40]}, not [x, y, width, height]", picture))
        else:
            rows.append((picture, label_of[a["category_id"]], bool(a.get("iscrowd", 0))))
            boxes.append(box)
            areas.append(a["area"] if isinstance(a.get("area"), int | float) else np.nan)
    owner, label, crowd = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    area = np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)
    sizes = np.array([[_pixels(p.get("height")), _pixels(p.get("width"))] for p in pictures], dtype=np.int32).reshape(-1, 2)
    if not sizes.all():  # some files leave them out
        unsaid = np.flatnonzero(~sizes.all(axis=1))
        sizes[unsaid] = picture_sizes(table.take(unsaid.tolist()), reading=reading)
    return BoxTable.of(
        table,
        owner,
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        label,
        classes=names,
        sizes=sizes,
        crowd=crowd,
        area=area,
        category_ids=_whole_numbers(categories),
        picture_ids=_whole_numbers(pictures),
        source=file,
        notes=notes,
        problems=problems,
    )


def _without_groups(
    categories: list[dict[str, Any]], annotations: list[dict[str, Any]], key: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Some tools list a group, which nothing is annotated with, by the name of its class: of categories of one name the unused ones go."""
    used = {a["category_id"] for a in annotations}
    names = [str(c["name"]) for c in categories]
    kept = [c for c, name in zip(categories, names, strict=True) if names.count(name) == 1 or c["id"] in used]
    if not used.intersection(c["id"] for c in categories) or len(kept) == len(categories):
        return categories, []
    gone = [f"{c['id']} ({c['name']})" for c in categories if c not in kept]
    return kept, [f"{key}: categories without an annotation that share their name with another one are left out: {some(gone)}"]


def _load(file: str, key: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            said = json.load(opened)
    except OSError as error:
        raise UserError(f"{key}: cannot read {file} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {file} is not JSON: {error}; was it copied whole?") from error
    if isinstance(said, list):
        kind = "a list of detections, a detector's result" if said and isinstance(said[0], dict) and "score" in said[0] else "a list"
        raise UserError(f"{key}: {file} is {kind}; expected COCO's annotations: an object with {', '.join(NEEDED)}")
    if not isinstance(said, dict):
        raise UserError(f"{key}: {file} is {type(said).__name__}; expected COCO's annotations: an object with {', '.join(NEEDED)}")
    for name in NEEDED:
        if not isinstance(said.get(name), list):
            what = f"has no list {name!r}{near(name, said)}"
            raise UserError(
                f"{key}: {file} {what}; it has {some(map(repr, said), 10) or 'nothing'}; COCO's annotations have {', '.join(NEEDED)}"
            )
    return said


def _entries(said: dict[str, Any], name: str, needed: tuple[str, ...], file: str, key: str) -> list[dict[str, Any]]:
    for i, entry in enumerate(said[name]):
        missing = [n for n in needed if not isinstance(entry, dict) or not isinstance(entry.get(n), int | float | str)]
        if missing:
            has = some(map(repr, entry), 10) if isinstance(entry, dict) else str(entry)[:40]
            raise UserError(f"{key}: {file}: {name}[{i}] has no {missing[0]!r}; it has {has}")
    return said[name]


def _numbers(ids: list[Any], what: str, file: str, key: str) -> dict[Any, int]:
    number = {value: i for i, value in enumerate(ids)}
    if len(number) < len(ids):
        seen: set[Any] = set()
        twice = [v for v in ids if v in seen or seen.add(v)]  # type: ignore[func-returns-value]
        raise UserError(f"{key}: {file}: {what} share ids: {some(twice)}; each needs its own, for annotations to name it")
    return number


def _whole_numbers(entries: list[dict[str, Any]]) -> list[int] | None:
    """Ids, where they are numbers; some tools write names."""
    ids = [entry["id"] for entry in entries]
    return None if any(isinstance(value, str) for value in ids) else [int(value) for value in ids]


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)


def _pixels(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 2**31 else 0


def _must_be_there(table: PictureTable, file: str, key: str) -> None:
    """Some missing pictures are counted as broken later; all of them mean that the folder is another one."""
    names = [table.name(i) for i in range(len(table))]
    if not names:
        raise UserError(f"{key}: {file} names no pictures: its list 'images' is empty")
    if len(missing_files(table.root, names)) < len(names):
        return
    first = os.fsdecode(names[0])
    there = sorted(os.listdir(table.root))
    cure = f"{table.root} holds {some(there) or 'nothing'}"
    folder, _, rest = first.partition("/")
    parent = os.path.dirname(os.path.abspath(table.root))
    if rest and os.path.lexists(os.path.join(parent, first)):
        cure = f"names in it begin with {folder}/: set {key}.images={parent}"
    else:
        for inner in there:
            if os.path.lexists(os.path.join(table.root, inner, first)):
                cure = f"it lies in {inner}/: set {key}.images={os.path.join(table.root, inner)}"
                break
    raise UserError(f"{key}: none of the {counted(len(names), 'picture', ',')} of {file} is in {table.root}, the first is {first}; {cure}")
