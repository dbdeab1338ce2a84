"""Whole runs through the real command's function, and through the real command where a kill needs a process."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import timm
import torch
import yaml

import visiontune
from tests.conftest import JOINT, ROOT, run_command
from visiontune.callbacks.metrics import read_metrics
from visiontune.fit import main


def write(path, recipe):
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds" and v} for row in csv.DictReader(file)]


def losses(run):
    return [float(r["train/loss"]) for r in metrics(run) if "train/loss" in r]


MASKED = ("mae", "simmim", "spark", "ijepa")


@pytest.mark.parametrize("kind", [*MASKED, "simclr", "barlow_twins", "distill", "classify"])
def test_a_run_lowers_its_loss_and_leaves_what_the_design_says(tmp_path, recipes, kind, capsys):
    recipe = recipes[kind] | {"epochs": 8}
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == f"run folder: {out}"

    found = losses(out)
    assert len(found) == 8 * 3  # log_every_n_steps: 1, 48 pictures in batches of 16
    assert sum(found[-6:]) < sum(found[:6])
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    wanted = {
        "recipe.yaml",
        "environment.json",
        "log.txt",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "report.html",
        "README.md",
        "result.json",
    }
    wanted |= {"weights/backbone/model.safetensors", "weights/backbone/config.json", "pictures/views.png", "pictures/curves.png"}
    if kind != "classify":
        wanted |= {"pictures/neighbours.png", "pictures/map.png"}
    else:
        wanted |= {"checkpoints/best.ckpt", "weights/model/model.safetensors", "weights/model/config.json"}
    assert wanted <= there
    assert ("pictures/epoch_0008.png" in there) == (kind in MASKED)

    result = json.loads((out / "result.json").read_text())
    assert result["images_seen"] == 8 * 48
    assert ("loss_baseline" in result) == (kind in MASKED)
    assert result.get("warnings") == (None if kind == "classify" else [])
    looks = [int(r["step"]) for r in metrics(out) if "embedding/rank" in r]
    assert looks == ([] if kind == "classify" else [3 * done for done in range(9)])
    assert {"seconds", "images_per_second", "peak_memory_bytes"} <= result.keys()
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert saved["optim"]["lr_scale"] == "none"
    assert "auto" not in str(saved["data"]) + str(saved["trainer"]["precision"])
    page = (out / "report.html").read_text()
    assert "http" not in re.sub('base64,[^"]+', "", page)  # opened offline
    assert page.count("data:image/png;base64") >= 2


def test_plain_timm_loads_the_weights_with_class_names_and_statistics(tmp_path, recipes):
    recipe = recipes["classify"]
    recipe["data"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(out)]) == 0
    model = timm.create_model(f"local-dir:{out}/weights/model", pretrained=True).eval()
    assert model.num_classes == 2
    assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    ours = visiontune.load(out)
    assert ours.class_names == ("lying", "standing")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), ours(x))
    backbone = timm.create_model(f"local-dir:{out}/weights/backbone", pretrained=True).eval()
    assert torch.equal(backbone(x), model.forward_head(model.forward_features(x), pre_logits=True))
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(best["backbone.head.fc.weight"], model.get_classifier().weight)


def test_a_run_of_few_steps_has_metrics_all_the_same(tmp_path, recipes):
    recipe = recipes["mae"] | {"epochs": 1, "trainer": recipes["mae"]["trainer"] | {"log_every_n_steps": 10}}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 0
    assert len(losses(tmp_path / "run")) == 3


def test_mae_weights_give_timm_the_same_embedding(tmp_path, recipes):
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipes["mae"] | {"epochs": 1}), "--out", str(out)]) == 0
    model = timm.create_model(f"local-dir:{out}/weights/backbone", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(x), model.forward_features(x)[:, 1:].mean(dim=1), atol=1e-6)
    assert model(x).shape == (2, 32)


def test_the_same_run_twice_gives_the_same_bytes(tmp_path, recipes):
    path = write(tmp_path / "r.yaml", recipes["simclr"])
    for name in ("a", "b"):
        assert main([path, "--out", str(tmp_path / name), "data.workers=1" if name == "a" else "data.workers=0"]) == 0
    for file in ("weights/backbone/model.safetensors", "weights/backbone/config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


# Kills its own process, as `kill -9` would, when a batch begins; a checkpoint is due after every step.
KILLED = """
import os, signal, sys
from visiontune.callbacks import checkpoints
begin, count = checkpoints.Reseed.on_train_batch_start, [0]
def on_train_batch_start(self, trainer, *rest):
    count[0] += 1
    if count[0] > {batches}:
        os.kill(os.getpid(), signal.{signal})
    return begin(self, trainer, *rest)
