import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.detection.sets import write_set
from tests.metrics.pictures import random_pictures
from visiontune.boxes import Boxes
from visiontune.data.decode import Reading
from visiontune.data.detection.augment import BoxAugment
from visiontune.data.detection.loader import BoxPictures
from visiontune.data.detection.read import read_boxes
from visiontune.data.detection.views import BoxView
from visiontune.evaluate.detection import BoxAnswers, box_curves
from visiontune.evaluate.detection_results import box_classes, box_confusion, worst_pictures
from visiontune.report import boxes as drawing
from visiontune.report import detection
from visiontune.report.numbers import headlines, score_rows

NAMES = ["cat", "dog $x", "a name \udce9 that is much too long to stand beside anything", "absent", "写真"]


def measured(tmp_path, K=5, N=40):
    found, truth, crowd = random_pictures(N, K=K)
    answers = BoxAnswers.of(found, truth, num_classes=K, crowd=crowd)
    pixels = np.zeros((480, 480, 3), np.uint8)
    names = NAMES if K == 5 else [f"class {k}" for k in range(K)]
    detection.write(
        tmp_path, answers, box_curves(answers), 0.4, names, lambda cases: [drawing.DrawnCase(pixels, 1.0, "a $x", c) for c in cases[:2]]
    )
    return answers, names


def test_what_is_written_is_read_again_and_told_on_the_page(tmp_path, recwarn):
    answers, names = measured(tmp_path)
    again = detection.read_classes(tmp_path)
    assert list(again) == names
    for row, expected in zip(again.values(), box_classes(answers, box_curves(answers), 0.4), strict=True):
        for field in detection.COLUMNS:
            assert getattr(row, field) == pytest.approx(getattr(expected, field), abs=1e-5, nan_ok=True)
    matrix = np.zeros((6, 6), dtype=int)
    with (tmp_path / "confusion.csv").open(newline="", errors="surrogateescape") as file:
        for r in csv.DictReader(file):
            matrix[[*names, ""].index(r["truth"]), [*names, ""].index(r["label"])] = int(r["boxes"])
    assert (matrix == box_confusion(answers, 0.4)).all()

    found = detection.sections(tmp_path, {"task": "detect", "threshold": 0.4})
    assert [s["title"] for s in found] == [
        "Classes", "Sizes", "Precision, recall and F1", "What is taken for what", "Where most went wrong",
    ]  # fmt: skip
    assert all(s["caption"] and ("table" in s) != ("data" in s) for s in found)
    rows = found[0]["table"]["rows"]
    ap = [float(r[7].rstrip(" %")) for r in rows[:-1]]
    assert ap == sorted(ap)
    assert rows[-1][0] == "absent"
    assert rows[-1][4:] == ["n/a"] * 5
    assert any("\\udce9" in r[0] for r in rows)
    assert sum(int(r[1]) for r in found[1]["table"]["rows"]) == len(answers.true)
    assert "0.4, was chosen on these same pictures" in found[2]["caption"]
    other = detection.sections(tmp_path, {"task": "evaluate", "threshold": 0.4})
    assert "0.4, came with the model" in other[2]["caption"]
    assert [w for w in recwarn if "Glyph" in str(w.message)] == []


def test_a_folder_without_tables_has_no_sections(tmp_path):
    assert detection.sections(tmp_path, {"task": "detect", "threshold": 0.5}) == []


@pytest.mark.parametrize("K", [1, 12])
def test_curves_are_drawn_of_one_class_and_of_more_than_have_a_colour(tmp_path, K):
    measured(tmp_path, K=K, N=20)
    assert (tmp_path / "pictures/precision_recall.png").is_file()


def test_without_any_box_there_are_tables_and_no_pictures(tmp_path):
    answers = BoxAnswers.of([Boxes.none()], [Boxes.none()], num_classes=2)
    detection.write(tmp_path, answers, box_curves(answers), 0.5, ["cat", "dog"], lambda cases: [])
    found = detection.sections(tmp_path, {"task": "detect", "threshold": 0.5})
    assert [s["title"] for s in found] == ["Classes", "Sizes"]
    assert [r[1:] for r in found[1]["table"]["rows"]] == [["0", "n/a", "n/a"]] * 3


@pytest.fixture
def table(tmp_path):
    made = write_set(
        tmp_path / "set", {"small.png": ((40, 30), [("dog", (10, 5, 30, 25))]), "wide.png": ((1000, 80), [("cat", (0, 0, 500, 80))])}
    )
    return read_boxes(**made.voc)


def painted(path, colour):
    """How many pixels have a colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - rgb).max(axis=2) < 3).sum())


def test_cases_are_drawn_with_mistakes_in_their_own_colour(table, tmp_path):
    """The dog is found, the cat is not, and something else is."""
    truth = [table.boxes_of(i) for i in range(2)]
    wrong = Boxes(torch.tensor([[600.0, 0, 700, 40]]), torch.tensor([0]), torch.tensor([0.8]))
    right = Boxes(truth[0].xyxy, truth[0].labels, torch.tensor([0.9]))
    answers = BoxAnswers.of([right, wrong], truth, num_classes=2)
    (case,) = worst_pictures(answers, 0.5)
    (drawn,) = drawing.load_cases(table, [case], reading=Reading())
    assert drawn.pixels.shape == (64, 800, 3)
    assert drawn.scale == pytest.approx(0.8)
    assert drawn.title == "wide.png: 1 box, 1 missed; 1 wrong"
    # the cat's corner lies where its box does
    red = np.array([255, 0, 0])
    assert (np.abs(drawn.pixels[:60, 5:390].astype(int) - red) < 30).all()
    drawing.truth_beside_found([drawn], table.classes, tmp_path / "wrong.png")
    assert painted(tmp_path / "wrong.png", drawing.WRONG) > 3 * painted(tmp_path / "wrong.png", drawing.TRUE) > 0


def test_a_picture_that_is_gone_is_left_out(table):
    answers = BoxAnswers.of([Boxes.none()] * 2, [table.boxes_of(i) for i in range(2)], num_classes=2)
    cases = worst_pictures(answers, 0.5)
    Path(table.pictures.path(0)).unlink()
    assert len(cases) == 2
    assert [d.case.picture for d in drawing.load_cases(table, cases, reading=Reading())] == [1]


def test_training_pictures_show_what_the_loader_gives(table, tmp_path):
    samples = BoxPictures(table, (64, 96), augment=BoxAugment(BoxView(jitter=0.0)), seed=0)
    drawing.training_pictures(samples, table.classes, tmp_path / "t.png")
    for label in (0, 1):
        assert painted(tmp_path / "t.png", drawing.PALETTE[label]) > 100
    drawing.strip([(np.zeros((20, 10, 1), np.uint8), Boxes.none())] * 5, table.classes, tmp_path / "grey.png")
    assert Image.open(tmp_path / "grey.png").height > Image.open(tmp_path / "t.png").height


def test_a_detectors_numbers_have_names():
    result = {"map": 0.4111, "map50": 0.6, "map_small": None, "f1": 0.5, "threshold": 0.37}
    assert headlines(result) == ["mean average precision (COCO's, IoU 0.5 to 0.95) 41.1 %", "mean average precision at IoU 0.5 60.0 %"]
    assert ["threshold of the score", "0.3700"] in score_rows(result)
    assert ["mean average precision of small boxes", "n/a"] in score_rows(result)  # there is none
