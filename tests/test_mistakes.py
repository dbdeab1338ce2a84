"""What users get wrong: each ends with the cause named, exit status 2 and no traceback."""

import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import run_command
from visiontune.__main__ import main as verb
from visiontune.build import find_pictures
from visiontune.checks import CHECKS
from visiontune.data.folder import list_pictures
from visiontune.errors import UserError
from visiontune.fit import main
from visiontune.recipe import parse_recipe
from visiontune.recipe.options import methods


def simple(pictures, **changes):
    recipe = {
        "task": "pretrain",
        "method": {"name": "mae", "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
        "backbone": {"name": "test_vit"},
        "data": {"train": str(pictures / "train"), "image_size": 32, "batch_size": 8, "workers": 0},
        "trainer": {"accelerator": "cpu"},
        "epochs": 1,
    }
    for dotted, value in changes.items():
        section, *rest = dotted.split("__")
        if rest and value is None:
            del recipe[section][rest[0]]
        elif rest:
            recipe[section] = {**recipe[section], rest[0]: value}
        elif value is None:
            del recipe[section]
        else:
            recipe[section] = value
    return recipe


TASKS = "pretrain, classify, detect, benchmark"
MISTAKES = [
    ("an unknown key", {"data__batchsize": 4}, "data.batchsize: unknown key; did you mean 'batch_size'?"),
    ("a key of another section", {"lr": 0.1}, "lr: unknown key; it belongs at optim.lr"),
    ("a wrong type", {"data__image_size": "large"}, "data.image_size: got 'large'; expected a whole number or a list"),
    ("a number out of range", {"method__mask_ratio": 1.2}, "method.mask_ratio: got 1.2; expected a number below 1"),
    ("nothing to do", {"epochs": 0}, "epochs: got 0; expected a number above 0"),
    ("a missing section", {"backbone": None}, "backbone: is missing"),
    ("a missing task", {"task": None}, f"task: is missing; allowed: {TASKS}"),
    ("an unknown task", {"task": "classification"}, f"task: got 'classification'; allowed: {TASKS}; did you mean 'classify'?"),
    ("an unknown method", {"method": "maee"}, f"method: got 'maee'; allowed: {', '.join(methods())}; did you mean 'mae'?"),
    ("a method's unknown option", {"method__temperature": 1}, "method.temperature: unknown key"),
    ("an unknown backbone", {"backbone__name": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
    ("a backbone that the method cannot train", {"backbone__name": "resnet18"}, "mae needs a plain vision transformer"),
    ("a backbone's unknown argument", {"backbone__args": {"layers": 3}}, "backbone.args: test_vit refuses"),
    ("a missing folder", {"data__train": "/no/such/photos"}, "data.train: no folder /no/such/photos; / holds the folders"),
    ("an unknown sample", {"data__train": "sample:digit/train"}, "did you mean 'digits/train'"),
    ("a batch larger than the data", {"data__batch_size": 1000}, "data.batch_size: got 1000, but there are no more than 48 pictures"),
    ("a batch that accumulation does not divide", {"trainer": {"accumulate_grad_batches": 3, "accelerator": "cpu"}},
     "accumulated batches do not divide; try data.batch_size=6"),
    ("a picture size that patches do not divide", {"data__image_size": 30}, "image_size|patch"),
    ("a stem misspelt", {"backbone__stem": "smal"}, "backbone.stem: got 'smal'; expected 'timm' or 'small'; did you mean 'small'?"),
    ("a stem that timm's weights do not have", {"backbone": {"name": "resnet18", "weights": "timm", "stem": "small"}, "method": "simclr"},
     "backbone.stem: got 'small', but timm's weights were made with timm's stem"),
    ("a stem that is of patches", {"backbone__stem": "small"}, "backbone.args: {patch_size: 4}"),
    ("weights that are not there", {"backbone__weights": "weights.pth"}, "backbone.weights: no file or folder 'weights.pth'"),
    ("weights misspelt", {"backbone__weights": "randm"}, "did you mean 'random'?"),
    ("a stage without stages", {"backbone__weights": "stage:one"}, "there is no stage 'one' before this one"),
    ("an unknown precision", {"trainer": {"precision": "fp16"}}, "trainer.precision: got 'fp16'; expected one of auto, 32-true"),
    ("a probe without class folders", {"probe": {"train": "LYING", "val": "LYING"}}, "has no class folders"),
    ("a mean of one channel", {"data__mean": [0.5]}, "data.mean: got [0.5]; expected"),
    ("betas that never forget", {"optim": {"betas": [0.9, 1.0]}}, "optim.betas.1: got 1.0; expected a number below 1"),
    ("a strategy that is none", {"trainer": {"accelerator": "cpu", "strategy": "dpp"}}, "trainer: Lightning refuses these settings"),
    ("more views than a method takes", {"data__augment": "dino"}, "data.augment: gives 2 views and 8 small ones; "),
    ("a transform that is none", {"data__augment": {"albumentations": ["Rotat"]}}, "no transform 'Rotat'; did you mean 'Rotate'"),
    ("a range turned round", {"data__augment": {"crop_scale": [0.9, 0.2]}}, "got [0.9, 0.2]; expected the smaller number first"),
    ("a range of nothing", {"data__value_range": [5, 5]}, "data.value_range: got [5, 5]; expected two different numbers"),
    ("views that are none", {"data__augment": {"crop_scale": [0.2]}}, "data.augment.crop_scale"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_the_cause_is_named(tmp_path, pictures, capsys, changes, message):
    recipe = simple(pictures, **changes)
    if "probe" in changes:
        recipe["probe"] = dict.fromkeys(("train", "val"), str(pictures / "train" / "lying"))
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main([str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert re.search(message if "|" in message else re.escape(message), error), error


def test_folders_and_files_that_are_not_what_they_should_be(tmp_path, pictures, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").write_bytes(b"")
    (tmp_path / "weights.pth").write_text("not weights at all")
    for changes, message in (
        ({"data__train": str(tmp_path / "empty")}, "it is empty"),
        ({"data__train": str(tmp_path / "texts")}, "it holds notes.txt"),
        ({"data__train": str(tmp_path / "phone")}, "it holds IMG_1.HEIC; 1 file of .heic left out, which are not read here; convert them"),
        ({"backbone__weights": str(tmp_path / "weights.pth")}, "is not a weights file (it begins with b'not weights"),
    ):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(simple(pictures, **changes), sort_keys=False))
        assert main([str(path), "--out", str(tmp_path / "run" / message[:9])]) == 2
        assert message in capsys.readouterr().err


def test_labelled_folders_that_do_not_fit(tmp_path, pictures, capsys):
    for part, classes in (("train", "ab"), ("val", "abz")):
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / part / name / f"{i}.png")
    recipe = {"task": "classify", "backbone": {"name": "test_vit"}, "epochs": 1}
    recipe["data"] = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val"), "batch_size": 2, "image_size": 32}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main([str(path), "--out", str(tmp_path / "run")]) == 2
    assert "classes that training has not: z; training has a, b" in capsys.readouterr().err
    assert main([str(path), "--out", str(tmp_path / "run2"), "data.labels_fraction=0.5", "data.labels_per_class=1"]) == 2
    assert "stands beside data.labels_fraction" in capsys.readouterr().err


def test_one_class_is_too_few_to_train_on_and_enough_to_validate_on(tmp_path, pictures, capsys):
    shutil.copytree(pictures / "val" / "standing", tmp_path / "one" / "standing")
    one, two = str(tmp_path / "one"), str(pictures / "train")
    for section, train, val, told in (
        (
            "data",
            one,
            two,
            f"data.train: {one} has only one class folder (standing); labelled pictures lie in one sub-folder a class, of two",
        ),
        ("data", two, one, ""),
        ("probe", one, two, f"probe.train: {one} has only one class folder (standing)"),
        ("probe", two, one, ""),
    ):
        raw = {"task": "classify" if section == "data" else "pretrain", "backbone": {"name": "test_vit"}}
        raw |= {"method": "mae", "data": {"train": two}} if section == "probe" else {}
        raw[section] = {"train": train, "val": val}
        if told:
            with pytest.raises(UserError, match=re.escape(told)):
                parse_recipe(raw, checks=CHECKS)
            continue
        tables = find_pictures(parse_recipe(raw | {"data": raw["data"] | {"batch_size": 8}}, checks=CHECKS).single)
        judged = tables.val if section == "data" else tables.probe[1]
        assert (judged.classes, judged.labels.tolist()) == (("lying", "standing"), [1] * 8)


def test_what_is_trained_on_does_not_validate(tmp_path, pictures):
    train = pictures / "train"
    (tmp_path / "link").symlink_to(train)
    raw = {"task": "classify", "backbone": {"name": "test_vit"}}
    message = "data.val: is {}, as data.train is: .*; give other pictures, or data.val: 0.2"
    for one, other in ((train, f"{train}/"), (train, tmp_path / "link"), ("sample:digits/train", "sample:digits/train")):
        with pytest.raises(UserError, match=message.format(one)):
            parse_recipe(raw | {"data": {"train": str(one), "val": str(other)}}, checks=CHECKS)
    (tmp_path / "t.csv").write_text(f"path,label,split\n{train}/lying/000.png,a,train\n{train}/lying/001.png,b,val\n")
    assert parse_recipe(raw | {"data": dict.fromkeys(("train", "val"), str(tmp_path / "t.csv"))}, checks=CHECKS)
    free = {"task": "pretrain", "method": "mae", "backbone": raw["backbone"], "data": {"train": str(train)}}
    assert parse_recipe(free | {"probe": {"train": str(train), "val": str(pictures / "val")}}, checks=CHECKS)


def test_parts_of_a_data_set_are_not_classes(tmp_path, pictures, capsys):
    """A folder of train, validation and test, each with class folders, as it comes out of many archives."""
    whole = tmp_path / "clothing"
    for part, name in (("train", "train"), ("val", "Validation"), ("val", "test")):
        shutil.copytree(pictures / part, whole / name)
    (whole / ".cache").mkdir()
    listed = f"{whole} holds the folders Validation, test, train, which are parts of a data set and no classes; give "
    train, val, test = (str(whole / name) for name in ("train", "Validation", "test"))

    raw = {"task": "classify", "backbone": {"name": "test_vit"}, "data": {"train": str(whole), "val": 0.2}}
    with pytest.raises(UserError, match=re.escape(f"data.train: {listed}data.train={train} data.val={val}")):
        parse_recipe(raw, checks=CHECKS)
    with pytest.raises(UserError, match=re.escape(f"data.train: {listed}data.train={train} data.val={val}")):
        find_pictures(parse_recipe(raw).single)
    raw["data"] = {"train": train, "val": str(whole), "batch_size": 8}
    with pytest.raises(UserError, match=re.escape(f"data.val: {listed}data.val={val}")):
        parse_recipe(raw, checks=CHECKS)
    with pytest.raises(UserError, match=re.escape(f"evaluate: {listed}{test}") + "$"):
        list_pictures(whole, key="evaluate", labelled=True, fewest=1)
    assert verb(["probe", "test_resnet", str(whole), "--weights", "random"]) == 2
    assert f"holds the folders Validation, test, train; give {train} --val {val}" in capsys.readouterr().err

    assert len(list_pictures(whole, key="data.train.images")) == 80  # nothing is wrong with it where no classes are asked for
    assert verb(["check", str(whole)]) == 0
    assert f"check: {listed}{train}\n" in capsys.readouterr().out
    assert verb(["shard", str(whole), str(tmp_path / "shards")]) == 0
    assert f"shard: {listed}{train}\n" in capsys.readouterr().out
    assert not (tmp_path / "shards" / "classes.txt").exists()

    shutil.copytree(pictures / "train", tmp_path / "vehicles")
    (tmp_path / "vehicles" / "lying").rename(tmp_path / "vehicles" / "train")
    assert list_pictures(tmp_path / "vehicles", labelled=True).classes == ("standing", "train")
    shutil.rmtree(tmp_path / "vehicles" / "standing")
    assert list_pictures(tmp_path / "vehicles", key="data.val", labelled=True, fewest=1).classes == ("train",)


def test_through_the_real_command_there_is_no_traceback_either(tmp_path):
    (tmp_path / "r.yaml").write_text("task: pretrain\nmethod: [\n")
    done = run_command("visiontune.fit", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "r.yaml:3: not YAML" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    done = run_command("visiontune.fit", "picture.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a text file" in done.stderr
    done = run_command("visiontune.fit", "nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "no file nothing.yaml and no shipped recipe of that name" in done.stderr
    assert run_command("visiontune.fit", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "PICTURES", "--workers", "-1"], "--workers: got '-1'; expected a whole number, 0 or more"),
        (["embed", "RUN", "PICTURES", "--out", "e.npz", "--workers", "two"], "--workers: got 'two'; expected a whole number, 0 or more"),
        (["embed", "resnet18", "PICTURES", "--out", "e.npz", "--image-size", "0"], "--image-size: got '0'; expected a whole number, 1"),
        (["predict", "RUN", "PICTURES", "--batch-size", "0"], "--batch-size: got '0'; expected a whole number, 1 or more"),
        (["probe", "resnet18", "PICTURES", "--at", "0"], "--at: got '0'; expected a whole number, 1 or more"),
        (["benchmark", "PICTURES", "--at", "-64"], "--at: got '-64'; expected a whole number, 1 or more"),
        (["compare", "RECIPE", "--min-steps", "-1"], "--min-steps: got '-1'; expected a whole number, 0 or more"),
        (["check", "PICTURES", "--tiny", "-1"], "--tiny: got '-1'; expected a whole number, 0 or more"),
    ],
)
def test_numbers_that_an_option_cannot_have(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        verb(words)
    assert f"error: argument {message}" in capsys.readouterr().err
