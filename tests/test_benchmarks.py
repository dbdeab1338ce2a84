"""The scripts in benchmarks/: what each of them offers, what runs them all, and the page that is made of their rows."""

import argparse
import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from visiontune.checks import CHECKS
from visiontune.recipe import load_recipe

HERE = ROOT / "benchmarks"
sys.path.insert(0, str(HERE))

import all as everything  # noqa: E402
import common  # noqa: E402
import readme  # noqa: E402

SCRIPTS = readme.scripts()


def run_script(name: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(HERE / f"{name}.py"), *words], capture_output=True, text=True, timeout=300)


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Of a function or method."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if name in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))]


# ---------------------------------------------------------------- each script


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_how_to_run_it_and_has_a_quick_mode(name):
    tree = ast.parse((HERE / f"{name}.py").read_text())
    options = [call.args[0].value for call in calls(tree, "add_argument") if isinstance(call.args[0], ast.Constant)]
    assert "--quick" in options
    told = ast.get_docstring(tree)
    assert f"python benchmarks/{name}.py" in told
    assert "--quick" in told
    if readme.csvs_of(name):  # which quick numbers must not come into: parse() sees to it
        assert len(calls(tree, "parse")) == 1
        assert "--csv" not in options


@pytest.mark.parametrize("name", ["all", "cifar_pretraining", "startup"])
def test_help_names_the_quick_mode(name):
    done = run_script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_quick_numbers_go_into_a_temporary_file(tmp_path, monkeypatch):
    def csv_of(*words):
        monkeypatch.setattr(sys, "argv", ["speed.py", *words])
        parser = argparse.ArgumentParser()
        parser.add_argument("--quick", action="store_true")
        return common.parse(parser, str(tmp_path / "speed.py")).csv

    assert csv_of() == tmp_path / "speed.csv"
    quick = csv_of("--quick")
    assert quick.name == "speed.csv"
    assert quick.parent.is_dir()
    assert quick.parent not in (tmp_path, HERE)
    assert csv_of("--quick", "--csv", "own.csv").name == "own.csv"


def test_a_script_without_its_data_is_skipped_in_one_sentence(tmp_path):
    done = run_script("cifar_pretraining", "--csv", str(tmp_path / "x.csv"))
    assert done.returncode == common.SKIPPED
    assert done.stderr.splitlines() == [
        "cifar_pretraining.py: needs CIFAR10, a folder with train/CLASS/* and test/CLASS/*, as its first argument; --quick does without"
    ]
    wrong = run_script("cifar_pretraining", str(tmp_path), "--csv", str(tmp_path / "x.csv"))
    assert wrong.returncode == 1
    assert wrong.stderr == f"CIFAR10: got {tmp_path}, which has no folder train; expected train/CLASS/* and test/CLASS/*\n"


