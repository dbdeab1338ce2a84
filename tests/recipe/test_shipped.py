"""Every recipe that ships is loaded and built."""

from pathlib import Path

import pytest
import timm

from tests.data.detection.sets import write_set
from visiontune import backbones, build, fit
from visiontune.__main__ import main as verbs
from visiontune.errors import UserError
from visiontune.export import save_timm_folder
from visiontune.recipe import find_recipe, load_recipe, shipped_recipes
from visiontune.recipe.detection import BoxSource
from visiontune.recipe.schema import is_path

WIDE = ("projector_hidden", "projector_out", "predictor_hidden", "prototypes", "queue")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """An exported folder of random weights, for recipes that would fetch a teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    model = timm.create_model("test_resnet", num_classes=0)
    save_timm_folder(model, folder, backbones.Spec("test_resnet"), mean=[0.5] * 3, std=[0.5] * 3)
    return folder


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("boxes"), {f"{i}.png": ((64, 48), [("dog", (10, 5, 30, 25))]) for i in range(8)})


@pytest.mark.parametrize("name", shipped_recipes())
def test_loads_and_builds(name, pictures, annotated, teacher, monkeypatch, capsys):
    # What a user gives on the command line: own folders, and here small pictures, batches, heads and backbones of random weights.
    monkeypatch.chdir(pictures)
    loaded = load_recipe(name)
    if loaded.benchmark is not None:
        words = [name, "data.train=train", "data.val=val", "weights=random", "--dry-run", "--out", str(teacher / "out")]
        assert fit.main(words) == 0
        assert capsys.readouterr().out.count(": to measure") == len(loaded.benchmark.backbones)
        return
    for stage, recipe in loaded.stages.items():
        recipe = recipe.model_copy(deep=True)
        if recipe.task == "detect":
            recipe.data.train = recipe.data.val = BoxSource(**annotated.coco)
            recipe.data.image_size = 64
        elif not recipe.data.train.startswith("sample:"):
            recipe.data.train = str(pictures / "train")
        recipe.data.batch_size = 8
        if recipe.task == "classify":
            recipe.data.labels_per_class = 4 if not stage else recipe.data.labels_per_class
            if not str(recipe.data.val).startswith("sample:"):
                recipe.data.val = str(pictures / "val")
        elif recipe.task == "pretrain":
            recipe.probe = None
            for option in WIDE:
                if getattr(recipe.method, option, None):
                    setattr(recipe.method, option, min(64, getattr(recipe.method, option)))
            if hasattr(recipe.method, "teacher"):
                recipe.method.teacher = str(teacher)
        if is_path(recipe.backbone.weights) or recipe.backbone.weights.startswith("stage:") or recipe.backbone.weights == "timm":
            recipe.backbone.weights = "random"
            recipe.backbone.name = recipe.backbone.name or "resnet10t"
        if str(recipe.backbone.name).startswith("vit_"):
            recipe.backbone.args = recipe.backbone.args | {"depth": 2}
        tables = build.find_pictures(recipe)
        derived, notes = build.derive(recipe, tables, processes=1)
        module, _ = build.make_module(derived, tables)
        assert module.total_steps == len(tables.train) // 8 * derived.epochs * getattr(recipe.data, "repeats", 1)
        assert notes


@pytest.mark.parametrize("name", shipped_recipes())
def test_says_what_it_is_for_and_where_its_numbers_come_from(name):
    header = [line for line in find_recipe(name).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert all(word in text for word in ("Command:", "Needs:", "Numbers:", "Result:")), header
    assert f"visiontune.fit {name}" in text


def test_a_recipe_is_found_by_its_last_name_and_what_is_near_is_named():
    assert find_recipe("quickstart").name == "quickstart.yaml"
    assert find_recipe("pretrain/mae") == find_recipe("mae.yaml")
    with pytest.raises(Exception, match="did you mean 'quickstart'"):
        find_recipe("quikstart")


def test_what_lies_beside_a_misspelt_file_is_named_and_a_run_is_no_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("flowers.yaml", "run/recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("task: classify\n")
    with pytest.raises(UserError, match="no file flowers.yml and no shipped recipe of that name; did you mean 'flowers.yaml'"):
        find_recipe("flowers.yml")
    with pytest.raises(UserError, match=f"no file q.yaml and .*; {tmp_path} holds flowers.yaml; `python -m visiontune list` names"):
        find_recipe("q.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        find_recipe("quikstart.yaml")
    with pytest.raises(UserError, match="run is a run; its recipe is run/recipe.yaml, to go on with it: --resume run"):
        find_recipe("run")
    assert verbs(["show", "run"]) == 0
    assert capsys.readouterr().out == "task: classify\n"
