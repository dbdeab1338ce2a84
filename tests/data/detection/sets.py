"""Small annotated sets: the same pictures and boxes in each format."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")
# by picture: class and box in whole pixels; the second picture is empty
THINGS = {
    "a.png": ((64, 48), [("dog", (10, 5, 30, 25)), ("cat", (0, 0, 12, 9))]),
    "b.png": ((40, 40), []),
    "c.png": ((32, 80), [("cat", (20, 60, 32, 80))]),
}
COLOURS = {"cat": (255, 0, 0), "dog": (0, 0, 255)}


@dataclass
class Set:
    """Folders and files of one set, as `read_boxes` takes them."""

    root: Path
    images: Path
    things: dict = field(default_factory=lambda: dict(THINGS))

    @property
    def coco(self) -> dict[str, str]:
        return {"images": str(self.images), "boxes": str(self.root / "train.json")}

    @property
    def voc(self) -> dict[str, str]:
        return {"images": str(self.images), "boxes": str(self.root / "Annotations")}

    @property
    def yolo(self) -> dict[str, str]:
        return {"images": str(self.images), "boxes": str(self.root / "labels")}

    def of(self, kind: str) -> dict[str, str]:
        return getattr(self, kind)


def write_set(root: Path, things: dict | None = None) -> Set:
    """Pictures with a filled rectangle of the class's colour at each box, and annotations in all three formats."""
    made = Set(root, root / "images", dict(THINGS if things is None else things))
    made.images.mkdir(parents=True)
    for name, (size, boxes) in made.things.items():
        Image.fromarray(painted(size, boxes)).save(made.images / name)
    write_coco(made)
    write_voc(made)
    write_yolo(made)
    return made


def painted(size: tuple[int, int], boxes: list) -> np.ndarray:
    """`(H, W, 3)`; `size` is width and height."""
    pixels = np.full((size[1], size[0], 3), 60, np.uint8)
    for name, (x1, y1, x2, y2) in boxes:
        pixels[y1:y2, x1:x2] = COLOURS[name]
    return pixels


def coco_of(made: Set) -> dict:
    """Categories 3 (dog) and 7 (cat), out of order; pictures 101, 102, ..."""
    ids = {"dog": 7, "cat": 3}
    said: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
    }
    for number, (name, ((w, h), boxes)) in enumerate(made.things.items(), 101):
        said["images"].append({"id": number, "file_name": name, "width": w, "height": h})
        for label, (x1, y1, x2, y2) in boxes:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            said["annotations"].append({"id": len(said["annotations"]) + 1, "image_id": number, "category_id": ids[label], **box})
    said["annotations"].reverse()  # not picture after picture, as in COCO's own files
    return said


def write_coco(made: Set, said: dict | None = None) -> None:
    (made.root / "train.json").write_text(json.dumps(coco_of(made) if said is None else said))


def write_voc(made: Set) -> None:
    folder = made.root / "Annotations"
    folder.mkdir(exist_ok=True)
    for name, ((w, h), boxes) in made.things.items():
        objects = "".join(voc_object(label, (x1 + 1, y1 + 1, x2, y2)) for label, (x1, y1, x2, y2) in boxes)
        (folder / name).with_suffix(".xml").write_text(voc_file(name, (w, h), objects))


def voc_file(name: str, size: tuple[int, int], objects: str) -> str:
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{said}{objects}</annotation>"


def voc_object(label: str, box: tuple, more: str = "") -> str:
    sides = "".join(f"<{side}>{x}</{side}>" for side, x in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{label}</name>{more}<bndbox>{sides}</bndbox></object>"


def write_yolo(made: Set) -> None:
    folder = made.root / "labels"
    folder.mkdir(exist_ok=True)
    (made.root / "data.yaml").write_text(f"nc: 2\nnames: [{', '.join(CLASSES)}]\n")
    for name, ((w, h), boxes) in made.things.items():
        lines = [
            f"{CLASSES.index(label)} {(x1 + x2) / 2 / w:.8f} {(y1 + y2) / 2 / h:.8f} {(x2 - x1) / w:.8f} {(y2 - y1) / h:.8f}\n"
            for label, (x1, y1, x2, y2) in boxes
        ]
        if lines:
            (folder / name).with_suffix(".txt").write_text("".join(lines))
