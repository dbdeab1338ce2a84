"""What several processes add to a run: gradients in place and in a known order, or weights in shares, and the same training."""

import json

import pytest
import torch
import yaml

from tests.conftest import VIT, run_command
from visiontune import MAE
from visiontune.build.trainer import _strategy
from visiontune.errors import UserError
from visiontune.fit import main
from visiontune.recipe import parse_recipe

DDP = {"accelerator": "cpu", "devices": 2}


def write(path, recipe):
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def strategy_of(raw, **trainer):
    return _strategy(parse_recipe(raw | {"trainer": DDP | trainer}).single)


def test_ddp_is_told_what_it_may_rely_on(recipes):
    options = strategy_of(recipes["mae"])._ddp_kwargs
    assert options == {"gradient_as_bucket_view": True, "static_graph": True, "find_unused_parameters": False}
    assert not strategy_of(recipes["mae"], accumulate_grad_batches=2)._ddp_kwargs["static_graph"]
    assert not strategy_of(recipes["classify"])._ddp_kwargs["static_graph"]
    joining = strategy_of(recipes["classify"] | {"tune": "head_then_full"})._ddp_kwargs
    assert joining == {"gradient_as_bucket_view": True, "static_graph": False, "find_unused_parameters": True}
    assert strategy_of(recipes["mae"], strategy="ddp_spawn") == "ddp_spawn"  # what a recipe names stays
    assert strategy_of(recipes["mae"], devices=1) == "auto"
    with pytest.raises(UserError, match="got fsdp with tune: head_then_full, whose first part could not be resumed"):
        strategy_of(recipes["classify"] | {"tune": "head_then_full"}, strategy="fsdp")


def test_a_notebook_has_strategies_of_its_own(recipes, monkeypatch):
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    assert strategy_of(recipes["mae"]) == "auto"
    assert strategy_of(recipes["classify"] | {"tune": "head_then_full"}) == "ddp_notebook_find_unused_parameters_true"


def test_a_run_of_whole_weights_does_not_go_on_with_shares(tmp_path, recipes, capsys):
    path = write(tmp_path / "r.yaml", recipes["mae"])
    assert main([path, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "result.json").unlink()
    assert main(["--resume", str(tmp_path / "run"), "trainer.strategy=fsdp"]) == 2
    assert "got fsdp, but this run began with auto" in capsys.readouterr().err


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=False)["state_dict"]


@pytest.mark.parametrize("kind", ["mae", "dino"])
def test_it_trains_the_same_as_without_being_told(tmp_path, recipes, kind):
    path = write(tmp_path / "r.yaml", recipes[kind] | {"epochs": 1})
    for name in ("ddp", "ddp_find_unused_parameters_false"):
        done = run_command(
            "visiontune.fit", path, "--out", str(tmp_path / name), "trainer.devices=2", f"trainer.strategy={name}", OMP_NUM_THREADS="1"
        )
        assert done.returncode == 0, done.stderr
    ours, plain = weights(tmp_path / "ddp"), weights(tmp_path / "ddp_find_unused_parameters_false")
    assert all(torch.equal(v, plain[k]) for k, v in ours.items())


@pytest.mark.parametrize("kind", ["classify", "mae"])
def test_weights_in_shares_train_what_one_process_does(tmp_path, recipes, kind):
    recipe = recipes[kind] | {"epochs": 2, "optim": {"name": "adamw", "lr": 0.01, "clip": 1.0}, "backbone": VIT}
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "one")]) == 0
    done = run_command(
        "visiontune.fit", path, "--out", str(tmp_path / "two"), "trainer.devices=2", "trainer.strategy=fsdp", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    if kind == "classify":
        for k, v in one.items():
            assert torch.allclose(v.float(), two[k].float(), atol=2e-4), k
        assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"], abs=1e-3)
    else:  # each process draws masks of its own
        assert all(v.shape == two[k].shape for k, v in one.items())
        assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=0.02)
    assert (tmp_path / "two/weights/backbone/model.safetensors").is_file()
    drawn = [sorted(p.name for p in (tmp_path / n / "pictures").glob("epoch_*.png")) for n in ("one", "two")]
    assert drawn[0] == drawn[1]


def test_an_average_of_the_weights_does_not_go_with_shares():
    module = MAE(VIT["name"], image_size=32, backbone_args=VIT["args"], decoder_dim=16, decoder_depth=1, decoder_heads=2)

    class Trainer:
        precision, strategy = "32-true", type("ModelParallelStrategy", (), {})()

    module._trainer = Trainer()
    with pytest.raises(UserError, match="got precision 32-true and ModelParallelStrategy; take bf16-mixed or 32-true, and ddp"):
        module.check_averaging("the average")
