import json
import pickle

import numpy as np
import pytest

from tests.data.detection.sets import CLASSES, coco_of, voc_file, voc_object, write_coco, write_set
from visiontune.data.decode import Reading
from visiontune.data.detection.read import format_of, read_boxes
from visiontune.data.detection.table import align_classes
from visiontune.errors import UserError

KINDS = ("coco", "voc", "yolo")


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set")


def by_name(table):
    """Class name and box of everything in each picture, sorted."""
    found = {}
    for i in range(len(table)):
        boxes = table.boxes_of(i)
        named = [table.classes[k] for k in boxes.labels.tolist()]
        found[table.pictures.name(i).decode()] = sorted(zip(named, map(tuple, boxes.xyxy.round(decimals=3).tolist()), strict=True))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_is_recognised_and_says_the_same_boxes(made, kind):
    table = read_boxes(**made.of(kind))
    assert format_of(made.of(kind)["boxes"]) == kind
    assert by_name(table) == {name: sorted((c, tuple(map(float, b))) for c, b in boxes) for name, (_, boxes) in made.things.items()}
    assert table.classes == CLASSES
    assert table.sizes.tolist() == [[h, w] for (w, h), _ in made.things.values()]
    assert table.class_counts().tolist() == [2, 1]
    assert sorted(table.area.round().tolist()) == [108, 240, 400]
    assert table.xyxy.dtype == table.area.dtype == np.float32
    assert (table.problems, table.crowd.any()) == ((), False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_takes_the_pictures_that_it_names(made, kind, tmp_path):
    split = tmp_path / "val.txt"
    split.write_text("./images/c.png\n\na\n")
    table = read_boxes(**made.of(kind), split=str(split))
    assert [table.pictures.name(i) for i in range(len(table))] == [b"a.png", b"c.png"]
    assert np.diff(table.offsets).tolist() == [2, 1]
    assert table.picture_ids is None or table.picture_ids.tolist() == [101, 103]
    split.write_text("a\nd\n")
    with pytest.raises(UserError, match=r"data.train.split: .*val.txt names 1 picture of 2 that is not there: d"):
        read_boxes(**made.of(kind), split=str(split))
    with pytest.raises(UserError, match=r"cannot read .*nothing.txt .*holds val.txt"):
        read_boxes(**made.of(kind), split=str(tmp_path / "nothing.txt"))


def test_coco_keeps_its_sparse_numbers_and_tells_crowds_apart(made):
    said = coco_of(made)
    said["annotations"].append({"id": 9, "image_id": 101, "category_id": 7, "bbox": [1, 1, 40, 40], "area": 99.5, "iscrowd": 1})
    write_coco(made, said)
    table = read_boxes(**made.coco)
    assert (table.category_ids.tolist(), table.picture_ids.tolist()) == ([3, 7], [101, 102, 103])
    assert (len(table.boxes_of(0)), len(table.boxes_of(0, crowd=True))) == (2, 3)
    assert table.area[table.crowd].tolist() == [99.5]
    assert table.crowd_of(0).xyxy.tolist() == [[1, 1, 41, 41]]
    assert table.crowd_of(0).labels.tolist() == table.label[table.crowd].tolist()
    boxes = table.boxes_of(0)
    assert table.area_of(0).tolist() == (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(dim=1).tolist()
    assert len(table.crowd_of(1)) == len(table.area_of(1)) == 0
    assert table.class_counts().tolist() == [2, 1]


def test_a_coco_file_reads_as_pycocotools_reads_it(made):
    coco = pytest.importorskip("pycocotools.coco")
    said = coco_of(made)
    said["annotations"].append({"id": 9, "image_id": 101, "category_id": 7, "bbox": [1.5, 1, 40, 40.25], "area": 99.5, "iscrowd": 1})
    write_coco(made, said)
    table, theirs = read_boxes(**made.coco), coco.COCO(made.coco["boxes"])
    for i, picture in enumerate(table.picture_ids.tolist()):
        want = sorted((a["category_id"], a["iscrowd"], a["area"], *a["bbox"]) for a in theirs.loadAnns(theirs.getAnnIds(imgIds=picture)))
        rows = table.rows(i)
        x1, y1, x2, y2 = table.xyxy[rows].T.tolist()
        sides = [(a, b, c - a, d - b) for a, b, c, d in zip(x1, y1, x2, y2, strict=True)]
        ids = table.category_ids[table.label[rows]].tolist()
        columns = zip(ids, table.crowd[rows].astype(int).tolist(), table.area[rows].tolist(), sides, strict=True)
        assert sorted((k, crowd, area, *box) for k, crowd, area, box in columns) == want


def test_difficult_ones_of_voc_are_a_crowd(made):
    hard = voc_object("cat", (1, 1, 12, 9), "<difficult>1</difficult>") + voc_object("dog", (11, 6, 30, 25), "<difficult>0</difficult>")
    (made.root / "Annotations" / "a.xml").write_text(voc_file("a.png", (64, 48), hard))
    table = read_boxes(**made.voc)
    assert table.crowd.tolist() == [True, False, False]
    assert len(table.boxes_of(0)) == 1


@pytest.mark.parametrize("least", ["0", "4.5"])
def test_voc_files_that_count_from_zero_are_read_so_in_all_their_parts(made, least, tmp_path):
    assert read_boxes(**made.voc).xyxy.min() == 0  # written as 1
    (made.root / "Annotations" / "b.xml").write_text(voc_file("b.png", (40, 40), voc_object("cat", (least, 1, 12, 9))))
    split = tmp_path / "one.txt"
    split.write_text("a")
    part = read_boxes(**made.voc, split=str(split))
    assert sorted(part.xyxy.tolist()) == [[1, 1, 12, 9], [11, 6, 30, 25]]
    assert "from 0" in part.notes[0]


def test_labelimg_counts_from_zero_though_it_writes_no_0(made):
    source = "<path>C:/photos/b.png</path>\n\t<source>\n\t\t<database>{}</database>\n\t</source>"
    for database, least in (("Unknown", 1), ("The VOC2012 Database", 0)):
        text = voc_file("b.png", (40, 40), voc_object("cat", (1, 1, 12, 9)))
        (made.root / "Annotations" / "b.xml").write_text(text.replace("<size>", source.format(database) + "<size>", 1))
        table = read_boxes(**made.voc)
        assert table.xyxy.min() == least
        assert ("from 0: LabelImg wrote them" in table.notes[-1]) == bool(least)


def test_pictures_are_found_by_the_xml_files_name_and_then_by_what_it_says(made):
    (made.images / "c.png").rename(made.images / "other.png")
    (made.root / "Annotations" / "c.xml").write_text(voc_file("other.png", (32, 80), voc_object("cat", (21, 61, 32, 80))))
    (made.root / "Annotations" / "a.xml").write_text(voc_file("stale.jpg", (64, 48), voc_object("dog", (11, 6, 30, 25))))
    table = read_boxes(**made.voc)
    assert [table.pictures.name(i) for i in range(len(table))] == [b"a.png", b"b.png", b"other.png"]


def test_pictures_and_annotations_may_lie_in_folders_alike(made):
    for folder, ending in (("images", ".png"), ("labels", ".txt"), ("Annotations", ".xml")):
        (made.root / folder / "train").mkdir()
        for file in (made.root / folder).glob(f"*{ending}"):
            file.rename(made.root / folder / "train" / file.name)
    for kind in ("voc", "yolo"):
        table = read_boxes(**made.of(kind))
        assert table.class_counts().tolist() == [2, 1]
        assert table.pictures.name(0) == b"train/a.png"
    inner = read_boxes(str(made.images / "train"), str(made.root / "labels" / "train"))
    assert np.array_equal(inner.xyxy, read_boxes(**made.yolo).xyxy)


def test_names_of_yolo_classes_come_from_several_kinds_of_file(made):
    (made.root / "data.yaml").write_text("names:\n  0: lion\n  1: wolf\n")
    assert read_boxes(**made.yolo).classes == ("lion", "wolf")
    (made.root / "data.yaml").unlink()
    with pytest.raises(UserError, match="nobody says what the classes of .* are called.*write a classes.txt"):
        read_boxes(**made.yolo)
    assert read_boxes(**made.yolo, classes=["x", "y"]).classes == ("x", "y")
    (made.root / "labels" / "classes.txt").write_text("one\ntwo\n")
    assert read_boxes(**made.yolo).classes == ("one", "two")
    (made.root / "labels" / "classes.txt").unlink()
    (made.root / "data.yaml").write_text("names: {0: lion, 2: wolf}\n")
    with pytest.raises(UserError, match="names are numbered 0, 2; expected 0 to 1 without gaps"):
        read_boxes(**made.yolo)


def test_an_outline_of_yolo_becomes_the_box_around_it(made):
    (made.root / "labels" / "c.txt").write_text("0 0.25 0.5 0.75 0.25 0.5 1.0\n")
    table = read_boxes(**made.yolo)
    assert table.boxes_of(2).xyxy.tolist() == [[8, 20, 24, 80]]


def test_boxes_of_a_yolo_picture_that_cannot_be_read_are_left_to_the_account_of_broken_pictures(made):
    (made.images / "c.png").write_bytes(b"")
    table = read_boxes(**made.yolo)
    assert table.sizes[2].tolist() == [0, 0]
    assert np.diff(table.offsets).tolist() == [2, 0, 0]


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_sizes_that_annotations_leave_out_come_from_the_files(made, kind):
    said = coco_of(made)
    del said["images"][0]["width"]
    write_coco(made, said)
    (made.root / "Annotations" / "a.xml").write_text(f"<annotation>{voc_object('dog', (11, 6, 30, 25))}</annotation>")
    assert read_boxes(**made.of(kind)).sizes.tolist() == [[48, 64], [40, 40], [80, 32]]


def test_coco_files_may_name_whole_paths_and_number_by_names(made):
    said = coco_of(made)
    for kind, ids in (("images", ("id", "image_id")), ("categories", ("id", "category_id"))):
        for entry in said[kind]:
            entry["id"] = f"n{entry['id']}"
        for annotation in said["annotations"]:
            annotation[ids[1]] = f"n{annotation[ids[1]]}"
    for entry in said["images"]:
        entry["file_name"] = str(made.images / entry["file_name"])
    write_coco(made, said)
    table = read_boxes(**made.coco)
    assert (table.category_ids, table.picture_ids) == (None, None)
    assert table.pictures.path(0) == str(made.images / "a.png")
    assert np.diff(table.offsets).tolist() == [2, 0, 1]


def test_sizes_of_pictures_with_other_channels_are_read(made):
    for name, ((w, h), _) in made.things.items():
        (made.images / name).unlink()
        np.save((made.images / name).with_suffix(".npy"), np.zeros((h, w, 5), np.uint8))
    table = read_boxes(**made.yolo, reading=Reading(channels=5))
    assert table.sizes.tolist() == [[48, 64], [40, 40], [80, 32]]
    assert len(table.label) == 3


def test_shards_have_no_boxes(made):
    (made.images / "0.tar").write_bytes(b"")
    for file in made.images.glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match="data.train.images: .*holds shards; pictures with boxes are read from files"):
        read_boxes(**made.yolo)


# ---------------------------------------------------------------- classes of validation


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_numbered_as_those_of_the_training(made, kind):
    table = read_boxes(**made.of(kind), classes=("dog", "bird", "cat"))
    assert by_name(table) == by_name(read_boxes(**made.of(kind)))
    assert table.classes == ("dog", "bird", "cat")
    assert table.class_counts().tolist() == [1, 0, 2]
    if kind == "coco":
        ids = table.category_ids.tolist()
        assert (ids[0], ids[2]) == (7, 3)
        assert ids[1] not in (3, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_training_has_not_is_told_by_name(made, kind):
    with pytest.raises(
        UserError, match=r"data.val: .* has 1 class that training has not: 'dog'; did you mean 'dogs'\?; training has 'cat', 'dogs'"
    ):
        read_boxes(**made.of(kind), classes=("cat", "dogs"), key="data.val")
    told = read_boxes(**made.of(kind), classes=("cat", "dogs"), strict=False)
    assert [(p.kind, p.detail) for p in told.problems] == [("unknown class", "'dog'")]
    assert told.class_counts().tolist() == [2, 0]


def test_a_class_without_boxes_may_be_unknown_to_the_training(made):
    said = coco_of(made)
    said["categories"].append({"id": 90, "name": "zebra"})
    write_coco(made, said)
    assert align_classes(read_boxes(**made.coco), CLASSES).classes == CLASSES


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("categories"), "has no list 'categories'; it has 'images', 'annotations'"),
        (lambda s: s.update(category=s.pop("categories")), "has no list 'categories'; did you mean 'category'"),
        (lambda s: s["images"][0].pop("file_name"), r"images\[0\] has no 'file_name'; it has 'id', 'width', 'height'"),
        (lambda s: s["images"][1].update(id=101), "images share ids: 101"),
        (lambda s: s["categories"][1].update(name="dog"), "several categories have the name 'dog'"),
        (lambda s: s["annotations"][0].update(category_id=5), "1 unknown class: .*c.png .annotation 3: no category has the id 5.; repair"),
        (lambda s: s.update(annotations=[]), "there is not one box in .*train.json for 3 pictures"),
        (lambda s: [p.update(file_name="set/images/" + p["file_name"]) for p in s["images"]], "none of the 3 pictures .* holds a.png"),
        (
            lambda s: [p.update(file_name="images/" + p["file_name"]) for p in s["images"]],
            "begin with images/: set data.train.images=.*set$",
        ),
    ],
)
def test_a_coco_file_that_cannot_be_is_told_in_a_sentence(made, change, message):
    said = coco_of(made)
    change(said)
    write_coco(made, said)
    with pytest.raises(UserError, match=message):
        read_boxes(**made.coco)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON: .*was it copied whole"),
        (json.dumps([{"image_id": 1, "score": 0.5}]), "a list of detections, a detector's result; expected COCO's annotations"),
        ("3", "is int; expected COCO's annotations"),
    ],
)
def test_json_that_is_something_else_is_told(made, text, message):
    (made.root / "train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(**made.coco)


def test_what_only_concerns_some_annotations_of_coco_is_kept_as_problems(made):
    said = coco_of(made)
    said["annotations"] += [
        {"id": 10, "image_id": 999, "category_id": 3, "bbox": [0, 0, 5, 5]},
        {"id": 11, "image_id": 102, "category_id": 3, "bbox": []},
        {"id": 12, "image_id": 102, "category_id": 3, "keypoints": [1, 2, 2]},
    ]
    write_coco(made, said)
    table = read_boxes(**made.coco)
    assert [p.kind for p in table.problems] == ["unknown picture", "no box", "no box"]
    assert len(table.boxes_of(1)) == 0


def test_all_annotation_files_that_cannot_be_understood_are_told_at_once(made):
    folder = made.root / "Annotations"
    (folder / "b.xml").write_text("<annotation><object>")
    (folder / "c.xml").write_text(voc_file("c.png", (32, 80), voc_object("cat", ("x", 1, 12, 9))))
    with pytest.raises(UserError, match=r"1 unreadable annotation: .*b.xml \(no XML.*1 bad annotation: .*c.xml \(object 1 has no box"):
        read_boxes(**made.voc)
    told = read_boxes(**made.voc, strict=False)
    assert {p.kind for p in told.problems} == {"unreadable annotation", "bad annotation"}
    assert len(told) == 2  # a picture of which nobody knows what is on it teaches that there is nothing


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("0 0.5 0.5 0.1", "bad annotation", "line 1: 4 numbers; expected class, centre"),
        ("0 0.5 0.5 0.1 0.1 0.9", "bad annotation", "line 1: 6 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "bad annotation", "is not numbers"),
        ("0 320 200 50 60", "bad annotation", "expected shares of the picture's width and height, 0 to 1, not pixels"),
        ("0 nan 0.5 0.1 0.1", "bad annotation", "expected shares"),
        ("2 0.5 0.5 0.1 0.1", "unknown class", "class 2; there are 2 classes, numbered from 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "unknown class", "class -1"),
    ],
)
def test_lines_of_yolo_that_cannot_be_are_told(made, line, kind, detail):
    (made.root / "labels" / "c.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=f"1 {kind}: .*{detail}"):
        read_boxes(**made.yolo)
    (told,) = read_boxes(**made.yolo, strict=False).problems
    assert told.kind == kind
    assert detail in told.detail


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_told_with_what_is(made, kind):
    words = made.of(kind)
    with pytest.raises(UserError, match=r"data.train.images: no folder .*imagse; .* holds the folders Annotations, images, labels"):
        read_boxes(str(made.root / "imagse"), words["boxes"])
    with pytest.raises(
        UserError, match=r"data.train.boxes: there is no .*gone; .*holds Annotations, data.yaml, images, labels, train.json"
    ):
        read_boxes(words["images"], str(made.root / "gone"))
    empty = made.root / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"data.train.boxes: .*empty holds nothing; expected COCO's .json, a folder of Pascal"):
        read_boxes(words["images"], str(empty))
    with pytest.raises(UserError, match="data.train.boxes: .*data.yaml is no .json file; expected"):
        read_boxes(words["images"], str(made.root / "data.yaml"))


@pytest.mark.parametrize(
    ("kind", "message"), [("voc", "has no picture for any of 3 annotations"), ("yolo", "no text file in .* has the name")]
)
def test_pictures_of_other_names_are_told(made, kind, message):
    for file in list(made.images.iterdir()):
        file.rename(made.images / f"x{file.name}")
    with pytest.raises(UserError, match=message):
        read_boxes(**made.of(kind))


# ---------------------------------------------------------------- the table


def test_a_part_of_a_table_keeps_the_boxes_of_its_pictures(made):
    table = read_boxes(**made.coco)
    part = table.take([2, 1])
    assert by_name(part) == {k: v for k, v in by_name(table).items() if k != "a.png"}
    assert part.picture_ids.tolist() == [102, 103]
    assert part.fingerprint() != table.fingerprint()
    assert read_boxes(**made.coco).fingerprint() == table.fingerprint()


def test_a_table_is_arrays_all_through(made):
    """A million Python objects would be copied, page by page, into every worker that looks at them."""
    table = read_boxes(**made.yolo)
    for holder in (table, table.pictures):
        for name, value in vars(holder).items():
            small = isinstance(value, tuple) and len(value) <= 2
            array = value is None or isinstance(value, np.ndarray | memoryview | str)
            assert small or array or name == "pictures", name
    assert len(pickle.loads(pickle.dumps(table)).boxes_of(0)) == 2


def test_what_training_leaves_out_is_told(made):
    said = json.loads((made.root / "train.json").read_text())
    said["annotations"][0]["bbox"] = []
    said["annotations"][1]["image_id"] = "unknown"
    (made.root / "train.json").write_text(json.dumps(said))
    notes = " ".join(read_boxes(**made.coco).notes)
    assert "left out: 1 annotation without a box, such as" in notes
    assert "left out: 1 annotation of a picture that is not listed, such as" in notes
    (made.root / "labels" / "other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert "left out: 1 annotation file without a picture, such as" in " ".join(read_boxes(**made.yolo).notes)
    (made.root / "Annotations" / "b.xml").unlink()
    assert f"1 picture of {made.images} without an XML file left out" in " ".join(read_boxes(**made.voc).notes)


def test_keypoints_of_yolo_are_no_outline(made):
    line = "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 2\n"
    (made.root / "labels" / "a.txt").write_text(line)
    with pytest.raises(UserError, match="of keypoints data.yaml must tell kpt_shape"):
        read_boxes(**made.yolo)
    (made.root / "labels" / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [2, 3]\n")
    width, height = made.things["a.png"][0]
    xyxy = read_boxes(**made.yolo).boxes_of(0).xyxy[0].tolist()
    assert xyxy == pytest.approx([0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height], abs=1e-3)


def test_a_group_of_the_name_of_its_class_is_left_out(made):
    said = json.loads((made.root / "train.json").read_text())
    said["categories"].append({"id": 0, "name": said["categories"][0]["name"], "supercategory": "none"})
    (made.root / "train.json").write_text(json.dumps(said))
    table = read_boxes(**made.coco)
    assert table.classes == ("cat", "dog")
    assert any("share their name with another one are left out: 0 (" in note for note in table.notes)


@pytest.mark.parametrize(("name", "data"), [("classes.txt", "Grün\ndog\n".encode("latin-1")), ("data.yaml", b"names: {0: cat, b: dog}")])
def test_odd_lists_of_class_names_do_not_end_in_a_traceback(made, name, data):
    (made.root / "data.yaml").unlink()
    (made.root / "labels" / name).write_bytes(data)
    if name == "classes.txt":
        assert read_boxes(**made.yolo).classes[1] == "dog"
    else:
        with pytest.raises(UserError, match="names are numbered 0, b; expected 0 to 1 without gaps"):
            read_boxes(**made.yolo)