class Outcome(dict):
    """A run's result whatever is asked of it."""

    def __missing__(self, key):
        return {stage: Outcome() for stage in ("pretrain", "finetune", "scratch")} if key == "stages" else [] if key == "warnings" else 0.5


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("cifar_pretraining", 1), ("detect_bccd", 2), ("imagenet_weights", 3), ("joint_cifar", 2), ("masked_cifar", 1), ("quickstart", 1),
        ("tune_budget", 2), ("tune_defaults", 2),
    ],
)  # fmt: skip
def test_a_quick_mode_asks_for_recipes_that_are_sound_on_data_that_is_there(name, runs, tmp_path, monkeypatch):
    script, asked = importlib.import_module(name), []

    def fit(recipe, folder, *settings):
        asked.append(load_recipe(recipe, settings, checks=CHECKS))
        (Path(folder) / "run").mkdir(parents=True)
        (Path(folder) / "run/classes.csv").write_text("class,ap50\ncat,0.5\ndog,\n")
        return Outcome()

    monkeypatch.setattr(script, "fit", fit)
    monkeypatch.setattr(script, "rename", shutil.copy, raising=False)
    monkeypatch.setattr(script, "logistic_regression", lambda *places: 0.5, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which some of them set
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--csv", str(tmp_path / "x.csv")])
    script.main()
    assert len(asked) == runs
    for recipe in (recipe for loaded in asked for recipe in loaded.stages.values()):
        assert recipe.epochs == 1
    assert len(common.read_rows(tmp_path / "x.csv")) >= 1


# ---------------------------------------------------------------- all of them


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Three scripts that end in the three ways; what is asked of them is what they were given."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "a_breaks.py").write_text("print('so far')\nraise RuntimeError('no more of it')")
    (folder / "b_lacks.py").write_text("import sys\nprint('b_lacks.py: needs a moon, which is not up', file=sys.stderr)\nsys.exit(77)")
    (folder / "c_works.py").write_text("import sys\nopen(sys.argv[sys.argv.index('--csv') + 1], 'w').write(' '.join(sys.argv[1:3]))")
    (folder / "gpu.py").write_text("")
    (folder / "common.py").write_text("")
    monkeypatch.setattr(readme, "HERE", folder)
    monkeypatch.setattr(everything, "cuda", lambda: False)
    return tmp_path


def test_all_goes_on_after_a_failure_and_tells_each_outcome(few, capsys):
    assert everything.main(["--quick", "--out", str(few / "out")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["a_breaks", "failed"], ["b_lacks", "skipped"], ["c_works", "ok"], ["gpu", "skipped"],
    ]  # fmt: skip
    assert "status 1: RuntimeError: no more of it" in lines[1]
    assert lines[2].endswith("needs a moon, which is not up")
    assert lines[4].endswith("needs a CUDA device, and there is none")
    assert lines[5].startswith("1 ok, 1 failed, 2 skipped; ")
    assert (few / "out/c_works.csv").read_text() == "--quick --csv"
    assert "so far" in (few / "out/a_breaks.txt").read_text()


def test_all_without_a_failure_ends_well_and_a_misspelt_name_is_told(few, capsys):
    assert everything.main(["--quick", "--out", str(few / "out"), "--only", "c_works", "b_lacks.py"]) == 0
    with pytest.raises(SystemExit):
        everything.main(["--only", "c_wroks"])
    assert "got c_wroks; allowed: a_breaks, b_lacks, c_works, gpu; did you mean 'c_works'" in capsys.readouterr().err


def test_a_script_that_hangs_is_ended(tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text("import time\nprint('working', flush=True)\ntime.sleep(600)")
    found = everything.run(script, [], tmp_path / "hangs.txt", minutes=0.05)
    assert found.status == "failed"
    assert found.reason.startswith("took longer than 0.05 minutes: working")


def test_what_all_hands_over_is_what_scripts_take():
    for name, words in everything.TAKES.items():
        source = (HERE / f"{name}.py").read_text()
        for word in words:
            key = word.partition("=")[0]
            assert f'add_argument("{key.strip("{}")}"' in source, (name, word)


# ---------------------------------------------------------------- the page


def test_the_page_is_what_the_generator_makes_of_scripts_and_rows():
    made = readme.text()
    assert (HERE / "README.md").read_text() == made, "run: python benchmarks/all.py --readme"
    assert all(f"\n## {name}\n" in made for name in SCRIPTS)
    assert all(f"]({file.name})" in made for file in HERE.glob("*.csv"))


def test_a_page_of_two_scripts(tmp_path):
    (tmp_path / "speed.py").write_text('"""How fast is it,\nand why?\n\nMore."""')
    (tmp_path / "speed_of_light.py").write_text('"""Of light."""')
    rows = [f"net{i},16,{1000 / (i + 3):.7f},EPYC,none,2.1,1.0,2026-01-0{1 + i // 10}" for i in range(14)]
    (tmp_path / "speed_more.csv").write_text("\n".join(["model,batch,rate,processor,gpu,torch,timm,date", *rows]) + "\n")
    (tmp_path / "speed_empty.csv").write_text("model\n")
    lines = readme.text(tmp_path).splitlines()
    assert lines[-5:] == ["## speed_of_light", "", "Of light.", "", "Script: [speed_of_light.py](speed_of_light.py). Not measured yet."]
    assert "How fast is it, and why?" in lines
    assert "[speed_empty.csv](speed_empty.csv) has no rows." in lines
    assert "[speed_more.csv](speed_more.csv): EPYC; no GPU; torch 2.1; timm 1.0; 2026-01-01 to 2026-01-02." in lines
    at = lines.index("In all rows: batch 16.")
    assert lines[at + 2 : at + 5] == ["| model | rate |", "|---|---|", "| net0 | 333.3 |"]
    assert "... and 2 more rows." in lines


# ---------------------------------------------------------------- what new scripts compute


def test_pairs_that_are_apart_and_those_that_swap():
    from rank_backbones import doubted, swaps

    said = {"warnings": "inference: the machine was busy: the share ... was 0 % before, 22 % during; training: its windows differ: ..."}
    assert doubted(said, "inference")
    assert doubted(said, "training")
    assert not doubted({"warnings": "training: its windows differ: ..."}, "inference")
    assert not doubted({}, "training")
    first = {"slow": 100.0, "alike": 109.0, "fast": 150.0}
    assert swaps(first, first) == (2, 0)
    assert swaps(first, {"slow": 100.0, "alike": 90.0, "fast": 150.0}) == (2, 0)  # these two were not apart
    assert swaps(first, {"slow": 160.0, "alike": 109.0, "fast": 150.0}) == (2, 1)


def test_detection_counters_agree_to_four_digits_on_what_is_made_up():
    pytest.importorskip("pycocotools")
    from detection_evaluation import largest_difference, ours, pictures, torchmetrics_by

    found, truth = pictures(12, classes=5, most=20)
    mine = ours(found, truth, 5)
    assert 0.05 < float(mine["map"]) < 0.95
    assert largest_difference(mine, torchmetrics_by("pycocotools")(found, truth, 5)) < 5e-5
    fewer = torchmetrics_by("pycocotools")(found[:6], truth[:6], 5)
    assert largest_difference(mine, fewer) > 5e-5


@pytest.mark.parametrize("step", ["inference", "training"])
def test_both_sides_of_the_parity_time_the_same_network(step, monkeypatch):
    import throughput_parity
    import torch

    monkeypatch.setattr(throughput_parity, "create", kept := Kept(throughput_parity.create))
    row = throughput_parity.measure("test_resnet", step, size=32, batch=2, rounds=2, seconds=0.02, windows=2)
    assert row["ours_images_per_second"] > 0
    assert row["bare_images_per_second"] > 0
    assert row["ratio_low"] <= row["ratio_high"]
    (network,) = kept.made
    torch.manual_seed(0)
    before = kept.function("test_resnet", image_size=32, num_classes=10)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    assert network.training == (step == "training")


class Kept:
    """A function that remembers what it made."""

    def __init__(self, function):
        self.function, self.made = function, []

    def __call__(self, *args, **kwargs):
        self.made.append(self.function(*args, **kwargs))
        return self.made[-1]


def test_a_steps_share_of_the_time_holds_the_epochs_ends_and_the_median_does_not():
    from trainer_overhead import Clock, row_of

    clock = Clock(steps=10, batch=1, size=4)
    at = 0.0
    for step in range(30):
        clock.asked.append(at)
        at += 0.050 if step < 5 else 0.002 + 0.030 * (step % 10 == 9)  # a slow beginning, and checkpoints
    whole, single = clock.ms()
    assert single == pytest.approx(2)
    assert whole == pytest.approx((15 * 2 + 2 * 30) / 15)  # from the sixth step to the beginning of the third epoch
    row = row_of("x", [(11.0, 10.0), (13.0, 10.0)], [(10.0, 10.0), (10.0, 10.0)])
    assert (row["overhead_ms"], row["overhead_low"], row["overhead_high"], row["overhead_percent"]) == (2.0, 1.0, 3.0, 20.0)


def test_all_contenders_train_the_same_classifier(tmp_path, monkeypatch):
    import trainer_overhead

    monkeypatch.setattr(trainer_overhead, "find_batch", lambda args, folder: 2)
    args = argparse.Namespace(backbone="test_resnet", image_size=32, ms=1, steps=6, rounds=1)
    rows = trainer_overhead.measure(tmp_path, args)  # which asserts that the losses are the same
    assert [row["contender"] for row in rows] == ["bare", "lightning barebones", "lightning", "visiontune"]
    assert rows[0]["overhead_ms"] == 0
    assert (tmp_path / "round_0/ours/checkpoints/last.ckpt").is_file()
