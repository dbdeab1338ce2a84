"""What a detector found, as files: COCO's results and CSV, written as it comes."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visiontune.boxes import Boxes
from visiontune.errors import UserError, readable
from visiontune.predict.write import OnBroken, whole_file

COLUMNS = ("path", "label", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class BoxPrediction:
    """One picture's outcome.

    Attributes:
        path: of the picture.
        boxes: with scores, in pixels of the original picture.
        broken: why the picture could not be read, or empty.
    """

    path: str
    boxes: Boxes = field(default_factory=Boxes.none)
    broken: str = ""


def check_boxes_format(out: Path, *, key: str = "--csv") -> None:
    """Raises UserError if predictions cannot be written to such a file, before any is computed."""
    ending = f".{key.removeprefix('--')}"
    if out.suffix != ending:
        raise UserError(f"{key}: got {out}; expected a name that ends in {ending}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{key}: there is no folder {out.parent}; make it, or name a file in one that is there")


def write_box_csv(
    predictions: Iterable[BoxPrediction], file: Any, names: Sequence[str], *, on_broken: OnBroken = lambda *_: None
) -> tuple[int, int]:
    """A row a box: `path,label,score,x1,y1,x2,y2`, in pixels of the original picture, hundredths of them.

    A picture in which nothing is found has one row with its path alone. Broken pictures have none: `on_broken` is told their path and
    the cause.

    Args:
        predictions: in the order of the rows.
        file: open for writing text, such as standard output; or a path: it is there when it is whole.
        names: of the classes.
        on_broken: see above.

    Returns:
        the numbers of pictures and of boxes.
    """
    if isinstance(file, str | Path):
        with whole_file(Path(file)) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
            return write_box_csv(predictions, opened, names, on_broken=on_broken)
    writer, pictures, boxes = csv.writer(file, lineterminator="\n"), 0, 0
    writer.writerow(COLUMNS)
    for p in _kept(predictions, on_broken):
        pictures += 1
        boxes += len(p.boxes)
        for label, score, xyxy in _rows(p.boxes):
            writer.writerow([p.path, names[label], f"{score:.4f}", *(f"{x:.2f}" for x in xyxy)])
        if not len(p.boxes):
            writer.writerow([p.path, *[""] * (len(COLUMNS) - 1)])
    return pictures, boxes


def write_coco_results(
    predictions: Iterable[BoxPrediction],
    out: Path,
    *,
    names: Sequence[str] = (),
    image_ids: Mapping[str, int] | Callable[[str], int] | None = None,
    category_ids: Sequence[int] | None = None,
    on_broken: OnBroken = lambda *_: None,
) -> tuple[int, int]:
    """A JSON list of `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`, as COCO's tools load it. Of a picture in which
    nothing is found there is nothing. The file is there when it is whole.

    Args:
        predictions: in the order of the list.
        out: the file.
        names: of the classes: each entry then has `category`, too, which other numbers of classes can be found by.
        image_ids: the number of each path in the annotations; None: pictures are counted from 1 in their order, and each entry has
            `file_name`, too.
        category_ids: the number of each class in the annotations; None: its place, from 0.
        on_broken: told the path and the cause of a broken picture, which has no entry.

    Returns:
        the numbers of pictures and of boxes.

    Raises:
        UserError: for a path that `image_ids` does not know.

    https://cocodataset.org/#format-results
    """
    pictures = boxes = 0
    with whole_file(out) as part, part.open("w", encoding="utf-8") as file:
        file.write("[")
        for p in _kept(predictions, on_broken):
            pictures += 1
            entry: dict[str, Any] = {"image_id": pictures} if image_ids is None else {"image_id": _id_of(p.path, image_ids)}
            for label, score, (x1, y1, x2, y2) in _rows(p.boxes):
                category = label if category_ids is None else int(category_ids[label])
                bbox = [round(x, 3) for x in (x1, y1, x2 - x1, y2 - y1)]
                row = entry | {"category_id": category} | ({"category": names[label]} if names else {})
                row |= {"bbox": bbox, "score": round(score, 6)}
                if image_ids is None:
                    row["file_name"] = readable(p.path)
                file.write((",\n" if boxes else "\n") + json.dumps(row))
                boxes += 1
        file.write("\n]\n")
    return pictures, boxes


def _kept(predictions: Iterable[BoxPrediction], on_broken: OnBroken) -> Iterator[BoxPrediction]:
    for p in predictions:
        if p.broken:
            on_broken(p.path, p.broken)
        else:
            yield p


def _rows(boxes: Boxes) -> Iterator[tuple[int, float, list[float]]]:
    """Label, score and xyxy of each."""
    if not len(boxes):
        return
    assert boxes.scores is not None, "predictions have scores"
    yield from zip(boxes.labels.tolist(), boxes.scores.tolist(), boxes.xyxy.tolist(), strict=True)


def _id_of(path: str, image_ids: Mapping[str, int] | Callable[[str], int]) -> int:
    if callable(image_ids):
        return int(image_ids(path))
    if path not in image_ids:
        raise UserError(
            f"predict: {readable(path)} is no picture of the annotations; predict those that are in them, or leave their ids out"
        )
    return int(image_ids[path])
