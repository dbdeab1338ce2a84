import csv
import io
import json

import pytest
import torch

from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.predict.boxes import BoxPrediction, check_boxes_format, write_box_csv, write_coco_results

NAMES = ("cat", "dog, brown")
TWO = Boxes(torch.tensor([[1.0, 2, 11.5, 22], [0, 0, 100.126, 5]]), torch.tensor([1, 0]), torch.tensor([0.9, 0.25]))
ONE = Boxes(torch.tensor([[3.0, 3, 4, 4]]), torch.tensor([0]), torch.tensor([0.5]))


def predictions():
    yield BoxPrediction("a\udce9.png", TWO)
    yield BoxPrediction("broken.png", broken="file is gone")
    yield BoxPrediction("empty.png")
    yield BoxPrediction("c.png", ONE)


def test_csv_has_a_row_a_box_and_one_for_a_picture_without():
    file, told = io.StringIO(), []
    assert write_box_csv(predictions(), file, NAMES, on_broken=lambda *x: told.append(x)) == (3, 3)
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [
        ["path", "label", "score", "x1", "y1", "x2", "y2"],
        ["a\udce9.png", "dog, brown", "0.9000", "1.00", "2.00", "11.50", "22.00"],
        ["a\udce9.png", "cat", "0.2500", "0.00", "0.00", "100.13", "5.00"],
        ["empty.png", "", "", "", "", "", ""],
        ["c.png", "cat", "0.5000", "3.00", "3.00", "4.00", "4.00"],
    ]
    assert told == [("broken.png", "file is gone")]


def test_coco_results_are_what_its_tools_load(tmp_path):
    coco = pytest.importorskip("pycocotools.coco").COCO()
    ids = {"a\udce9.png": 17, "empty.png": 3, "c.png": 5}
    assert write_coco_results(predictions(), tmp_path / "r.json", image_ids=ids, category_ids=[4, 90]) == (3, 3)
    rows = json.loads((tmp_path / "r.json").read_text())
    assert rows[0] == {"image_id": 17, "category_id": 90, "bbox": [1.0, 2.0, 10.5, 20.0], "score": 0.9}
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(17, 90), (17, 4), (5, 4)]
    coco.dataset = {"info": {}, "images": [{"id": i} for i in ids.values()], "annotations": [], "categories": [{"id": 4}, {"id": 90}]}
    coco.createIndex()
    assert len(coco.loadRes(str(tmp_path / "r.json")).anns) == 3
    write_coco_results(predictions(), tmp_path / "r.json", image_ids=lambda path: len(path))
    assert [r["image_id"] for r in json.loads((tmp_path / "r.json").read_text())] == [6, 6, 5]


def test_without_ids_pictures_are_counted_and_named(tmp_path):
    write_coco_results(predictions(), tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(r["image_id"], r["category_id"], r["file_name"]) for r in rows] == [
        (1, 1, "a\\udce9.png"),
        (1, 0, "a\\udce9.png"),
        (3, 0, "c.png"),
    ]
    write_coco_results([], tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_picture_that_annotations_have_not_is_told(tmp_path):
    with pytest.raises(UserError, match="predict: c.png is no picture of the annotations"):
        write_coco_results(predictions(), tmp_path / "r.json", image_ids={"a\udce9.png": 1, "empty.png": 2})
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("write", [lambda p, f: write_box_csv(p, f, NAMES), write_coco_results], ids=["csv", "coco"])
def test_rows_are_written_as_they_come_and_an_unfinished_file_has_not_its_name(tmp_path, write):
    def breaks_off():
        for _ in range(2000):
            yield BoxPrediction("a.png", TWO)
        assert (tmp_path / "out.part").stat().st_size > 50_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(breaks_off(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(iter([BoxPrediction("a.png", TWO)]), tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_file_of_another_kind_or_in_no_folder_is_told_before_anything_is_computed(tmp_path):
    check_boxes_format(tmp_path / "a.json", key="--json")
    for name in ("a.txt", "a.json"):
        with pytest.raises(UserError, match=rf"--csv: got .*{name}; expected a name that ends in .csv"):
            check_boxes_format(tmp_path / name)
    with pytest.raises(UserError, match="--csv: there is no folder"):
        check_boxes_format(tmp_path / "gone/a.csv")
