"""Whole runs of fine-tuning: what a recipe can ask for, resumed to the same numbers, ended early, and with too little memory."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml

import visiontune
from tests.conftest import ROOT, VIT, run_command
from tests.test_fit import assert_same_run, killed, metrics, write
from visiontune.finetune.classify import Classifier
from visiontune.fit import main

EVERYTHING = {"mixup": 0.4, "cutmix": 1.0, "erase": 0.25, "ema": 0.99, "label_smoothing": 0.1, "head_share": 0.5}


def result_of(run):
    return json.loads((run / "result.json").read_text())


def best_of(run):
    saved = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    return saved["callbacks"]["Checkpoints"] | {"state_dict": saved["state_dict"]}


def everything(recipes, **more):
    """Mixing, erasing, an average, a policy, a norm, layer decay and two phases in one recipe; the second phase begins in its middle."""
    recipe = recipes["classify"] | {"epochs": 4, "tune": "head_then_full", "head": EVERYTHING, **more}
    recipe["data"] = recipe["data"] | {"augment": recipe["data"]["augment"] | {"policy": "randaugment"}}
    recipe["optim"] = recipe["optim"] | {"layer_decay": 0.8, "clip": 1.0}
    return recipe


@pytest.mark.parametrize(("batches", "every"), [(4, "1e-6"), (6, "1e-6"), (8, "100")])
def test_killed_and_resumed_with_everything_meets_the_unbroken_runs_numbers(tmp_path, recipes, batches, every):
    """Six of twelve steps train the head alone: killed before, right at, and after the step at which the backbone joins."""
    path = write(tmp_path / "r.yaml", everything(recipes, checkpoint_minutes=float(every)))
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    done = killed(batches, [path, "--out", str(tmp_path / "broken")])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(["--resume", str(tmp_path / "broken"), "data.workers=1"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    whole, broken = result_of(tmp_path / "whole"), result_of(tmp_path / "broken")
    same = ("top1", "macro_f1", "auroc", "ece", "monitor", "best_step", "loss")
    assert {k: whole[k] for k in same} == {k: broken[k] for k in same}


def test_what_is_exported_is_the_average_that_was_judged_best(tmp_path, recipes):
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", everything(recipes)), "--out", str(out)]) == 0
    best = best_of(out)["state_dict"]
    network = visiontune.load(out).network.state_dict()
    assert all(torch.equal(v, best[f"average.{k}"]) for k, v in network.items())
    assert any(not torch.equal(v, best[f"backbone.{k}"]) for k, v in network.items())


def test_adapters_are_merged_in_the_exported_weights(tmp_path, recipes):
    out = tmp_path / "run"
    recipe = recipes["classify"] | {"tune": "lora", "head": {"lora_rank": 4}, "backbone": VIT}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(out)]) == 0
    module = Classifier(VIT["name"], num_classes=2, tune="lora", lora_rank=4, image_size=32, backbone_args=VIT["args"])
    module.load_state_dict(best_of(out)["state_dict"])
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(module.eval()(x), visiontune.load(out)(x), atol=1e-5)


# The score of each epoch, in order, whatever was learned: what is kept and when a run ends is decided by them.
def scripted(monkeypatch, scores, name="val/top1"):
    left = iter(scores)

    def on_validation_epoch_end(self):
        self.log_dict({"val/loss": 1.0, "val/top1": 0.0} | {name: next(left)})
        self.metrics.reset()
        self.val_loss.reset()

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", on_validation_epoch_end)


def test_a_run_without_a_better_score_for_its_patience_ends_and_says_why(tmp_path, recipes, monkeypatch, capsys):
    scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.9])
    path = write(tmp_path / "r.yaml", recipes["classify"] | {"epochs": 9, "patience": 2})
    assert main([path, "--out", str(tmp_path / "run")]) == 0
    why = "stopped after epoch 4 of 9: val/top1 has not got better than 0.7, of epoch 2, for 2 epochs (patience 2)"
    assert why in capsys.readouterr().out
    result = result_of(tmp_path / "run")
    assert result["stopped_early"] == why
    assert (result["best_step"], result["images_seen"]) == (6, 4 * 48)


def test_a_run_ends_early_right_after_a_validation_and_tells_the_score_of_its_last_epoch(tmp_path, recipes, monkeypatch):
    scripted(monkeypatch, [0.7, 0.6, 0.5, 0.9, 0.9])  # of epochs 2, 4, 6, ...: three without a better one are over after the fifth
    recipe = recipes["classify"] | {"epochs": 10, "patience": 3}
    recipe["trainer"] |= {"check_val_every_n_epoch": 2}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 0
    result = result_of(tmp_path / "run")
    assert result["stopped_early"].startswith("stopped after epoch 6 of 10: val/top1 has not got better than 0.7, of epoch 2, for 4 epochs")
    assert result["images_seen"] == 6 * 48
    assert result["top1_last"] == pytest.approx(0.5)


def test_lower_is_better_of_a_loss_and_a_score_that_is_no_number_is_never_the_best(tmp_path, recipes, monkeypatch):
    scripted(monkeypatch, [float("nan"), 0.9, 0.4, float("nan"), 0.6], "val/loss")
    path = write(tmp_path / "r.yaml", recipes["classify"] | {"epochs": 5, "monitor": "loss"})
    assert main([path, "--out", str(tmp_path / "run")]) == 0
    assert best_of(tmp_path / "run")["best"] == pytest.approx(0.4)
    assert result_of(tmp_path / "run")["best_step"] == 9


KILLED_AT_A_CHECKPOINT = """
import os, signal, sys
from visiontune.callbacks import checkpoints
save, count = checkpoints.Checkpoints._save, [0]
def _save(self, trainer, name):
    if name == "last.ckpt" and trainer.global_step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(self, trainer, name)
