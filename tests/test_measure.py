"""A classifier judged on pictures: at the end of a run, and by the verb."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

import visiontune
from tests.conftest import run_command
from visiontune.__main__ import main as verbs
from visiontune.data.decode import Reading
from visiontune.data.folder import list_pictures
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError
from visiontune.fit import main
from visiontune.measure import judge, mirrored, write
from visiontune.report.folder import clear_evaluation, evaluation_folder, identity_of


def rows_of(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A small classifier after two epochs, not perfect, with one validation picture that is broken."""
    from tests.conftest import CONV

    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(pictures / "val", folder / "val")
    (folder / "val" / "lying" / "broken.png").write_bytes(b"nothing")
    recipe = {
        "task": "classify",
        "backbone": CONV,
        "data": {"train": str(pictures / "train"), "val": str(folder / "val"), "image_size": 32, "batch_size": 16, "workers": 0},
        "optim": {"lr": 1e-4},
        "epochs": 2,
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "log_every_n_steps": 1},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main([str(folder / "r.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def agree(folder, result):
    """`result.json`, `predictions.csv`, `classes.csv` and `confusion.csv` tell of the same answers."""
    rows = rows_of(folder / "predictions.csv")
    truth, label = [r["truth"] for r in rows], [r["label"] for r in rows]
    assert result["top1"] == pytest.approx(accuracy_score(truth, label), abs=1e-6)
    assert result["macro_f1"] == pytest.approx(f1_score(truth, label, average="macro"), abs=1e-6)
    classes = rows_of(folder / "classes.csv")
    names = [c["class"] for c in classes]
    for name, c in zip(names, classes, strict=True):
        assert (int(c["pictures"]), int(c["said"])) == (truth.count(name), label.count(name))
    assert np.mean([float(c["recall"]) for c in classes]) == pytest.approx(result["balanced_accuracy"], abs=1e-5)
    assert np.mean([float(c["auroc"]) for c in classes]) == pytest.approx(result["auroc"], abs=1e-5)
    matrix = np.zeros((len(names), len(names)), dtype=int)
    for c in rows_of(folder / "confusion.csv"):
        matrix[names.index(c["truth"]), names.index(c["label"])] = c["pictures"]
    assert (matrix == confusion_matrix(truth, label, labels=names)).all()
    for name in ("confusion", "mistakes", "reliability"):
        assert Image.open(folder / "pictures" / f"{name}.png").size > (100, 100)
    page = (folder / "report.html").read_text()
    assert "http" not in re.sub('base64,[^"]+', "", page)
    for title in ("Classes", "What is taken for what", "Certain mistakes", "What a score is worth"):
        assert f"<h2>{title}</h2>" in page
    return rows


def test_a_run_ends_with_numbers_tables_and_pictures_that_agree(run):
    result = json.loads((run / "result.json").read_text())
    rows = agree(run, result)
    assert result["val_pictures"] == len(rows) == 16
    assert {"top1", "balanced_accuracy", "macro_f1", "auroc", "ece", "ece_scaled", "temperature", "val_loss"} <= result.keys()
    assert "fitted on these same pictures" in (run / "report.html").read_text()
    broken = rows_of(run / "broken.csv")
    assert [(r["path"].rsplit("/", 1)[1], r["met"]) for r in broken] == [("broken.png", "evaluation")]


def test_scores_are_those_that_the_saved_model_gives(run):
    """At the temperature that was saved with it, of the weights that were exported."""
    config = json.loads((run / "weights/model/config.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert config.get("temperature", 1.0) == result["temperature"] != 1.0
    rows = rows_of(run / "predictions.csv")
    predicted = list(visiontune.load(run).predict([r["path"] for r in rows]))
    assert [p.label for p in predicted] == [r["label"] for r in rows]
    assert [p.score for p in predicted] == pytest.approx([float(r["score"]) for r in rows], abs=1e-4)


def test_the_verb_gives_the_same_numbers_for_the_same_pictures(run, tmp_path):
    done = run_command("visiontune", "evaluate", str(run), str(run.parent / "val"), "--csv", str(tmp_path / "rows.csv"))
    assert done.returncode == 0, done.stderr
    folder = run / "evaluate" / "val"
    result, own = (json.loads((f / "result.json").read_text()) for f in (folder, run))
    shutil.copy(tmp_path / "rows.csv", folder / "predictions.csv")
    agree(folder, result)
    same = ("top1", "balanced_accuracy", "macro_f1", "auroc", "ece", "ece_scaled", "temperature")
    assert [result[k] for k in same] == pytest.approx([own[k] for k in same], abs=1e-5)
    assert (tmp_path / "rows.csv").read_text() == (run / "predictions.csv").read_text()
    assert (result["task"], result["pictures"], result["broken_pictures"]) == ("evaluate", 16, 1)
    assert "broken.png" in (folder / "report.html").read_text()
    assert "came with the model" in (folder / "report.html").read_text()
    for text in ("top-1 accuracy", "lying", "standing", "left out: 1", str(folder / "report.html")):
        assert text in done.stdout
    assert "Traceback" not in done.stderr


def test_names_that_are_not_utf8_come_out_of_it(run, tmp_path, pictures):
    for name in ("lying", "standing"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(pictures / "val" / name / f"00{i}.png", tmp_path / "val" / name / f"{i}\udce9.png")
    (tmp_path / "val" / "lying" / "broken\udce9.png").write_bytes(b"nothing")
    done = run_command("visiontune", "evaluate", str(run), str(tmp_path / "val"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "broken\\udce9.png" in (tmp_path / "out" / "report.html").read_text()
    assert b"1\xe9.png" in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_an_exported_folder_is_judged_just_as_its_run_and_again_in_the_same_place(run, tmp_path):
    shutil.copytree(run / "weights" / "model", tmp_path / "model")
    for _ in range(2):
        assert verbs(["evaluate", str(tmp_path / "model"), str(run.parent / "val"), "--out", str(tmp_path / "out")]) == 0
    result, own = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "out", run))
    assert result["top1"] == pytest.approx(own["top1"], abs=1e-6)


def test_classes_that_the_data_has_not_are_of_nothing(run, tmp_path, capsys):
    for name in ("lying", "standing"):
        (tmp_path / "data" / name).mkdir(parents=True)
    model = visiontune.load(run)
    model.class_names = ("falling", *model.class_names)  # the classes of a model with one more
    table = list_pictures(str(run.parent / "val"), labelled=True)
    from visiontune.data.parts import align_labels

    table = align_labels(table, model.class_names)

    def logits_of(images):
        return torch.nn.functional.pad(model.network(model.normalize(images)), (1, 0))

    found = judge(logits_of, table, model.class_names, view=CenterCrop((32, 32)), reading=Reading())
    scores = write(found, tmp_path / "out")
    absent, *others = rows_of(tmp_path / "out" / "classes.csv")
    assert [absent[k] for k in ("pictures", "precision", "recall", "f1", "ap", "auroc")] == ["0", "", "", "", "", ""]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean([float(r["recall"]) for r in others]), abs=1e-5)


def test_pictures_of_one_class_are_judged_too(run, pictures, tmp_path):
    shutil.copytree(pictures / "val" / "standing", tmp_path / "one" / "standing")
    assert verbs(["evaluate", str(run), str(tmp_path / "one"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [r["truth"] for r in rows] == ["standing"] * 8
    assert result["top1"] == pytest.approx(np.mean([r["label"] == "standing" for r in rows]))


MISTAKES = [
    ("a class that the model has not", "zoo", "evaluate: {data} has classes that training has not: flying; training has lying, standing"),
    ("pictures without labels", "val/lying", "evaluate: {data} holds 8 pictures and no class folders"),
    ("no such folder", "none", "evaluate: no folder {data}"),
]


@pytest.mark.parametrize(("data", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_what_cannot_be_judged_is_told_in_a_sentence(run, pictures, tmp_path, capsys, data, message):
    shutil.copytree(pictures / "val", tmp_path / "val")
    shutil.copytree(pictures / "val", tmp_path / "zoo")
    (tmp_path / "zoo" / "lying").rename(tmp_path / "zoo" / "flying")
    place = tmp_path / data
    assert verbs(["evaluate", str(run), str(place)]) == 2
    error = capsys.readouterr().err
    assert message.format(data=place) in error
    assert "Traceback" not in error


def test_a_backbone_and_a_full_folder_are_refused(run, pictures, tmp_path, capsys):
    assert verbs(["evaluate", str(run / "weights" / "backbone"), str(pictures / "val")]) == 2
    assert "has no classifier" in capsys.readouterr().err
    assert verbs(["evaluate", str(run), str(pictures / "val"), "--out", str(run)]) == 2
    assert "is not empty and holds no evaluation" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        evaluation_folder(str(run), "val", str(tmp_path / "file"))


def test_what_is_no_evaluation_is_left_as_it_is(tmp_path):
    own = tmp_path / "project"
    (own / "pictures").mkdir(parents=True)
    (own / "pictures" / "holiday.jpg").write_text("")
    (own / "predictions.csv").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no evaluation"):
        evaluation_folder("run", "val", str(own))
    (own / "result.json").write_text(json.dumps(identity_of("val", None)))  # an evaluation, with something of the user's in it
    (own / "predictions.csv").unlink()  # its rows went to another file
    (own / "pictures" / "worst.png").write_text("")
    assert evaluation_folder("run", "val", str(own)) == own
    assert (own / "pictures" / "worst.png").is_file()  # what replaces it is not there yet
    clear_evaluation(own)
    assert [f.name for f in (own / "pictures").iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("data", "name"), [("a/test", "test"), ("a/b/", "b"), ("shards/val-*.tar", "val-_.tar"), ("sample:digits/test", "test")]
)
def test_an_evaluation_lies_in_the_run_by_the_name_of_the_data(tmp_path, data, name):
    assert evaluation_folder(str(tmp_path), data, None) == tmp_path / "evaluate" / name


def test_each_data_has_a_folder_of_its_own_and_the_same_one_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def evaluated(data, part=None):
        folder = evaluation_folder("run", data, None, part)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.csv").write_text("")
        (folder / "result.json").write_text(json.dumps(identity_of(data, part)))
        return folder.relative_to("run/evaluate").as_posix()

    Path("run").mkdir()
    given = [("a/test", None), ("b/test", None), ("c/b/test", None), ("t.csv", None), ("t.csv", "val"), ("t.csv", "test")]
    names = ["test", "b_test", "c_b_test", "t.csv", "t.csv_val", "t.csv_test"]
    assert [evaluated(*g) for g in given] == names
    assert [evaluated(*g) for g in given] == names
    assert evaluated(str(tmp_path / "b" / "test") + "/") == "b_test"
    assert [evaluated("sample:digits/test"), evaluated("/test"), evaluated("/test")] == ["digits_test", "test_2", "test_2"]
    shutil.rmtree("run/evaluate/test")
    assert evaluated("b/test") == "b_test"
    (tmp_path / "run/evaluate/b_test/result.json").unlink()  # it broke off
    assert evaluated("x/b/test") == "test"
    assert evaluated("y/b/test") == "b_test"


def test_weights_that_diverged_are_told_and_no_number_is_made_up(run, tmp_path, capsys):
    shutil.copytree(run / "weights" / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["head.fc.bias"][0] = float("nan")
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    assert verbs(["evaluate", str(tmp_path / "model"), str(run.parent / "val"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'model'}: the scores of 16 pictures of 16 are not finite numbers, so every number over pictures is n/a" in said
    assert re.search(r"top-1 accuracy +n/a", said)
    result = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    numbers = ("top1", "balanced_accuracy", "macro_f1", "auroc", "ece", "ece_scaled", "cross_entropy")
    assert [result[k] for k in numbers] == [None] * len(numbers)
    assert {(r["label"], r["score"]) for r in rows_of(tmp_path / "out" / "predictions.csv")} == {("", "nan")}
    assert "top-1 accuracy n/a" in (tmp_path / "out" / "report.html").read_text()
    assert verbs(["predict", str(tmp_path / "model"), str(run.parent / "val")]) == 1
    told = capsys.readouterr()
    assert told.out == "path,label,score\n"
    assert told.err.count("(what the network makes of it is not finite)") == 16


def test_mirror_images_are_averaged_as_scores_at_the_temperature(run, pictures):
    images = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8)
    model = visiontune.load(run)
    with torch.no_grad():
        T = model.temperature
        mean = ((model(images) / T).softmax(dim=1) + (model(images.flip(-1)) / T).softmax(dim=1)) / 2
        both = mirrored(model, several=False, temperature=T)(images)
        assert torch.allclose((both / T).softmax(dim=1), mean.double(), atol=1e-6)
        assert torch.allclose(model.scores(images, tta=True), mean, atol=1e-6)
        each = mirrored(model, several=True)(images).sigmoid()
        assert torch.allclose(each, ((model(images).sigmoid() + model(images.flip(-1)).sigmoid()) / 2).double(), atol=1e-6)
        same = mirrored(lambda x: x.float().mean((2, 3)), several=False)(images)
        assert torch.allclose(same.softmax(dim=1), images.float().mean((2, 3)).softmax(dim=1).double(), atol=1e-5)


def test_tta_is_judged_by_the_verb(run, tmp_path):
    assert verbs(["evaluate", str(run), str(run.parent / "val"), "--out", str(tmp_path / "out"), "--tta"]) == 0
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    predicted = list(visiontune.load(run).predict([r["path"] for r in rows], tta=True))
    assert [p.score for p in predicted] == pytest.approx([float(r["score"]) for r in rows], abs=1e-4)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["tta"] is True


def test_broken_pictures_are_left_out_and_the_others_keep_their_truth(tmp_path):
    """What is said of a picture is its brightness: rows must be those of the pictures that were read."""
    for name, level in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for i in range(7):
            Image.new("RGB", (8, 8), (level + i,) * 3).save(tmp_path / name / f"{i}.png")
    for broken in ("dark/0", "dark/3", "light/2", "light/3", "light/4"):
        (tmp_path / f"{broken}.png").write_bytes(b"\x89PNG broken")
    table = list_pictures(str(tmp_path), labelled=True)

    def logits_of(images):
        light = images.float().mean((1, 2, 3)) - 128
        return torch.stack([-light, light], dim=1)

    for batch_size in (3, 64):
        found = judge(logits_of, table, table.classes, view=CenterCrop((8, 8)), reading=Reading(), batch_size=batch_size)
        assert found.answers.label.tolist() == found.answers.truth.tolist() == [0] * 5 + [1] * 4
        assert len(found.broken) == 5
        levels = found.answers.logits[:, 1] + 128
        expected = [(10 if "dark" in table.path(i) else 240) + int(table.path(i)[-5]) for i in found.kept]
        assert levels.tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match=r"no picture of .* can be read: .*dark/0.png"):
        judge(logits_of, table.take([0, 3]), table.classes, view=CenterCrop((8, 8)), reading=Reading())


def test_several_labels_end_with_thresholds_that_are_saved_and_obeyed(tmp_path, pictures, capsys):
    """Through the real commands: pictures with a lying bar, a standing one, both or none."""
    from tests.conftest import CONV, paint

    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("val", 24)):
        (tmp_path / part).mkdir()
        rows = [("path", "labels")]
        for i in range(count):
            has = [name for bit, name in enumerate(("lying", "standing")) if i >> bit & 1]
            bars = [paint(("lying", "standing").index(name), rng).astype(int) for name in has]
            Image.fromarray(np.max([paint(2, rng), *bars], axis=0).astype(np.uint8)).save(tmp_path / part / f"{i}.png")
            rows.append((f"{part}/{i}.png", "|".join(has)))
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    recipe = {
        "task": "classify",
        "backbone": CONV,
        "data": {"train": str(tmp_path / "train.csv"), "val": str(tmp_path / "val.csv"), "image_size": 32, "batch_size": 16, "workers": 0},
        "optim": {"lr": 3e-3},
        "epochs": 3,
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "log_every_n_steps": 1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    assert main([str(tmp_path / "r.yaml"), "--out", str(run)]) == 0
    result, config = json.loads((run / "result.json").read_text()), json.loads((run / "weights/model/config.json").read_text())
    assert {"macro_ap", "micro_f1", "macro_f1", "auroc", "exact", "micro_f1_thresholds", "macro_f1_thresholds"} <= result.keys()
    assert result["macro_f1_thresholds"] >= result["macro_f1"]
    classes, rows = rows_of(run / "classes.csv"), rows_of(run / "predictions.csv")
    assert [float(c["threshold"]) for c in classes] == pytest.approx(config["thresholds"], rel=1e-5)
    assert not (run / "confusion.csv").exists()
    truth, said = ([[name in r[key].split("|") for name in ("lying", "standing")] for r in rows] for key in ("truth", "label"))
    assert len(rows) == 24
    assert result["macro_f1_thresholds"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-6)
    assert result["micro_f1_thresholds"] == pytest.approx(f1_score(truth, said, average="micro"), abs=1e-6)
    assert "chosen on these same pictures" in (run / "report.html").read_text()
    for p, row in zip(visiontune.load(run).predict([r["path"] for r in rows]), rows, strict=True):
        assert "|".join(p.labels) == row["label"]

    assert verbs(["evaluate", str(run), str(tmp_path / "val.csv")]) == 0
    again = json.loads((run / "evaluate" / "val.csv" / "result.json").read_text())
    same = ("macro_ap", "micro_f1", "macro_f1_thresholds", "auroc", "exact")
    assert [again[k] for k in same] == pytest.approx([result[k] for k in same], abs=1e-6)
    capsys.readouterr()
    assert verbs(["evaluate", str(run), str(pictures / "val")]) == 0
    assert "one label a picture and the model gives several" in capsys.readouterr().out


def test_a_table_of_several_labels_is_refused_by_a_model_of_one(run, tmp_path, pictures, capsys):
    (tmp_path / "t.csv").write_text("path,label\nval/lying/000.png,lying|standing\nval/standing/000.png,standing\n")
    shutil.copytree(pictures / "val", tmp_path / "val")
    assert verbs(["evaluate", str(run), str(tmp_path / "t.csv")]) == 2
    assert "several labels" in capsys.readouterr().err


def test_a_table_is_read_as_the_run_says_or_as_the_command_says_and_one_part_of_it_if_wanted(run, tmp_path, pictures, capsys):
    shutil.copytree(pictures / "val", tmp_path / "pictures" / "val")
    rows = [("what", "wrong", "shot", "split")]
    rows += [(c, "falling", f"val/{c}/{i:03d}.png", "test" if i < 3 else "train") for i in range(8) for c in ("lying", "standing")]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    columns = ["data.columns.label=what", f"data.root={tmp_path / 'pictures'}"]
    command = ["evaluate", str(run), str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]
    for part, count in ((None, 16), ("test", 6), ("train", 10)):
        assert verbs([*command, *columns, *(["--part", part] if part else [])]) == 0
        assert json.loads((tmp_path / "out" / "result.json").read_text())["pictures"] == count
    told = capsys.readouterr().out
    assert "6 rows of 16" in told
    assert "all rows of" in told
    for more, message in (
        ([*columns, "--part", "val"], "has one of val, valid, validation, dev in column 'split': it holds test, train"),
        (["data.columns.label=wrong", columns[1]], "falling"),
        (["optim.lr=1"], "evaluate: got 'optim.lr=1'; of pictures are allowed: data.root=FOLDER"),
    ):
        assert verbs([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert verbs(["evaluate", str(run), str(pictures / "val"), "--part", "test"]) == 2
    assert "is no table, so it has no part 'test'" in capsys.readouterr().err

    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    recipe["data"] |= {"root": str(tmp_path / "pictures"), "columns": {"label": "what", "split": "split"}}
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert verbs(["evaluate", str(tmp_path / "run"), str(tmp_path / "t.csv")]) == 0
    assert json.loads((tmp_path / "run/evaluate/t.csv/result.json").read_text())["pictures"] == 16


def test_a_run_whose_validation_pictures_are_all_broken_is_kept_all_the_same(run, tmp_path, capsys):
    for name in ("lying", "standing"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.png").write_bytes(b"nothing")
    recipe = yaml.safe_load((run.parent / "r.yaml").read_text())
    recipe["data"]["val"] = str(tmp_path / "val")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"epochs": 1}))
    assert main([str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert "no picture of" in capsys.readouterr().out
    assert visiontune.load(tmp_path / "run").class_names == ("lying", "standing")
    assert not (tmp_path / "run" / "classes.csv").exists()


def test_scores_of_a_device_without_float64_are_averaged_on_the_cpu():
    class OnMps:
        """Logits that have to leave their device before they can be float64."""

        def __init__(self, logits):
            self.logits = logits

        def cpu(self):
            return self.logits

    images = torch.rand(2, 3, 4, 4)
    both = mirrored(lambda x: OnMps(x[:, :, 0, 0]), several=False)(images)
    plain = mirrored(lambda x: x[:, :, 0, 0], several=False)(images)
    assert both.dtype == torch.float64
    assert torch.equal(both, plain)
