"""A whole comparison through the real command: killed, gone on with, one run failing and mended."""

import csv
import json
import subprocess
import sys
import time

import safetensors.torch
import torch
import yaml

from tests.conftest import CONV, ROOT
from visiontune import backbones
from visiontune.__main__ import main


def rows(folder):
    with (folder / "compare.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def seen_to(condition):
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_comparison_is_killed_gone_on_with_and_mended(tmp_path, recipes, monkeypatch, capsys):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def compare(*words):
        status = main(["compare", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    recipe = recipes["classify"] | {"epochs": 3, "checkpoint_minutes": 1e-6}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    torch.manual_seed(3)
    model = backbones.create(CONV["name"], image_size=32, args=CONV["args"])
    safetensors.torch.save_file(model.state_dict(), tmp_path / "other.safetensors")
    out = tmp_path / "out"
    weights = ["random", str(tmp_path / "other.safetensors"), "timm"]
    words = [str(tmp_path / "r.yaml"), "--weights", *weights, "--labels", "25%", "--seeds", "2"]
    words += ["--jobs", "2", "--out", str(out), "backbone.args.drop_path_rate=0.1"]

    # the whole comparison is killed when its first run has finished or has a checkpoint
    began = subprocess.Popen([sys.executable, "-m", "visiontune", "compare", *words], stdout=subprocess.DEVNULL)
    first = out / "random" / "25_percent" / "seed_0"
    try:
        assert seen_to((first / "checkpoints" / "last.ckpt").is_file)
    finally:
        began.kill()
        began.wait()
    # a run that will fail: its pictures are gone
    broken = out / "random" / "25_percent" / "seed_1"
    broken.mkdir(parents=True)
    job = yaml.safe_load((first / "recipe.yaml").read_text())
    (broken / "recipe.yaml").write_text(yaml.safe_dump(job | {"seed": 1, "data": job["data"] | {"train": "/no/photos"}}))

    status, said = compare(*words)
    assert status == 1, said
    assert "timm is left out, the others go on: backbone.weights: got 'timm', but timm could not fetch weights" in said
    found = rows(out)
    assert {name: row["status"] for name, row in found.items()} == {
        "random/25_percent/seed_0": "finished",
        "other/25_percent/seed_0": "finished",
        "timm/25_percent/seed_0": "failed",
        "random/25_percent/seed_1": "failed",
        "other/25_percent/seed_1": "finished",
        "timm/25_percent/seed_1": "failed",
    }
    assert "data.train: no folder /no/photos" in found["random/25_percent/seed_1"]["reason"]
    assert "could not fetch weights" in found["timm/25_percent/seed_0"]["reason"]
    assert "other against random: +" in said.replace("random: -", "random: +")  # one pair
    assert not (out / "result.json").exists()

    # mended, it goes on with what is missing; timm's weights are given up
    (broken / "recipe.yaml").unlink()
    times = {name: (out / name / "result.json").stat().st_mtime_ns for name, row in found.items() if row["status"] == "finished"}
    words.remove("timm")
    status, said = compare(*words, "--dry-run")
    assert status == 0, said
    assert "4 runs: random, other x 25 % of the labels x 2 seeds; 3 runs finished before" in said
    assert "left, one run at a time, by the finished ones" in said
    status, said = compare(*words)
    assert status == 0, said
    assert {name: (out / name / "result.json").stat().st_mtime_ns for name in times} == times
    found = rows(out)
    assert {row["status"] for row in found.values()} == {"finished"}
    assert {row["labelled_pictures"] for row in found.values()} == {"12"}
    (other,) = [r for r in json.loads((out / "result.json").read_text())["comparison"] if r["weights"] == "other"]
    scores = {name: float(row["top1"]) for name, row in found.items()}
    gain = sum(scores[f"other/25_percent/seed_{s}"] - scores[f"random/25_percent/seed_{s}"] for s in (0, 1)) / 2
    assert abs(other["difference"] - gain) < 1e-6
    assert other["pairs"] == 2
    assert "n 2)" in said
    assert (out / "pictures" / "label_efficiency.png").is_file()
    assert "Differences from random" in (out / "report.html").read_text()

    # one seed has the same pictures from any weights, another seed others
    logs = {name: (out / name / "checkpoints" / "last.ckpt") for name in scores}
    pictures = {name: _pictures(torch.load(file, weights_only=False)) for name, file in logs.items()}
    assert pictures["random/25_percent/seed_0"] == pictures["other/25_percent/seed_0"]
    assert pictures["random/25_percent/seed_0"] != pictures["random/25_percent/seed_1"]

    # finished, the same command changes nothing; another recipe is refused
    status, said = compare("--resume", str(out))
    assert status == 0, said
    assert "4 runs finished before" in said
    status, said = compare(*words, "optim.lr=0.1")
    assert status == 2
    assert "holds a comparison of another recipe (optim.lr: 0.003, now 0.1)" in said
    status, said = compare("--resume", str(out), "epochs=9")
    assert status == 2
    assert "epochs: a resumed run keeps its recipe" in said


def _pictures(checkpoint):
    (state,) = [v for k, v in checkpoint["callbacks"].items() if k.startswith("Checkpoints")]
    return state["pictures"]
