"""`task: benchmark`: the recipe and the verb are one."""

import json
import re
import typing

import pytest
import yaml

from tests.benchmark.test_benchmark import rows, small
from tests.conftest import run_command
from tests.data.detection.sets import write_set
from visiontune import fit
from visiontune.__main__ import main
from visiontune.benchmark import recipes
from visiontune.benchmark.by_recipe import arguments
from visiontune.recipe import benchmark as room
from visiontune.recipe import parse_recipe

# How an option of the verb is said in a recipe; None: the folder and what a run of `fit` says on the command line.
KEYS = {
    "--backbones": "backbones", "--weights": "weights", "--val": "data.val", "--probe": "probe", "--shots": "shots",
    "--at": "data.image_size", "--device": "device", "--precision": "precision", "--compile": "compile", "--no-training": "training",
    "--epochs": "epochs", "--seconds": "seconds", "--against": "against", "--fresh": "fresh",
    "--out": None, "--dry-run": None, "--help": None,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, pictures, networks):
    data = {"train": str(pictures / "train"), "val": str(pictures / "val"), "workers": 0}
    made = {
        "task": "benchmark", "backbones": [str(networks / "one")], "data": data, "device": "cpu", "seconds": 0.002,
        "training": False, "probe": "knn",
    }  # fmt: skip
    file = tmp_path / "which.yaml"
    file.write_text(yaml.safe_dump(made))
    return file


def test_every_option_of_the_verb_is_a_key_and_every_key_an_option():
    options = set(re.findall(r"--[a-z][a-z-]+", run_command("visiontune", "benchmark", "--help").stdout.partition("options:")[2]))
    assert options == set(KEYS)
    fields = set(room.BenchmarkRecipe.model_fields) - {"task", "data", "seed"}
    assert fields == {key for key in KEYS.values() if key and "." not in key}
    assert typing.get_args(room.Probe) == (*recipes.OF_LABELS, *recipes.OF_BOXES)


