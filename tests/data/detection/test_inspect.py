"""Everything that is wrong with annotated pictures, provoked and named."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.detection.sets import coco_of, voc_file, voc_object, write_coco, write_set
from visiontune.data.detection.inspect import histogram, inspect_boxes
from visiontune.data.detection.problems import KINDS, faults, usable
from visiontune.data.detection.read import read_boxes


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set")


def with_boxes(made, *boxes, picture=101, category=7):
    """The set's COCO file and more `[x, y, w, h]` in its first picture, 64x48."""
    said = coco_of(made)
    said["annotations"] += [{"id": 50 + i, "image_id": picture, "category_id": category, "bbox": list(b)} for i, b in enumerate(boxes)]
    write_coco(made, said)
    return read_boxes(**made.coco)


def found(*tables, **more):
    return inspect_boxes(*tables, processes=1, **more)


def test_a_sound_set_has_no_problem(made):
    for kind in ("coco", "voc", "yolo"):
        findings = found(read_boxes(**made.of(kind)))
        assert findings.problems == []
        assert findings.lines()[-1] == "nothing wrong was found"


@pytest.mark.parametrize(
    ("box", "kind", "detail"),
    [
        ([30, 20, -10, 5], "reversed box", "dog 30, 20, 20, 25"),
        ([30, 20, 10, -5], "reversed box", "dog 30, 20, 40, 15"),
        ([30, 20, 0, 5], "flat box", "dog 30, 20, 30, 25"),
        ([30, 20, 8, 1], "flat box", "dog 30, 20, 38, 21"),
        ([70, 20, 8, 9], "outside box", "dog 70, 20, 78, 29 in 64x48"),
        ([5, -20, 8, 9], "outside box", "dog 5, -20, 13, -11 in 64x48"),
        ([50, 20, 18, 9], "box over the edge", "dog 50, 20, 68, 29 in 64x48"),
        ([10, 5, 20, 20], "repeated box", "dog 10, 5, 30, 25"),
        ([0, 0, 12, 9], "box of two classes", "dog 0, 0, 12, 9"),
    ],
)
def test_each_fault_of_a_box_is_named(made, box, kind, detail):
    (problem,) = found(with_boxes(made, box), pixels=False).problems
    assert (problem.kind, problem.detail, problem.picture) == (kind, detail, 0)
    assert problem.path.endswith("images/a.png")


def test_a_pixel_over_the_edge_is_rounding(made):
    assert found(with_boxes(made, [50, 20, 15, 9], [-1, 30, 8, 9]), pixels=False).problems == []


