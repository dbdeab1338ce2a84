"""What a comparison consists of, before anything runs."""

import json

import pytest
import safetensors.torch
import timm
import yaml

from tests.conftest import CONV
from visiontune import backbones, build
from visiontune.__main__ import main
from visiontune.compare.labels import MIN_STEPS, Labels, fit_to_labels
from visiontune.compare.network import short_names
from visiontune.compare.plan import load_plan, make_plan
from visiontune.errors import UserError
from visiontune.export import save_timm_folder
from visiontune.recipe import parse_recipe


@pytest.fixture
def exported(tmp_path):
    """Exports a small convnet as a pretraining run would."""

    def export(name="made", image_size=32, architecture=CONV["name"], args=CONV["args"], stem="timm"):
        model = backbones.create(architecture, image_size=image_size, args=args, stem=stem)
        save_timm_folder(model, tmp_path / name, model.spec, mean=[0.5] * 3, std=[0.5] * 3)
        return str(tmp_path / name)

    return export


def planned(tmp_path, recipe, *, weights=("random",), labels=("100%",), seeds=(0,), overrides=(), min_steps=MIN_STEPS):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return make_plan(str(file), weights=weights, labels=labels, seeds=seeds, overrides=overrides, min_steps=min_steps)


def test_every_combination_is_a_run_and_seeds_come_one_after_another(tmp_path, recipes):
    plan = planned(tmp_path, recipes["classify"], weights=("random", "timm"), labels=("100%", "3", "25%"), seeds=(0, 5))
    assert len({c.name for c in plan.cells}) == len(plan.cells) == 12
    assert [c.seed for c in plan.cells] == [0] * 6 + [5] * 6
    assert plan.labels == ["3 a class", "25 %", "100 %"]
    first = plan.cells[0]
    assert (first.name, first.pictures, first.recipe.data.labels_fraction) == ("random/100_percent/seed_0", 48, None)
    assert [c.recipe.data.labels_per_class for c in plan.cells if c.labels == "3 a class"] == [3] * 4
    assert {c.recipe.seed for c in plan.cells} == {0, 5}


@pytest.mark.parametrize(
    ("monitor", "metric"), [("val/macro_f1", "macro_f1"), ("val/top1", "top1"), ("val/loss", "top1"), ("val/ece", "top1"), ("ece", "top1")]
)
def test_runs_are_compared_by_what_the_recipe_monitors_under_either_name(tmp_path, recipes, monitor, metric):
    assert planned(tmp_path, recipes["classify"], overrides=(f"monitor={monitor}",)).metric == metric


def test_recipes_of_one_seed_and_number_of_labels_differ_in_their_weights_alone(tmp_path, recipes, exported):
    plan = planned(tmp_path, recipes["classify"], weights=("random", exported()), labels=("3", "25%"), seeds=(0, 1))
    for seed in (0, 1):
        for labels in plan.labels:
            own = [c.recipe.model_dump() for c in plan.cells if (c.seed, c.labels) == (seed, labels)]
            assert len({d["backbone"].pop("weights") for d in own}) == 2
            assert own[0] == own[1]


def test_a_run_folder_tells_the_network_for_all_weights(tmp_path, recipes, exported):
    recipe = recipes["classify"] | {"backbone": {}}
    del recipe["data"]["image_size"]
    plan = planned(tmp_path, recipe, weights=("random", exported(image_size=64, args=CONV["args"] | {"patch_size": 4})))
    for cell in plan.cells:
        assert cell.recipe.backbone.name == CONV["name"]
        assert cell.recipe.backbone.args == CONV["args"] | {"patch_size": 4}
        assert cell.recipe.data.image_size == 64
    assert any("as made was made, for all weights" in note for note in plan.notes)