def test_a_recipe_does_what_the_verb_does_and_either_goes_on_with_the_other(tmp_path, pictures, networks, recipe, functions, capsys):
    out = tmp_path / "out"
    assert fit.main([str(recipe), "--out", str(out)]) == 0
    assert functions == ["one"]
    assert float(rows(out)["one"]["images_per_second"]) > 0
    assert main(small(pictures, out, networks / "one", more=["data.workers=0", "--probe", "knn", "--no-training"])) == 0
    assert functions == ["one"]  # measured before
    capsys.readouterr()
    kept = out / "benchmark.yaml"
    assert fit.main(["--resume", str(out)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --resume: {out} is a benchmark; `python -m visiontune.fit {kept} --out {out}` goes on with it\n"


def test_what_is_kept_of_a_recipe_means_the_same_from_another_folder(tmp_path, recipe, networks, pictures, monkeypatch, functions):
    out = tmp_path / "out"
    monkeypatch.chdir(networks)
    (networks / "photos").symlink_to(pictures)
    words = ["data.train=photos/train", "data.val=photos/val", "backbones=[one, resnet19]", "fresh=true"]
    assert fit.main([str(recipe), "--out", str(out), *words]) == 1
    kept = yaml.safe_load((out / "benchmark.yaml").read_text())
    assert kept["backbones"] == [str(networks / "one"), "resnet19"]
    assert kept["data"] == {"train": str(networks / "photos/train"), "val": str(networks / "photos/val"), "workers": 0}
    assert "fresh" not in kept
    monkeypatch.chdir(tmp_path)
    assert fit.main([str(out / "benchmark.yaml"), "--out", str(out)]) == 1
    assert functions == ["one"]


def test_keys_of_the_pictures_and_the_seed_reach_the_probe_as_its_own_settings():
    data = {"train": "x", "image_size": [32, 48], "channels": 4, "mean": "estimate", "columns": {"label": ["a", "b"]}}
    raw = {"task": "benchmark", "backbones": "resnet18", "data": data, "seed": 3, "compile": True, "precision": "bf16-mixed"}
    found = arguments(parse_recipe(raw).benchmark)
    assert found["overrides"] == ["data.channels=4", 'data.mean="estimate"', 'data.columns={"label": ["a", "b"]}', "seed=3"]
    assert (found["image_size"], found["names"], found["compiled"], found["precision"]) == ([32, 48], ["resnet18"], True, "bf16-mixed")
    recipe = {"task": "classify", "backbone": {"name": "resnet18"}, "data": {"train": "x", "val": "y"}}
    same = parse_recipe(recipe, None, found["overrides"]).single
    assert (same.data.channels, same.data.columns.label, same.seed) == (4, ["a", "b"], 3)


def test_boxes_are_given_as_in_a_recipe_that_detects(tmp_path, functions, capsys):
    train, val = (write_set(tmp_path / part) for part in ("train", "val"))
    data = {"train": train.coco, "val": val.coco}
    raw = {"task": "benchmark", "backbones": "resnet10t", "weights": "random", "data": data, "epochs": 2, "device": "cpu"}
    found = arguments(parse_recipe(raw).benchmark)
    assert (found["data"], found["val"], found["epochs"]) == (train.coco["boxes"], val.coco["boxes"], 2)
    assert found["overrides"] == [f"images={train.coco['images']}", f"val.images={val.coco['images']}"]
    file = tmp_path / "boxes.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert fit.main([str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "detect: fcos on each frozen backbone, by a recipe's defaults, 2 epochs of" in capsys.readouterr().out
    file.write_text(yaml.safe_dump(raw | {"data": {"train": train.coco | {"images": "nowhere"}}}))
    assert fit.main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert "data.train.images: no folder" in capsys.readouterr().err
    for more, message in (
        ({"probe": "knn"}, "got knn, which want a label"),
        ({"probe": "detect", "backbones": "resnet19"}, "nothing is left"),
    ):
        file.write_text(yaml.safe_dump(raw | more | {"epochs": None}))
        assert main(["check", str(file)]) == 2
        assert message in capsys.readouterr().err


def test_a_dry_run_and_check_tell_what_is_wrong_and_write_nothing(tmp_path, recipe, functions, capsys):
    out = tmp_path / "out"
    assert fit.main([str(recipe), "--out", str(out), "--dry-run"]) == 0
    assert f"dry run: without it 1 backbone would be measured in {out}" in capsys.readouterr().out
    assert main(["check", str(recipe)]) == 0
    assert capsys.readouterr().out == f"{recipe}: sound, 1 backbone\n"
    more = json.dumps([*yaml.safe_load(recipe.read_text())["backbones"], "resnet19"])
    assert main(["check", str(recipe), f"backbones={more}"]) == 1
    assert capsys.readouterr().out.startswith(f"{recipe}: 1 of 2 backbones cannot be measured\n  resnet19: timm ")
    assert main(["check", str(recipe), "against=none.csv"]) == 2
    assert "error: against: there is no file none.csv" in capsys.readouterr().err
    assert not out.exists()
    assert functions == []


def test_mistakes_come_together_with_line_and_what_is_near(tmp_path, pictures, functions, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"task: benchmark\nbackbone: resnet18\ndata:\n  train: {pictures}/trian\n  batch_size: 3\n"
        "probe: [kn]\nweights: imagenet\nimage_size: 64\nshots: [0]\n"
    )
    assert fit.main([str(file), "--out", str(tmp_path / "out")]) == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "error: a.yaml: 8 problems, nothing was run"
    for wanted in (
        "a.yaml:2: backbone: unknown key; did you mean 'backbones'?",
        "a.yaml:4: data.train: no folder ",
        "a.yaml:5: data.batch_size: unknown key",
        "a.yaml:6: probe.0: got 'kn'; expected one of knn, linear, few, finetune, detect; did you mean 'knn'?",
        "a.yaml:7: weights: got 'imagenet'; expected 'timm' or 'random'",
        "a.yaml:8: image_size: unknown key; it belongs at data.image_size",
        "a.yaml:9: shots.0: got 0; expected a number above 0",
        "backbones: is missing; timm's names and wildcards",
    ):
        assert any(line.startswith(wanted) for line in lines), (wanted, lines)
    assert not (tmp_path / "out").exists()