def test_faults_of_pictures_are_named(made):
    said = coco_of(made)
    said["images"] += [
        {"id": 200 + i, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(["gone.png", "cut.png", "turned.png", "twin.png"])
    ]
    write_coco(made, said)
    whole = (made.images / "a.png").read_bytes()
    (made.images / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (48, 64)).save(made.images / "turned.png")
    shutil.copy(made.images / "a.png", made.images / "twin.png")
    problems = found(read_boxes(**made.coco)).problems
    assert [(p.kind, p.path.rpartition("/")[2]) for p in problems] == [
        ("missing picture", "gone.png"),
        ("broken picture", "cut.png"),
        ("other size", "turned.png"),
        ("same picture", "twin.png"),
    ]
    assert problems[1].detail.startswith("cut off")
    assert problems[2].detail == "64x48 in the annotation, 48x64 in the file, turned by its EXIF orientation or by hand"
    assert problems[3].detail.endswith("as " + str(made.images / "a.png"))


def test_a_picture_that_a_file_lists_twice_is_found(made):
    said = coco_of(made)
    said["images"].append(said["images"][0] | {"id": 500})
    write_coco(made, said)
    (problem,) = found(read_boxes(**made.coco)).problems
    assert (problem.kind, problem.picture) == ("same picture", 3)


def test_pictures_of_the_validation_that_are_in_the_training_are_found_by_content(made, tmp_path):
    other = write_set(tmp_path / "val", {"z.png": made.things["c.png"], "y.png": ((50, 50), [("dog", (5, 5, 20, 20))])})
    findings = found(read_boxes(**made.coco), read_boxes(**other.coco, key="data.val"))
    (problem,) = findings.problems
    assert (problem.kind, problem.detail) == ("in both", f"as {made.images / 'c.png'}")
    assert problem.path == str(other.images / "z.png")
    assert findings.counts() == {"in both": 1}
    assert found(read_boxes(**made.coco), read_boxes(**made.voc)).counts() == {"in both": 3}


def test_annotations_that_cannot_be_understood_are_listed_beside_the_rest(made):
    (made.root / "Annotations" / "b.xml").write_text("")
    (made.root / "Annotations" / "a.xml").write_text(voc_file("a.png", (64, 48), voc_object("dog", (30, 20, 10, 25)) + "<object/>"))
    (made.root / "labels" / "stray.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert found(read_boxes(**made.voc, strict=False)).counts() == {"unreadable annotation": 1, "bad annotation": 1, "reversed box": 1}
    assert found(read_boxes(**made.yolo)).counts() == {"no picture": 1}
    val = read_boxes(**made.voc, strict=False)
    train = read_boxes(**made.yolo, classes=("cow", "cat"), strict=False)
    assert found(train, val, pixels=False).counts()["unknown class"] == 2  # one of each


def test_problems_come_in_a_file_and_in_words(made, tmp_path):
    findings = found(with_boxes(made, [30, 20, -10, 5], [70, 20, 8, 9], [71, 20, 8, 9]), pixels=False)
    findings.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["problem"] for r in rows] == ["reversed box", "outside box", "outside box"]
    said = "\n".join(findings.lines(examples=1))
    assert "reversed box: 1 (boxes whose right is left of their left" in said
    assert "outside box: 2 (boxes wholly outside of their picture): " in said
    assert "... (1 more)" in said


def test_classes_are_counted_by_cocos_sizes(made):
    sizes = [31, 32, 33, 95, 96, 97, 200]
    said = coco_of(made)
    said["images"][0] |= {"width": 640, "height": 480}
    said["annotations"] = [
        {"id": i, "image_id": 101, "category_id": 3, "bbox": [i, i, s, s], "iscrowd": int(s == 200)} for i, s in enumerate(sizes)
    ]
    write_coco(made, said)
    lines = histogram(read_boxes(**made.coco))
    assert lines[0] == "3 pictures (2 without boxes), 6 boxes, 1 more of crowds or marked difficult"
    assert lines[2].split()[:5] == ["cat", "6", "1", "3", "2"]
    assert lines[2].endswith("#" * 30)
    assert lines[3].split() == ["dog", "0", "0", "0", "0"]


# ---------------------------------------------------------------- what training sees


def test_faulty_boxes_are_left_out_or_cut_and_told_never_turned_round(made):
    table = with_boxes(made, [30, 20, -10, 5], [30, 20, 0, 5], [70, 20, 8, 9], [50, 20, 18, 9], [10, 5, 20, 20])
    clean = usable(table)
    assert sorted(clean.boxes_of(0).xyxy.tolist()) == [[0, 0, 12, 9], [10, 5, 30, 25], [50, 20, 64, 29]]
    assert np.diff(clean.offsets).tolist() == [3, 0, 1]
    left_out, cut = clean.notes[-2:]
    assert left_out.startswith("data.train: left out of 8 boxes: 1 reversed box (")
    assert all(f"1 {kind} (" in left_out for kind in ("flat box", "outside box", "repeated box"))
    assert cut == "data.train: 1 box over the edge cut to the picture"
    assert not any(mask.any() for mask in faults(clean).values())
    assert len(table.boxes_of(0)) == 7  # the one that was read stays as it is


def test_a_sound_table_is_told_nothing_of(made):
    table = read_boxes(**made.coco)
    assert usable(table).notes == table.notes
    assert np.array_equal(usable(table).xyxy, table.xyxy)


def test_validation_may_keep_what_other_tools_count(made):
    table = with_boxes(made, [30, 20, 8, 1], [10, 5, 20, 20], [30, 20, 0, 5])
    assert len(usable(table, least=0, repeated=True).boxes_of(0)) == 4


def test_every_kind_of_problem_has_words():
    assert all(words == words.strip() and words for words in KINDS.values())
    assert json.dumps(KINDS)