checkpoints.Checkpoints._save = _save
from tests.test_fit_classify import scripted
import pytest
scripted(pytest.MonkeyPatch(), {scores})
from visiontune.fit import main
sys.exit(main({argv}))
"""


def run_code(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_best_checkpoint_is_never_overwritten_by_a_worse_one(tmp_path, recipes, monkeypatch):
    """Killed after the best of the second epoch was written and before the checkpoint to resume from: the resumed run repeats that epoch
    with a worse score, and must keep what it had."""
    path, out = write(tmp_path / "r.yaml", recipes["classify"] | {"epochs": 4}), tmp_path / "run"
    done = run_code(KILLED_AT_A_CHECKPOINT.format(step=6, scores=[0.5, 0.9], argv=[path, "--out", str(out)]))
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = (out / "checkpoints/best.ckpt").read_bytes()
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    scripted(monkeypatch, [0.6, 0.7, 0.8])
    assert main(["--resume", str(out)]) == 0
    assert (out / "checkpoints/best.ckpt").read_bytes() == kept
    assert result_of(out)["best_step"] == 6


def test_patience_goes_on_where_it_was_after_a_kill_and_a_run_that_had_ended_trains_no_more(tmp_path, recipes, monkeypatch):
    scores = [0.5, 0.7, 0.6, 0.6, 0.9, 0.9]
    path, out = write(tmp_path / "r.yaml", recipes["classify"] | {"epochs": 6, "patience": 2}), tmp_path / "run"
    done = run_code(KILLED_AT_A_CHECKPOINT.format(step=12, scores=scores, argv=[path, "--out", str(out)]))  # of the epoch that ends it
    assert done.returncode == -signal.SIGKILL, done.stderr
    with monkeypatch.context() as patched:
        scripted(patched, scores[3:])
        assert main(["--resume", str(out)]) == 0
    first = result_of(out)
    assert (first["best_step"], first["images_seen"]) == (6, 4 * 48)
    (out / "result.json").unlink()  # as if killed while it exported its weights
    rows = metrics(out)
    assert main(["--resume", str(out)]) == 0
    assert metrics(out) == rows
    assert result_of(out)["stopped_early"] == first["stopped_early"]


@pytest.mark.parametrize(("largest", "parts"), [(8, 2), (3, 8)])
def test_a_batch_that_does_not_fit_is_taken_in_parts_and_the_numbers_are_those_of_such_a_run(
    tmp_path, recipes, monkeypatch, capsys, largest, parts
):
    recipe = recipes["classify"] | {"epochs": 2, "head": {"mixup": 0.2}}
    path, out = write(tmp_path / "r.yaml", recipe), tmp_path / "run"
    step = Classifier.training_step

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "training_step", training_step)
        assert main([path, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "out of memory with 16 pictures of 32x32 at a time on each device: it begins again with 8" in said
    assert "a step still takes 16" in said
    assert "begins anew" not in said
    assert yaml.safe_load((out / "recipe.yaml").read_text())["trainer"]["accumulate_grad_batches"] == parts
    assert main([path, "--out", str(tmp_path / "asked"), f"trainer.accumulate_grad_batches={parts}"]) == 0
    assert_same_run(tmp_path / "asked", out)


def test_too_little_memory_that_smaller_batches_cannot_cure_is_a_sentence(tmp_path, recipes, monkeypatch, capsys):
    def training_step(self, batch, batch_idx):
        if self.step >= late:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            )
        return step(self, batch, batch_idx)

    step, late = Classifier.training_step, 0
    monkeypatch.setattr(Classifier, "training_step", training_step)
    path = write(tmp_path / "r.yaml", recipes["classify"] | {"epochs": 5})
    assert main([path, "--out", str(tmp_path / "one")]) == 2
    assert "with 1 picture of 32x32 at a time on each device, the fewest that there can be" in capsys.readouterr().err
    late = 11
    assert main([path, "--out", str(tmp_path / "late")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"at step 11; go on with 8: python -m visiontune.fit --resume \S+late trainer.accumulate_grad_batches=2", error)
    late = 99
    assert main(["--resume", str(tmp_path / "late"), "trainer.accumulate_grad_batches=2"]) == 0


def test_a_mistake_in_how_to_tune_or_what_to_monitor_is_told_before_anything_runs(tmp_path, recipes, capsys):
    path = write(tmp_path / "r.yaml", recipes["classify"] | {"tune": "last:99", "head": {"mixup": -1}})
    assert main([path, "tune=lastt", "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "tune: got 'lastt'; expected full, head, head_then_full, last:N, lora" in error
    assert "head.mixup: got -1; expected a number at least 0" in error
    assert main([path, "head.mixup=0", "--out", str(tmp_path / "a")]) == 2
    assert "tune: got last:99, but ConvNeXt has 4 blocks; give last:4 or less, or full" in capsys.readouterr().err
    assert main([path, "head.mixup=0", "tune=full", "monitor=top5", "--out", str(tmp_path / "a")]) == 2
    allowed = "top1, auroc, balanced_accuracy, ece, macro_f1, loss"
    assert f"monitor: got 'top5'; allowed here: {allowed}; did you mean 'top1'?" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "precision"),
    [("head", "32-true"), ("head_then_full", "bf16-mixed"), ("last:1", "bf16-mixed"), ("lora", "bf16-mixed"), ("lora", "32-true")],
)
def test_every_way_to_tune_learns(tmp_path, recipes, name, precision):
    recipe = recipes["classify"] | {"epochs": 10, "tune": name, "head": {"lora_rank": 4}, "backbone": VIT}
    recipe["optim"] = {"lr": 0.01, "clip": 1.0}
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipe), f"trainer.precision={precision}", "--out", str(out)]) == 0
    losses = [float(r["train/loss"]) for r in metrics(out) if "train/loss" in r]
    assert sum(losses[-6:]) < sum(losses[:6])


def test_two_processes_train_the_head_then_everything(tmp_path, recipes):
    """DistributedDataParallel refuses steps in which parameters have no gradient, unless it is told."""
    path = write(tmp_path / "r.yaml", everything(recipes, epochs=2))
    done = run_command("visiontune.fit", path, "--out", str(tmp_path / "two"), "trainer.devices=2", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "two")["images_seen"] == 96
