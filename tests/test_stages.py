"""Stages in one file: each hands its backbone to a later one, and a broken one is gone on with."""

import json

import yaml

import visiontune
from tests.conftest import run_command
from tests.test_fit import write
from visiontune.fit import main


def staged(recipes):
    small = {"trainer": recipes["simclr"]["trainer"], "epochs": 2}
    pre = {k: v for k, v in recipes["simclr"].items() if k not in small}
    tuned = {k: v for k, v in recipes["classify"].items() if k not in small}
    return small | {
        "stages": {
            "pretrain": pre,
            "finetune": tuned | {"backbone": {"weights": "stage:pretrain"}},
            "scratch": tuned,
        }
    }


def test_stages_hand_on_their_backbone_and_a_broken_stage_is_gone_on_with(tmp_path, recipes):
    path, out = write(tmp_path / "s.yaml", staged(recipes)), tmp_path / "run"
    done = run_command("visiontune.fit", path, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "64" not in done.stderr
    result = json.loads((out / "result.json").read_text())["stages"]
    assert list(result) == ["pretrain", "finetune", "scratch"]
    assert "from the weights of pretrain" in result["finetune"]["what"]
    assert "points (standard error" in done.stdout
    log = (out / "finetune" / "log.txt").read_text()
    assert f"loaded from {out}/pretrain/weights/backbone" in log
    assert "finetune/report.html" in (out / "report.html").read_text()

    (out / "result.json").unlink()
    for file in ("result.json", "checkpoints/last.ckpt"):
        (out / "scratch" / file).unlink()
    before = (out / "scratch/weights/model/model.safetensors").read_bytes()
    again = run_command("visiontune.fit", "--resume", str(out))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 2
    assert (out / "scratch/weights/model/model.safetensors").read_bytes() == before


def test_weights_of_a_run_start_a_new_one(tmp_path, recipes):
    main([write(tmp_path / "p.yaml", recipes["simclr"] | {"epochs": 1}), "--out", str(tmp_path / "pre")])
    recipe = recipes["classify"] | {"epochs": 1, "backbone": {"weights": str(tmp_path / "pre")}}
    del recipe["data"]["image_size"]
    assert main([write(tmp_path / "c.yaml", recipe), "--out", str(tmp_path / "tuned")]) == 0
    assert yaml.safe_load((tmp_path / "tuned/recipe.yaml").read_text())["data"]["image_size"] == 32
    assert json.loads((tmp_path / "tuned/result.json").read_text())["what"].endswith("from the weights of pre, 1 epoch")


def test_a_small_stem_goes_through_stages_to_predictions(tmp_path, recipes, pictures, capsys):
    """Every tensor would fit timm's stem as well: what tells them apart is the recipe and the config.json alone."""
    out, recipe = tmp_path / "run", staged(recipes)
    recipe["stages"]["pretrain"]["backbone"] = {"name": "resnet10t", "args": {"channels": [8, 8, 16, 16]}, "stem": "small"}
    del recipe["stages"]["scratch"], recipe["stages"]["finetune"]["data"]["image_size"]
    path = write(tmp_path / "s.yaml", recipe)
    assert main([path, "stages.finetune.backbone.stem=timm", "--out", str(out)]) == 2
    assert "stages.finetune: backbone.stem: got 'timm', but stage:pretrain is made with the stem 'small'" in capsys.readouterr().err
    assert main([path, "--out", str(out), "epochs=1"]) == 0
    log = (out / "finetune" / "log.txt").read_text()
    assert "with a small stem: as its weights were made" in log
    assert "stem small: its maps have strides of 1, 2, 4, 8 pixels" in log
    assert "image_size 32: as its weights were made" in log
    assert yaml.safe_load((out / "finetune" / "recipe.yaml").read_text())["backbone"]["stem"] == "small"
    model = visiontune.load(out)
    assert model.network.conv1[0].stride == (1, 1)
    assert len(list(model.predict(sorted((pictures / "val").rglob("*.png"))))) == 16
    card = (out / "finetune" / "README.md").read_text()
    assert 'visiontune.load("finetune/weights/model").network' in card
    assert "timm.create_model" not in card

    again = recipes["classify"] | {"epochs": 1, "backbone": {"weights": str(out / "pretrain"), "stem": "timm"}}
    assert main([write(tmp_path / "c.yaml", again), "--dry-run"]) == 2
    assert "was made with the stem 'small'; set backbone.stem: small" in capsys.readouterr().err


def test_a_mistake_leaves_no_folder_behind_and_one_in_a_later_stage_is_found_before_the_first(tmp_path, recipes, capsys):
    recipe = recipes["simclr"] | {"epochs": 1}
    path, out = write(tmp_path / "r.yaml", recipe), tmp_path / "run"
    assert main([path, "--out", str(out), "data.batch_size=1000"]) == 2
    assert not out.exists()
    assert main([path, "--out", str(out)]) == 0
    stages = staged(recipes)
    stages["stages"]["finetune"]["data"] = stages["stages"]["finetune"]["data"] | {"batch_size": 1000}
    assert main([write(tmp_path / "s.yaml", stages), "--out", str(tmp_path / "stages")]) == 2
    assert "stages.finetune: data.batch_size: got 1000" in capsys.readouterr().err
    assert not (tmp_path / "stages").exists()
