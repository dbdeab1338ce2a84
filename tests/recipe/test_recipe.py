import json

import jsonschema
import pytest
import yaml

from visiontune.errors import UserError
from visiontune.recipe import RecipeError, load_recipe, parse_recipe
from visiontune.recipe.schema import json_schema
from visiontune.recipe.yaml_lines import read_value, read_yaml

BASE = """task: pretrain
method: {name: mae, mask_ratio: 0.5}
backbone: {name: vit_tiny_patch16_224}
data: {train: sample:digits/train, image_size: 32}
"""


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_recipe_gives_typed_settings(tmp_path):
    recipe = load_recipe(write(tmp_path / "a.yaml", BASE + "optim: {lr: 1e-3}\n")).single
    assert recipe.method.mask_ratio == 0.5
    assert recipe.method.decoder_dim == 512  # the default in the class's signature
    assert recipe.optim.lr == 0.001
    assert recipe.optim.lr_scale == "linear"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1.5e-4", 0.00015), ("no", "no"), ("on", "on"), ("true", True), ("012", 12), ("12:30", "12:30"), ("-.5", -0.5)],
)
def test_yaml_without_surprises(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_overrides_use_the_same_keys(tmp_path):
    path = write(tmp_path / "a.yaml", BASE.replace("{name: mae, mask_ratio: 0.5}", "mae"))
    recipe = load_recipe(path, ["method.mask_ratio=0.6", "optim.lr=2e-4", "data.augment.flip=0", "epochs=3"]).single
    assert (recipe.method.mask_ratio, recipe.optim.lr, recipe.data.augment.flip, recipe.epochs) == (0.6, 2e-4, 0, 3)


def test_a_recipe_may_extend_another(tmp_path):
    write(tmp_path / "base.yaml", BASE)
    path = write(tmp_path / "a.yaml", "extends: base.yaml\nmethod: {mask_ratio: 0.9}\nepochs: 7\n")
    recipe = load_recipe(path).single
    assert (recipe.method.name, recipe.method.mask_ratio, recipe.epochs) == ("mae", 0.9, 7)
    other = load_recipe(write(tmp_path / "b.yaml", "extends: base.yaml\nmethod: simclr\n")).single
    assert other.method.name == "simclr"


def test_recipes_that_extend_each_other_are_an_error(tmp_path):
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(RecipeError, match="extends"):
        load_recipe(path)


STAGES = """seed: 3
trainer: {devices: 1}
stages:
  first:
    task: pretrain
    method: simclr
    backbone: {name: resnet18}
    data: {train: sample:digits/train, image_size: 32}
  second:
    task: classify
    backbone: {weights: stage:first}
    data: {train: sample:digits/train, val: sample:digits/test, image_size: 32}
    seed: 4
"""


def test_keys_beside_stages_are_defaults_of_each(tmp_path):
    stages = load_recipe(write(tmp_path / "a.yaml", STAGES)).stages
    assert list(stages) == ["first", "second"]
    assert [s.seed for s in stages.values()] == [3, 4]
    assert [s.trainer.devices for s in stages.values()] == [1, 1]


def test_an_override_reaches_one_stage_or_every_stage_that_knows_the_key(tmp_path):
    path = write(tmp_path / "a.yaml", STAGES)
    stages = load_recipe(path, ["stages.second.epochs=5", "seed=9", "method.temperature=0.3"]).stages
    assert stages["second"].epochs == 5
    assert [s.seed for s in stages.values()] == [9, 9]
    assert stages["first"].method.temperature == 0.3
    with pytest.raises(RecipeError, match="no stage has it; did you mean 'epochs'"):
        load_recipe(path, ["epoch=5"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights: stage:second", "cannot start from itself"),
        ("weights: stage:third", "there is no stage 'third' before this one; earlier stages: first"),
    ],
)
def test_a_stage_may_start_from_an_earlier_one_alone(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path / "a.yaml", STAGES.replace("weights: stage:first", change)))


MEASURED = {"task": "benchmark", "backbones": ["resnet18", "vit_tiny*"], "data": {"train": "sample:digits/train"}}


def test_a_recipe_may_measure_backbones_instead_of_training_one():
    found = parse_recipe(MEASURED | {"backbones": "resnet18", "probe": "few"}, None, ["data.image_size=[32, 48]", "shots=[2]"])
    assert (found.staged, found.stages) == (False, {})
    assert (found.benchmark.backbones, found.benchmark.probe, found.benchmark.shots) == (["resnet18"], ["few"], [2])
    assert found.benchmark.data.image_size == (32, 48)
    with pytest.raises(UserError, match="recipe: is of the task benchmark, which trains nothing"):
        _ = found.single


