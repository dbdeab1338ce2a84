"""The verbs on a detector: predict, evaluate, export of another kind; and check on annotations."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import visiontune
from tests.conftest import CONV
from tests.data.detection.sets import write_set
from visiontune.__main__ import main
from visiontune.export import save_detector_folder
from visiontune.finetune.detect import Detector

THINGS = {f"{i}.png": ((64, 60 + i), [("cat", (4 + i, 6, 40, 44)), ("dog", (2, 2, 20 + i, 18))][: i % 3]) for i in range(6)}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("boxes"), THINGS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A detector that learned a little from nothing: its boxes are anywhere, but there are some."""
    torch.manual_seed(0)
    module = Detector(CONV["name"], backbone_args=CONV["args"], image_size=64, num_classes=2, pyramid_width=64, freeze_batch_norms=False)
    torch.nn.init.constant_(module.head.head.classification_head.cls_logits.bias, 0.0)
    folder = tmp_path_factory.mktemp("exported") / "model"
    statistics = {"mean": [0.5] * 3, "std": [0.2] * 3}
    names = ["cat", "dog"]
    save_detector_folder(module.trained, folder, module.spec, options=dict(module.hparams), class_names=names, shown_from=0.2, **statistics)
    return folder


def rows_of(file):
    return list(csv.DictReader(file.open()))


def test_predict_writes_the_boxes_that_load_gives(exported, annotated, tmp_path, capsys):
    out = tmp_path / "found.csv"
    assert main(["predict", str(exported), str(annotated.images), "--csv", str(out), "--workers", "0"]) == 0
    assert "boxes in 6 pictures" in capsys.readouterr().out
    model = visiontune.load(exported)
    assert model.shown_from == 0.2
    found = {p.path: p.boxes for p in model.predict(str(annotated.images))}
    rows = [r for r in rows_of(out) if r["label"]]
    assert len(rows) == sum(map(len, found.values())) > 0
    for path, boxes in found.items():
        own = [r for r in rows if r["path"] == path]
        assert [float(r["x2"]) for r in own] == pytest.approx(boxes.xyxy[:, 2].tolist(), abs=0.006)
        assert [r["label"] for r in own] == [model.class_names[k] for k in boxes.labels]
        assert all(0.2 <= float(r["score"]) <= 1 for r in own)


def test_predict_as_coco_has_it_in_tiles_and_drawn(exported, annotated, tmp_path):
    out, drawn = tmp_path / "found.json", tmp_path / "drawn"
    argv = ["predict", str(exported), str(annotated.images), "--json", str(out), "--draw", str(drawn), "--tile", "40", "--score", "0.4"]
    assert main(argv) == 0
    entries = json.loads(out.read_text())
    assert {e["file_name"].rsplit("/")[-1] for e in entries} <= set(THINGS)
    assert all(e["bbox"][0] + e["bbox"][2] <= 64.01 and e["score"] >= 0.4 for e in entries)
    assert sorted(f.name for f in drawn.iterdir()) == [f"{i}.jpg" for i in range(6)]
    assert Image.open(drawn / "0.jpg").size == (64, 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "2"], "--top is for runs that classify"),
        (["--csv", "a.csv", "--json", "b.json"], "one at a time"),
        (["--json", "b.txt"], "expected a name that ends in"),
        (["--score", "2"], "expected a number from 0 to 1"),
        (["--tile", "5"], "expected 32 pixels or more"),
    ],
)
def test_what_predict_does_not_take_is_told(exported, annotated, capsys, words, message):
    assert main(["predict", str(exported), str(annotated.images), *words]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_judges_on_annotations(exported, annotated, tmp_path, capsys):
    out, split = tmp_path / "judged", tmp_path / "few.txt"
    split.write_text("1\n2\n")
    argv = ["evaluate", str(exported), annotated.coco["boxes"], f"images={annotated.images}", "--out", str(out), "--device", "cpu"]
    assert main(argv) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["pictures"], result["threshold"]) == (6, 0.2)
    assert 0 <= result["map"] <= result["map50"] <= 1
    assert "mean average precision at IoU 0.5" in capsys.readouterr().out
    assert "Precision, recall and F1" in (out / "report.html").read_text()
    assert {r["class"] for r in rows_of(out / "classes.csv")} == {"cat", "dog"}
    own = [*argv[:4], "--device", "cpu"]
    assert [main(own), main(own), main([*own, f"split={split}"])] == [0, 0, 0]
    assert sorted(f.name for f in (exported / "evaluate").iterdir()) == ["train.json", "train.json_few"]  # the same data, the same place
    assert json.loads((exported / "evaluate/train.json_few/result.json").read_text())["pictures"] == 2
    assert main(argv[:3]) == 2
    assert "add images=FOLDER" in capsys.readouterr().err


def test_check_lists_what_is_wrong_with_annotations(annotated, tmp_path, capsys):
    clean = ["check", annotated.coco["boxes"], f"images={annotated.images}"]
    assert main(clean) == 0
    assert "nothing wrong was found" in capsys.readouterr().out
    raw = json.loads(Path(annotated.coco["boxes"]).read_text())
    raw["annotations"][0]["bbox"] = [10, 10, -5, 4]
    bad, out = tmp_path / "bad.json", tmp_path / "problems.csv"
    bad.write_text(json.dumps(raw))
    assert main(["check", str(bad), f"images={annotated.images}", f"val.boxes={annotated.coco['boxes']}", "--csv", str(out)]) == 1
    said = capsys.readouterr().out
    assert "reversed box: 1" in said
    assert re.search(r"in both: 6 \(pictures of the validation that are in the training, too\)", said)
    assert {r["problem"] for r in rows_of(out)} == {"reversed box", "in both"}
    for words, message in (
        ([], "add images=FOLDER"),
        (["imges=x"], "did you mean 'images'"),
        ([f"images={annotated.images}", "val.split=a"], "no val.boxes"),
    ):
        assert main(["check", str(bad), *words]) == 2
        assert message in capsys.readouterr().err


def test_drawn_pictures_of_similar_names_stand_beside_each_other(exported, annotated, tmp_path, capsys):
    for place in ("a/x.png", "b/x.png", "x_2.png"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(annotated.images / "0.png", tmp_path / "in" / place)
    argv = ["predict", str(exported), str(tmp_path / "in"), "--csv", str(tmp_path / "out.csv"), "--draw"]
    assert main([*argv, str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    (tmp_path / "file").write_text("")
    (tmp_path / "out.csv").unlink()
    assert main([*argv, str(tmp_path / "file")]) == 2
    assert "--draw: cannot make the folder" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_damaged_weights_are_told_in_a_sentence(exported, tmp_path, capsys):
    shutil.copytree(exported, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    for damage in (lambda: file.write_bytes(file.read_bytes()[:1000]), file.unlink):
        damage()
        assert main(["predict", str(tmp_path / "model"), str(tmp_path)]) == 2
        assert "does not hold the weights of this detector" in capsys.readouterr().err


def test_a_recipe_with_its_pictures_beside_it_is_checked_as_a_recipe(annotated, capsys):
    given = [f"data.{part}.{key}={value}" for part in ("train", "val") for key, value in annotated.coco.items()]
    main(["check", "detect/fcos", *given])
    assert "detect/fcos: sound" in capsys.readouterr().out