def test_a_small_stem_holds_for_random_weights_too(tmp_path, recipes, exported):
    args = {"channels": [8, 8, 16, 16]}
    folder = exported(architecture="resnet10t", args=args, stem="small")
    plan = planned(tmp_path, recipes["classify"] | {"backbone": {"name": "resnet10t"}}, weights=("random", folder))
    assert [c.recipe.backbone.stem for c in plan.cells] == ["small", "small"]


MISTAKES = [
    ({"labels": ("1.5",)}, "--labels: got '1.5'; expected a share of the labels, as 1% or 100%"),
    ({"labels": ("0%",)}, "--labels: got '0%'"),
    ({"labels": ("101%",)}, "--labels: got '101%'"),
    ({"labels": ("24", "100%")}, "24 a class and 100 % are both 48 pictures here; give one of them"),
    ({"weights": ("random", "random")}, "--weights: got random random; expected each of them once"),
    ({"overrides": ("seed=4",)}, "seed: a comparison sets it itself"),
    ({"weights": ("random", "no/such.pth")}, "backbone.weights: no file or folder 'no/such.pth'"),
    ({"overrides": ("epoch=4",)}, "epoch: unknown key; did you mean 'epochs'?"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes_are_one_sentence(tmp_path, recipes, changes, message):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, recipes["classify"], **changes)
    assert message in str(caught.value)


def test_weights_of_other_networks_and_sizes_are_told_before_anything_runs(tmp_path, recipes, exported, capsys):
    recipe = recipes["classify"]
    other = exported("other", architecture="test_resnet", args={})
    with pytest.raises(UserError, match="--weights: other was made as test_resnet, but the recipe's backbone.name is convnext_atto"):
        planned(tmp_path, recipe, weights=("random", other))
    with pytest.raises(UserError, match="a and b are of different networks .arguments"):
        planned(tmp_path, recipe, weights=(exported("a"), exported("b", args=CONV["args"] | {"patch_size": 4})))
    del recipe["data"]["image_size"]
    with pytest.raises(UserError, match=r"data.image_size: weights were made for different sizes of pictures \(a 32, c 64\)"):
        planned(tmp_path, recipe, weights=(exported("a"), exported("c", image_size=64)))
    wrong = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file(wrong, tmp_path / "wrong.safetensors")
    words = [
        "compare",
        str(tmp_path / "r.yaml"),
        "--weights",
        "random",
        str(tmp_path / "wrong.safetensors"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "data.image_size=32"]) == 2
    assert "--weights wrong: backbone.weights: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_one_classify_recipe_can_be_compared(tmp_path, recipes):
    with pytest.raises(UserError, match="is of the task pretrain; give a recipe that classifies or detects"):
        planned(tmp_path, recipes["simclr"])
    with pytest.raises(UserError, match="has the stages one"):
        planned(tmp_path, {"stages": {"one": recipes["classify"]}})


def test_poolings_may_differ_and_are_told(tmp_path, recipes, exported):
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = {"architecture": "vit_tiny_patch16_224", "args": args}
    mean = vit | {"args": args | {"global_pool": "avg", "fc_norm": False}}
    recipe = recipes["classify"] | {"backbone": {}}
    plan = planned(tmp_path, recipe, weights=(exported("token", **vit), exported("mean", **mean)))
    assert "mean: the embedding is pooled as in the weights' own training" in plan.notes
    assert plan.cells[0].recipe.backbone.args == args


@pytest.mark.parametrize("name", [None, "vit_tiny_patch16_224.augreg_in21k"])
def test_a_runs_pooling_is_not_that_of_weights_that_were_trained_with_another(tmp_path, recipes, exported, name):
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    run = exported("mae", architecture="vit_tiny_patch16_224", args=shape | {"global_pool": "avg", "fc_norm": False})
    recipe = recipes["classify"] | {"backbone": {"name": name} if name else {}}
    plan = planned(tmp_path, recipe, weights=(run, "timm", "random"))
    assert "mae: the embedding is pooled as in the weights' own training" in plan.notes
    args = {}
    for cell in plan.cells:
        args[cell.weights] = build.derive(cell.recipe, build.find_pictures(cell.recipe), 1)[0].backbone.args
    assert args == {"mae": shape | {"global_pool": "avg", "fc_norm": False}, "timm": shape, "random": shape}
    assert not any("is derived and differs" in note and "args" in note for note in plan.notes)
    given = planned(tmp_path, recipe, weights=(run, "random"), overrides=("backbone.args.global_pool=avg",))
    assert [cell.recipe.backbone.args["global_pool"] for cell in given.cells] == ["avg", "avg"]


def test_all_weights_see_pictures_of_one_size_and_an_older_comparison_keeps_its_own(tmp_path, recipes):
    recipe = recipes["classify"] | {"backbone": {"name": "test_resnet"}}
    del recipe["data"]["image_size"]
    plan = planned(tmp_path, recipe, weights=("random", "timm"))
    assert [cell.recipe.data.image_size for cell in plan.cells] == [160, 160]
    assert "image_size 160: as timm's weights were made, for all weights" in plan.notes
    alone = planned(tmp_path, recipe)
    assert [cell.recipe.data.image_size for cell in alone.cells] == [224]
    del plan.settings["recipe"]["data"]["image_size"]  # as it was written once, when all saw 224 pixels
    plan.save(tmp_path / plan.FILE)
    older = load_plan(tmp_path)
    assert [cell.recipe.data.image_size for cell in older.cells] == [224, 224]
    assert planned(tmp_path, recipe, weights=("random", "timm")).differs_from(older) == "data.image_size: 224, now 160"


def test_a_share_for_validation_is_set_aside_once_for_all_seeds(tmp_path, recipes):
    recipe = recipes["classify"]
    recipe["data"] |= {"val": 0.25}

    def parts(plan):
        """What judges each run, and all that it could be trained on, by seed."""
        found = {}
        for cell in plan.cells:
            tables = build.find_pictures(cell.recipe)
            assert not names(tables.train) & names(tables.val)
            found.setdefault(cell.seed, []).append((names(tables.val), names(tables.train)))
        return found

    plan = planned(tmp_path, recipe, labels=("100%", "3"), seeds=(0, 1))
    assert "data.val_seed 0: the share 0.25 of the pictures is set aside once, and judges all seeds" in plan.notes
    found = parts(plan)
    assert found[0][0] == found[1][0]
    assert found[0][1][0] == found[1][1][0]
    assert found[0][1][1] != found[1][1][1]  # labels of each seed's own, of the same pool
    assert plan.judged_alike
    assert planned(tmp_path, recipe, overrides=("data.val_seed=7",)).cells[0].recipe.data.val_seed == 7

    del plan.settings["recipe"]["data"]["val_seed"]  # as it was written once
    plan.save(tmp_path / plan.FILE)
    older = load_plan(tmp_path)
    assert [cell.recipe.data.val_seed for cell in older.cells] == [None] * 4
    found = parts(older)
    assert found[0][0][0] != found[1][0][0]
    assert not older.judged_alike
    assert planned(tmp_path, recipe, labels=("100%", "3"), seeds=(0, 1)).differs_from(older) == "data.val_seed: None, now 0"


def names(table):
    return {table.path(i) for i in range(len(table))}


def classify(recipes, epochs, batch=16, **more):
    raw = recipes["classify"] | {"epochs": epochs} | more
    return parse_recipe(raw | {"data": raw["data"] | {"batch_size": batch}}).single


def steps_of(recipe, pictures):
    return pictures // recipe.data.batch_size * recipe.data.repeats * recipe.epochs


@pytest.mark.parametrize("few", [10, 16, 50, 500, 4999])
@pytest.mark.parametrize(("epochs", "full"), [(1, 5000), (8, 5000), (8, 200), (100, 5000)])
def test_few_labels_get_the_steps_of_all_labels_but_no_more_than_asked(recipes, few, epochs, full):
    before, few = classify(recipes, epochs), min(few, full)
    found, why = fit_to_labels(before, few, full, 500)
    wanted = min(500, full // 16 * epochs)
    assert steps_of(found, few) >= wanted
    assert found.data.batch_size == min(16, few)
    assert found.epochs % found.trainer.check_val_every_n_epoch == 0
    if few >= 16 and steps_of(before, few) >= wanted:
        assert (found, why) == (before, "")
    else:
        between = few // found.data.batch_size * found.data.repeats * found.trainer.check_val_every_n_epoch  # steps, of validations
        assert steps_of(found, few) - wanted < 2 * between
        assert found.epochs // found.trainer.check_val_every_n_epoch < 24
    assert before == classify(recipes, epochs)  # untouched


def test_the_warm_up_grows_with_the_epochs_and_zero_steps_leave_the_recipe_alone(recipes):
    before = classify(recipes, 8, optim={"lr": 0.1, "warmup_epochs": 2})
    found, _ = fit_to_labels(before, 160, 1600, 500)
    assert found.epochs >= 50
    assert found.optim.warmup_epochs / found.epochs == 2 / 8
    assert fit_to_labels(before, 160, 1600, 0) == (before, "")
    open_ended = classify(recipes, None)
    assert fit_to_labels(open_ended, 160, 1600, 500)[1] == ""
    assert fit_to_labels(open_ended, 160, 1600, 500, derived=50) == (open_ended, "")  # enough: derived again by the run
    assert fit_to_labels(open_ended, 160, 1600, 500, derived=8)[0].epochs == found.epochs


def test_labels_are_shares_or_numbers():
    assert Labels.of("10%").keys == {"labels_fraction": 0.1, "labels_per_class": None}
    assert Labels.of("10").keys == {"labels_fraction": None, "labels_per_class": 10}
    assert Labels.of("100%").keys == {"labels_fraction": None, "labels_per_class": None}
    assert Labels.of("0.5%").name == "0.5 %"


def test_names_tell_weights_apart(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    file = str(tmp_path / "w.pth")
    assert list(short_names(["random", "timm", "/r/simclr", "/r/mae/weights/backbone", file])) == ["random", "timm", "simclr", "mae", "w"]
    assert list(short_names(["/a/run", "/b/run", "/b/other"])) == ["a/run", "b/run", "other"]


def test_a_saved_plan_is_the_same_plan_and_another_recipe_is_told(tmp_path, recipes, exported):
    recipe = recipes["classify"]
    plan = planned(tmp_path, recipe, weights=("random", exported()), labels=("3",), seeds=(0, 1))
    plan.save(tmp_path / plan.FILE)
    again = load_plan(tmp_path)
    assert [(c.name, c.recipe, c.steps) for c in again.cells] == [(c.name, c.recipe, c.steps) for c in plan.cells]
    assert plan.differs_from(again) == ""
    other = planned(tmp_path, recipe, overrides=("optim.lr=0.5",), min_steps=7)
    assert other.differs_from(again) == "optim.lr: 0.003, now 0.5, min_steps: 500, now 7"
    more = planned(tmp_path, recipe, weights=("random", exported(), "timm"), labels=("3", "100%"), seeds=(0, 1, 2))
    assert more.differs_from(again) == ""
    namesake = planned(tmp_path, recipe, weights=("random", exported("elsewhere/made")))
    assert namesake.differs_from(again) == f"weights made: {tmp_path}/made, now {tmp_path}/elsewhere/made"
    assert json.dumps(plan.settings["weights"]) == json.dumps({"random": "random", "made": str(tmp_path / "made")})


@pytest.mark.parametrize("seeds", ["0", "-2"])
def test_no_seed_is_told(seeds, capsys):
    assert main(["compare", "classify/full", "--weights", "random", "--seeds", seeds]) == 2
    assert f"error: --seeds: got {seeds}; expected how many, 1 or more, or several seeds themselves" in capsys.readouterr().err