def test_a_benchmark_is_no_stage():
    stages = {"first": {"task": "pretrain", "method": "simclr", "backbone": {"name": "resnet18"}, "data": {"train": "x"}}}
    with pytest.raises(RecipeError, match=r"stages.second.task: got 'benchmark'; .*; a benchmark is a recipe of its own"):
        parse_recipe({"stages": stages | {"second": dict(MEASURED)}})
    with pytest.raises(RecipeError, match="backbones: unknown key, no stage has it"):
        parse_recipe({"stages": stages, "backbones": ["resnet18"]})


def test_all_problems_come_at_once_each_with_key_line_and_what_is_near(tmp_path):
    text = """task: pretrain
method: {name: mae, mask_ratio: 1.5}
backbone: {name: vit_tiny_patch16_224}
data: {train: sample:digits/train, image_size: big}
optim:
  weight_deacy: 0.1
lr: 4
epochs: -1
"""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path / "a.yaml", text))
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.yaml: 5 problems, nothing was run"
    for wanted in (
        "a.yaml:2: method.mask_ratio: got 1.5; expected a number below 1",
        "a.yaml:4: data.image_size: got 'big'; expected a whole number or a list",
        "a.yaml:6: optim.weight_deacy: unknown key; did you mean 'weight_decay'",
        "a.yaml:7: lr: unknown key; it belongs at optim.lr",
        "a.yaml:8: epochs: got -1; expected a number above 0",
    ):
        assert any(line.strip().startswith(wanted) for line in lines), wanted


def test_a_key_twice_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match=r"a.yaml:5: the key 'data' stands here a second time \(first in line 4\)"):
        load_recipe(write(tmp_path / "a.yaml", BASE + "data: {train: x}\n"))


def test_a_missing_space_behind_a_colon_is_told_and_not_taken_for_a_key(tmp_path):
    with pytest.raises(RecipeError, match=r"command line: backbone.args: got \{depth:2\}; YAML wants a space .*: \{depth: 2\}"):
        load_recipe(write(tmp_path / "a.yaml", BASE), ["backbone.args={depth:2}"])
    with pytest.raises(RecipeError, match=r"a.yaml:5: got \{lr:1e-3\}"):
        load_recipe(write(tmp_path / "a.yaml", BASE + "optim: {lr:1e-3}\n"))
    assert read_value("{a: , 'b:c': 1, d: sample:digits/train}") == {"a": None, "b:c": 1, "d": "sample:digits/train"}


def test_lines_are_those_of_the_text():
    _, lines = read_yaml("a: 1\nb:\n  c: [1,\n      2]\n", "f")
    assert (lines[("a",)], lines[("b", "c")], lines[("b", "c", "1")]) == ("f:1", "f:3", "f:4")


def test_the_json_schema_accepts_what_the_loader_accepts_and_refuses_what_it_refuses():
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(BASE)
    assert validator.is_valid(good)
    assert validator.is_valid({**good, "method": "simclr"})
    for bad in ({**good, "epochs": -1}, {**good, "typo": 1}, {**good, "method": {"name": "mae", "temperature": 0.1}}):
        assert not validator.is_valid(bad)
        with pytest.raises(RecipeError):
            parse_recipe(dict(bad))


def test_the_json_schema_knows_what_a_benchmark_takes():
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(json_schema())))
    for more, right in (
        ({}, True), ({"backbones": "resnet18", "probe": "knn"}, True), ({"backbones": []}, False), ({"backbones": 3}, False),
        ({"probe": ["kn"]}, False), ({"probe": "kn"}, False), ({"weights": "imagenet"}, False),
            ({"epochs": 3}, True), ({"epoch": 3}, False),
    ):  # fmt: skip
        assert validator.is_valid(MEASURED | more) == right, more
        if right:
            assert parse_recipe(MEASURED | more).benchmark is not None
        else:
            with pytest.raises(RecipeError):
                parse_recipe(MEASURED | more)


def test_the_json_schema_knows_the_ways_to_tune():
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(json_schema())))
    recipe = {"task": "classify", "backbone": {"name": "resnet18"}, "data": {"train": "x", "val": "y"}}
    for tune, right in (("last:12", True), ("lora", True), ("head_then_full", True), ("last", False), ("last:0", False), ("all", False)):
        assert validator.is_valid(recipe | {"tune": tune}) == right
        if right:
            assert parse_recipe(recipe | {"tune": tune}).single.tune == tune
        else:
            with pytest.raises(RecipeError, match="tune: got"):
                parse_recipe(recipe | {"tune": tune})


def test_options_come_from_the_class_that_will_get_them():
    import importlib
    import inspect

    from visiontune.recipe.options import methods, read_options

    for name in methods():
        options = read_options("pretrain", name)
        cls = getattr(importlib.import_module(f"visiontune.pretrain.{name}"), options.class_name)
        signature = inspect.signature(cls.__init__).parameters
        assert {o.name: o.default for o in options.options} == {
            p.name: ... if p.default is p.empty else p.default for p in signature.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
        }
        assert all(o.meaning for o in options.options), f"{name}: an option without a meaning"