checkpoints.Reseed.on_train_batch_start = on_train_batch_start
from visiontune.fit import main
sys.exit(main({argv}))
"""


def killed(batches, argv, name="SIGKILL"):
    code = KILLED.format(batches=batches, signal=name, argv=argv)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_same_run(a, b):
    for file in ("weights/backbone/model.safetensors", "metrics.csv"):
        if file.endswith("csv"):
            assert metrics(a) == metrics(b)
        else:
            assert digest(a / file) == digest(b / file), file
    x, y = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=False) for p in (a, b))
    for k, v in x["state_dict"].items():
        assert torch.equal(v, y["state_dict"][k]), k
    for s, t in zip(x["optimizer_states"][0]["state"].values(), y["optimizer_states"][0]["state"].values(), strict=True):
        assert all(torch.equal(s[k], t[k]) for k in s)


@pytest.mark.parametrize(
    ("kind", "batches", "every", "workers"),
    [
        ("mae", 4, "1e-6", 0),  # in the second epoch, a checkpoint after every step
        ("simclr", 5, "1e-6", 1),  # workers had fetched ahead
        ("classify", 7, "100", 0),  # the last checkpoint is an epoch's end, two batches earlier
        ("classify", 3, "100", 1),  # right after an epoch's end
        ("simclr", 5, "100", 0),  # rows beyond the last checkpoint are trained, and logged, again
        ("simclr", 2, "100", 0),  # before the first checkpoint
        ("simmim", 4, "1e-6", 1),
        ("spark", 4, "1e-6", 0),  # batch norm's running statistics are of visible positions
        ("ijepa", 4, "1e-6", 1),  # the target encoder and its schedule
    ],
)
@pytest.mark.parametrize("log_every", [1, 2])
def test_killed_and_resumed_meets_the_unbroken_runs_numbers(tmp_path, recipes, kind, batches, every, workers, log_every):
    recipe = recipes[kind] | {"epochs": 3, "checkpoint_minutes": float(every)}
    random = {"drop_path_rate": 0.2}  # in every step
    recipe["backbone"] = {**recipe["backbone"], "args": recipe["backbone"]["args"] | random}
    recipe["trainer"]["log_every_n_steps"] = log_every
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    done = killed(batches, [path, "--out", str(tmp_path / "broken"), f"data.workers={workers}"])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "broken" / "result.json").exists()
    assert main(["--resume", str(tmp_path / "broken"), f"data.workers={1 - workers}"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    whole, broken = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "broken"))
    same = ("images_seen", "top1", "best_step", "loss", "warnings", "embedding_rank", "embedding_rank_start")
    assert {k: whole.get(k) for k in same} == {k: broken.get(k) for k in same}


def test_only_some_epochs_are_validated_where_that_is_asked_also_after_a_kill(tmp_path, recipes):
    recipe = recipes["classify"] | {"epochs": 4, "checkpoint_minutes": 1e-6}
    recipe["trainer"] |= {"check_val_every_n_epoch": 2}
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    assert [int(r["step"]) for r in metrics(tmp_path / "whole") if "val/top1" in r] == [5, 11]
    assert killed(8, [path, "--out", str(tmp_path / "broken")]).returncode == -signal.SIGKILL
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("kind", [name for name in JOINT if name != "simclr"])
def test_every_joint_embedding_method_meets_its_unbroken_runs_numbers(tmp_path, recipes, kind):
    """Teachers, queues, running centres and schedules included; the prototypes' freezing and the queue's start lie between."""
    recipe = recipes[kind] | {"epochs": 3, "checkpoint_minutes": 1e-6}
    recipe["trainer"]["log_every_n_steps"] = 2
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    done = killed(4, [path, "--out", str(tmp_path / "broken")])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_accumulated_batches_may_change_between_kill_and_resume(tmp_path, recipes):
    """The convnet here has layer norms only, so two half batches are one batch up to rounding; pictures and steps are the same."""
    recipe = recipes["classify"] | {"epochs": 3, "checkpoint_minutes": 1e-6}
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    assert killed(4, [path, "--out", str(tmp_path / "broken")]).returncode == -signal.SIGKILL
    assert main(["--resume", str(tmp_path / "broken"), "trainer.accumulate_grad_batches=2"]) == 0
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "broken")
    assert len(a) == len(b) == 9
    assert a == pytest.approx(b, rel=1e-3)


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(tmp_path, recipes):
    path = write(tmp_path / "r.yaml", recipes["mae"] | {"epochs": 3})
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    done = killed(4, [path, "--out", str(tmp_path / "broken")], name="SIGTERM")
    assert done.returncode == 143, done.stderr
    assert f"--resume {tmp_path}/broken" in done.stdout
    step = torch.load(tmp_path / "broken/checkpoints/last.ckpt", weights_only=False)["global_step"]
    assert step == 5  # the batch that had begun was finished
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_the_best_checkpoint_is_never_overwritten_by_a_worse_one_after_a_resume(tmp_path, recipes):
    """A learning rate that ruins the model later: the best is early, and a kill after it must not lose it."""
    recipe = recipes["classify"] | {"epochs": 6}
    path = write(tmp_path / "r.yaml", recipe)
    assert killed(9, [path, "--out", str(tmp_path / "r")]).returncode == -signal.SIGKILL
    ckpt = tmp_path / "r/checkpoints/last.ckpt"
    state = torch.load(ckpt, weights_only=False)
    (key,) = [k for k in state["callbacks"] if k.startswith("Checkpoints")]
    state["callbacks"][key]["best"] = 2.0  # no accuracy can beat it
    torch.save(state, ckpt)
    before = (tmp_path / "r/checkpoints/best.ckpt").read_bytes()
    assert main(["--resume", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r/checkpoints/best.ckpt").read_bytes() == before


def test_the_probe_leaves_the_run_bit_identical(tmp_path, recipes, pictures):
    recipe = recipes["simclr"]
    probe = {"train": str(pictures / "train"), "val": str(pictures / "val"), "every": 1}
    assert main([write(tmp_path / "a.yaml", recipe), "--out", str(tmp_path / "a")]) == 0
    assert main([write(tmp_path / "b.yaml", recipe | {"probe": probe}), "--out", str(tmp_path / "b")]) == 0
    weights = "weights/backbone/model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert {"knn_top1", "probe_top1", "knn_top1_start", "probe_top1_start"} <= result.keys()


def test_collapse_is_said_once_and_stands_in_the_result_and_the_report(tmp_path, recipes, monkeypatch, capsys):
    from visiontune.callbacks import embedding

    seen = lambda now, start: now < 1000  # noqa: E731 (as if)
    monkeypatch.setattr(embedding, "SIGNS", (embedding.Sign("embedding/rank", seen, "this <run> is lost"),))
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipes["simclr"]), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("warning: collapse: embedding/rank is ") == 1
    (warning,) = json.loads((out / "result.json").read_text())["warnings"]
    assert warning.endswith("at the start: this <run> is lost")
    assert "at the start: this &lt;run&gt; is lost" in (out / "report.html").read_text()


def test_a_dry_run_writes_nothing(tmp_path, recipes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([write(tmp_path / "r.yaml", recipes["mae"]), "--dry-run"]) == 0
    assert "scaled linear to a batch of 16" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_folders_that_are_taken_and_runs_that_are_finished_name_the_cure(tmp_path, recipes, capsys):
    path, out = write(tmp_path / "r.yaml", recipes["simclr"] | {"epochs": 1}), tmp_path / "run"
    assert main([path, "--out", str(out)]) == 0
    assert main([path, "--out", str(out), "--dry-run"]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main([path, "--out", str(out)]) == 2
    assert "holds a finished run; give another folder with --out, or remove it" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 2
    assert f"backbone.weights={out}" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "rum")]) == 2
    assert "did you mean 'run'" in capsys.readouterr().err
    assert main(["--resume", str(out), "optim.lr=1"]) == 2
    assert "a resumed run keeps its recipe" in capsys.readouterr().err


def test_broken_pictures_are_replaced_listed_and_shown(tmp_path, recipes, pictures, capsys):
    import shutil

    folder = tmp_path / "pictures"
    shutil.copytree(pictures / "train", folder)
    good = (folder / "lying" / "000.png").read_bytes()
    (folder / "lying" / "001.png").write_bytes(good[: len(good) // 2])
    (folder / "lying" / "002.png").write_bytes(b"")
    (folder / "standing" / "003.png").write_text("<html>not found</html>")
    recipe = recipes["mae"]
    recipe["data"] |= {"train": str(folder), "max_broken": 0.1}
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(out)]) == 0
    with (out / "broken.csv").open() as file:
        causes = {os.path.basename(r["path"]): r["cause"] for r in csv.DictReader(file)}
    assert causes == {
        "001.png": "cut off: the file ends before the picture does",
        "002.png": "empty file",
        "003.png": "a web page, not a picture",
    }
    assert "a web page, not a picture" in (out / "report.html").read_text()
    for path in list(folder.rglob("*.png"))[::2]:
        path.write_bytes(b"junk")
    assert main([str(tmp_path / "r.yaml"), "--out", str(tmp_path / "two")]) == 2
    assert "more than data.max_broken allows (0.1)" in capsys.readouterr().err


def test_a_resumed_run_does_not_need_the_weights_that_it_started_from(tmp_path, recipes):
    source = timm.create_model(recipes["classify"]["backbone"]["name"], num_classes=0, **recipes["classify"]["backbone"]["args"])
    torch.save(source.state_dict(), tmp_path / "w.pt")
    recipe = recipes["classify"] | {"backbone": recipes["classify"]["backbone"] | {"weights": str(tmp_path / "w.pt")}}
    path = write(tmp_path / "r.yaml", recipe)
    assert killed(4, [path, "--out", str(tmp_path / "r")]).returncode == -signal.SIGKILL
    (tmp_path / "w.pt").unlink()
    assert main(["--resume", str(tmp_path / "r")]) == 0


def test_two_processes_train_what_one_does(tmp_path, recipes):
    """Layer norms only, so the gradient of two halves is that of the whole batch up to rounding."""
    recipe = recipes["classify"] | {"epochs": 2, "optim": {"name": "sgd", "lr": 0.1}}
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, "--out", str(tmp_path / "one")]) == 0
    done = run_command(
        "visiontune.fit", path, "--out", str(tmp_path / "two"), "trainer.devices=2", "trainer.strategy=ddp", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 2
    one, two = (torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=False) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 6
    for k, v in one["state_dict"].items():
        assert torch.allclose(v.float(), two["state_dict"][k].float(), atol=1e-5), k
    scores = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert scores[0]["images_seen"] == scores[1]["images_seen"]
    assert "sync_dist" not in done.stderr  # what is logged is of both processes
    for ours, theirs in zip(*(read_metrics(tmp_path / n / "metrics.csv") for n in ("one", "two")), strict=True):
        for name in ours.keys() - {"seconds"}:
            assert float(theirs[name] or -1) == pytest.approx(float(ours[name] or -1), abs=1e-4), name


@pytest.mark.parametrize("kind", [*MASKED, "byol", "dinov2"])
def test_methods_train_on_two_processes_and_leave_no_parameter_waiting(tmp_path, recipes, kind):
    """DistributedDataParallel refuses a parameter without a gradient at the second step."""
    path = write(tmp_path / "r.yaml", recipes[kind] | {"epochs": 1})
    done = run_command(
        "visiontune.fit", path, "--out", str(tmp_path / "two"), "trainer.devices=2", "trainer.strategy=ddp", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "result.json").read_text())["images_seen"] == 48


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_the_plain_one(tmp_path, recipes):
    path = write(tmp_path / "r.yaml", recipes["classify"])
    for name, setting in (("plain", "compile=false"), ("compiled", "compile=true")):
        assert main([path, "--out", str(tmp_path / name), setting]) == 0
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "compiled"), rel=1e-3)


def test_pictures_that_changed_between_kill_and_resume_are_noticed(tmp_path, recipes, pictures, capsys):
    import shutil

    shutil.copytree(pictures / "train", tmp_path / "photos")
    recipe = recipes["simclr"]
    recipe["data"] |= {"train": str(tmp_path / "photos")}
    path = write(tmp_path / "r.yaml", recipe)
    assert killed(4, [path, "--out", str(tmp_path / "r")]).returncode == -signal.SIGKILL
    extra = tmp_path / "photos" / "lying" / "new.png"
    shutil.copy(tmp_path / "photos" / "lying" / "000.png", extra)
    assert main(["--resume", str(tmp_path / "r")]) == 2
    assert "the training pictures have changed since the run began (48 pictures" in capsys.readouterr().err
    extra.unlink()
    assert main(["--resume", str(tmp_path / "r")]) == 0


def test_a_run_killed_after_its_last_step_has_the_whole_result_when_resumed(tmp_path, recipes):
    path = write(tmp_path / "r.yaml", recipes["classify"])
    assert main([path, "--out", str(tmp_path / "r")]) == 0
    before = json.loads((tmp_path / "r/result.json").read_text())
    weights = digest(tmp_path / "r/weights/model/model.safetensors")
    (tmp_path / "r/result.json").unlink()
    assert main(["--resume", str(tmp_path / "r")]) == 0
    after = json.loads((tmp_path / "r/result.json").read_text())
    measured = ("seconds", "images_per_second", "peak_memory_bytes")
    assert {k: v for k, v in before.items() if k not in measured} == {k: v for k, v in after.items() if k not in measured}
    assert digest(tmp_path / "r/weights/model/model.safetensors") == weights


def test_pictures_that_are_all_broken_are_told_with_their_causes(tmp_path, recipes, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(30):
        (tmp_path / "photos" / f"{i}.jpg").write_text("<html>")
    recipe = recipes["simclr"]
    recipe["data"] |= {"train": str(tmp_path / "photos")}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "r")]) == 2
    assert "a web page, not a picture" in capsys.readouterr().err
