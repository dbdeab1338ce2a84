"""`python -m visiontune benchmark`, as it is typed."""

import csv
import json
import os
import shutil
import signal

import pytest

from tests.conftest import run_command
from visiontune.__main__ import main
from visiontune.benchmark import child, loop, table
from visiontune.errors import UserError


def rows(folder):
    with (folder / "results.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def small(pictures, out, *names, more=()):
    words = ["benchmark", str(pictures / "train"), "--val", str(pictures / "val"), "--out", str(out), "--seconds", "0.002"]
    return [*words, *more, "--device", "cpu", "--backbones", *map(str, names)]


def test_two_backbones_and_broken_ones_make_one_table_and_the_same_command_adds_what_is_new(
    tmp_path, pictures, networks, functions, capsys
):
    out = tmp_path / "out"
    broken = [networks / "diverged.safetensors", networks / "other.safetensors", "resnet19"]
    assert main(small(pictures, out, networks / "one", *broken)) == 1
    said = capsys.readouterr().out
    found = rows(out)
    assert {name: row["status"] for name, row in found.items()} == {
        "one": "finished", "diverged": "failed", "other": "failed", "resnet19": "failed",
    }  # fmt: skip
    assert "did you mean 'resnet1" in found["resnet19"]["reason"]
    assert "accuracy: probe: the embeddings of 48 of 48 pictures are not finite" in found["diverged"]["reason"]
    assert "have another shape" in found["other"]["reason"]
    assert f"failed: other: {found['other']['reason']}" in said
    assert float(found["diverged"]["images_per_second"]) > 0  # what could be measured is kept
    one = found["one"]
    assert (one["backbone"], one["image_size"], one["val_pictures"]) == ("convnext_atto", "32", "16")
    assert 0 < int(one["parameters"]) < 2000
    assert 0.2 < float(one["probe_top1"]) <= 1
    assert 0.2 < float(one["knn_top1"]) <= 1
    for prefix in ("", "train_"):
        low, speed, high = (float(one[f"{prefix}images_per_second{end}"]) for end in ("_q1", "", "_q3"))
        assert 0 < low <= speed <= high
        assert int(one[f"{prefix}batch_size"]) >= 1
        assert int(one[f"{prefix}peak_memory_bytes"]) > 2**20
    assert float(one["latency_ms"]) > 0
    assert (out / "pictures" / "accuracy_over_speed.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "http" not in page.partition("base64,")[0]
    assert "Failed: resnet19: timm" in page
    assert functions == ["one", "diverged", "other"]

    # the same command and one more: what is there stays to the bit, what failed is tried again
    before = (out / "backbones" / "one" / "result.json").read_bytes()
    assert main(small(pictures, out, networks / "two.safetensors")) == 1
    assert functions[3:] == ["diverged", "other", "two"]
    assert (out / "backbones" / "one" / "result.json").read_bytes() == before
    found = rows(out)
    assert list(found) == ["one", "diverged", "other", "two"]  # a name that was a mistake is not kept
    assert found["two"]["probe_top1"] == one["probe_top1"]
    assert found["two"]["gmacs"] == one["gmacs"]
    assert json.loads((out / "result.json").read_text())["benchmark"][3]["name"] == "two"

    # another probe is another part: nothing is timed again
    del functions[:]
    assert main(small(pictures, out, networks / "one", more=["--probe", "knn", "few", "--shots", "3"])) == 1
    assert {"one", "two"} <= set(functions)
    again = rows(out)["one"]
    assert "probe_top1" not in again
    assert 0.2 < float(again["few3_top1"]) <= 1
    assert again["images_per_second"] == one["images_per_second"]

    # rows of one table are of the same pictures, at the same size
    assert main(small(pictures, out, networks / "one", more=["--at", "64"])) == 2
    assert "holds another benchmark (image_size: None, now 64); give another folder" in capsys.readouterr().err


def test_compiled_steps_are_timed_beside_the_others_on_the_same_batch_and_fail_alone(
    tmp_path, pictures, networks, functions, compiler, capsys
):
    out = tmp_path / "out"
    assert main(small(pictures, out, networks / "one", more=["--probe", "knn"])) == 0
    assert compiler.made == []
    plain = rows(out)["one"]
    assert plain["processor"]
    assert (plain["device"], plain["gpu"], plain["precision"], plain["seed"]) == ("cpu", "", "32-true", "0")
    assert plain["date"].endswith("Z")

    # added to what is there, which stays; a compiler that fails on training loses nothing else
    compiler.fails = RuntimeError("no <compiler> here")
    assert main(small(pictures, out, networks / "one", more=["--probe", "knn", "--compile"])) == 1
    row = rows(out)["one"]
    assert row["status"] == "failed"
    assert "compiled training: " in row["reason"]
    assert "no <compiler> here" in row["reason"]
    assert (row["images_per_second"], row["train_images_per_second"]) == (plain["images_per_second"], plain["train_images_per_second"])
    assert row["knn_top1"] == plain["knn_top1"]
    assert set(compiler.made) == {False}
    assert (row["compiled_batch_size"], row["compiled_channels_last"]) == (row["batch_size"], row["channels_last"])
    assert float(row["compiled_gain"]) == pytest.approx(
        float(row["compiled_images_per_second"]) / float(row["images_per_second"]), rel=1e-4
    )
    assert float(row["compile_seconds"]) > 0
    assert "compiled_train_gain" not in row

    # what failed is tried again, alone
    compiler.fails = None
    assert main(small(pictures, out, networks / "one", more=["--probe", "knn", "--compile"])) == 0
    again = rows(out)["one"]
    assert True in compiler.made
    assert again["compiled_images_per_second"] == row["compiled_images_per_second"]
    assert float(again["compiled_train_gain"]) > 0
    assert "<th" in (out / "report.html").read_text().partition("compiled training/s")[0]


def test_without_a_plain_step_there_is_none_to_compile(tmp_path):
    child.write_result(tmp_path, {"inference": {"failed": "out of memory"}})
    parts = child.Parts({"device": "cpu"}, tmp_path)
    with pytest.raises(UserError, match="there is no inference that is not compiled to compare it with"):
        parts.compiled_inference()


def test_a_benchmark_may_end_with_a_comparison_and_a_wrong_table_is_told_before_anything_is_measured(
    tmp_path, pictures, networks, functions, capsys
):
    out = tmp_path / "out"
    more = ["--probe", "knn", "--no-training"]
    assert main(small(pictures, out, networks / "one", more=[*more, "--against", str(tmp_path / "none.csv")])) == 2
    assert "error: --against: there is no file" in capsys.readouterr().err
    assert functions == []
    assert not out.exists()
    assert main(small(pictures, out, networks / "one", more=more)) == 0
    lines = (out / "results.csv").read_text().splitlines()
    (tmp_path / "old.csv").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert main(small(pictures, out, networks / "one", more=[*more, "--against", str(tmp_path / "old.csv")])) == 0
    said = capsys.readouterr().out
    assert functions == ["one"]
    assert f"against {tmp_path / 'old.csv'}:" in said
    assert "within noise: 4 numbers" in said  # speed, time of one, memory, k-NN: against themselves
    assert "not known of both" not in said
    assert "<h2>Against" in (out / "report.html").read_text()


def test_a_dry_run_lists_what_would_be_measured_and_writes_nothing(tmp_path, pictures, networks, functions, capsys):
    out = tmp_path / "out"
    assert main(small(pictures, out, networks / "one", "resnet19", more=["--dry-run"])) == 1
    said = capsys.readouterr().out
    assert "  one: to measure\n  resnet19: timm " in said
    assert f"dry run: without it 1 backbone would be measured in {out}" in said
    assert not out.exists()
    assert functions == []


def test_what_is_there_keeps_its_name_and_weights_that_changed_are_measured_again(tmp_path, pictures, networks, functions, capsys):
    one, other, out = tmp_path / "a" / "net", tmp_path / "b" / "net", tmp_path / "out"
    for copy in (one, other):
        shutil.copytree(networks / "one", copy)
    more = ["--no-training", "--probe", "knn"]
    assert main(small(pictures, out, one, more=more)) == 0
    assert main(small(pictures, out, one, other, more=more)) == 0
    assert functions[0] == "net"
    assert functions.count("net") == 1
    assert len(functions) == 2
    os.utime(one / "model.safetensors", (1, 1))
    capsys.readouterr()
    assert main(small(pictures, out, other, more=[*more, "--dry-run"])) == 0
    said = capsys.readouterr().out
    assert "  net: to measure\n" in said
    assert ": measured before\n" in said
    assert "dry run: without it 1 backbone would be measured" in said
    assert main(small(pictures, out, other, more=more)) == 0
    assert functions.count("net") == 2
    assert len(functions) == 3


def test_pictures_that_cannot_be_read_are_told_once_and_on_the_page(tmp_path, pictures, networks, functions, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(pictures, photos)
    torn = sorted((photos / "train").rglob("*.png"))[3]
    torn.write_bytes(torn.read_bytes()[:60])
    assert main(small(photos, out, networks / "one", networks / "two.safetensors", more=["--no-training", "--probe", "knn"])) == 0
    said = capsys.readouterr().out
    assert f"    cannot be read: {torn} (" in said
    assert said.count("    left out: 1 picture of ") == 1
    page = (out / "report.html").read_text()
    assert page.count("<li>left out: 1 picture of ") == 1


def loop_of(tmp_path, monkeypatch, act, *, fresh=False):
    """A loop over parts that are not measured: `act(spec)` writes what the child is to have left, and returns its status."""
    from visiontune.benchmark.names import Candidate
    from visiontune.run import Run

    specs = []

    def run(self, folder):
        specs.append(json.loads((folder / child.SPEC).read_text()))
        (folder / child.CONSOLE).write_text("")
        return act(folder, specs[-1])

    monkeypatch.setattr(loop.Loop, "_run_child", run)
    monkeypatch.setattr(loop.table, "row_of", lambda candidate, result, parts: {"name": candidate.name, "status": "", "reason": ""})
    settings = {"image_size": None, "overrides": [], "precision": "32-true", "seconds": 1.0, "windows": 7}
    settings |= {"data": "d", "val": None, "probes": ["knn"], "shots": [1], "parts": list(child.PARTS), "device": "cpu"}
    run = Run.create(tmp_path / "run") if not (tmp_path / "run").exists() else Run(tmp_path / "run")
    return (
        loop.Loop(run, settings, {"classes": 2}, {"threads": 1}, fresh),
        [Candidate("a", "a", "timm"), Candidate("b", "b", "timm")],
        specs,
    )


def leave(folder, spec, *parts, **entries):
    made = {p: {"seen": p} for p in parts} | entries
    child.write_result(folder, child.read_result(folder) | {p: e | {"asked": spec["asked"][p]} for p, e in made.items()})


def test_a_process_that_is_killed_loses_the_part_in_its_midst_alone(tmp_path, monkeypatch):
    def act(folder, spec):
        if "training" not in spec["parts"]:
            leave(folder, spec, *spec["parts"])
            return 0
        leave(folder, spec, "cost", "inference")
        return -signal.SIGKILL

    made, candidates, specs = loop_of(tmp_path, monkeypatch, act)
    assert made.all(candidates[:1]) == 0
    assert [s["parts"] for s in specs] == [list(child.PARTS), list(child.PARTS)[3:]]
    result = child.read_result(tmp_path / "run" / "backbones" / "a")
    assert "was ended by SIGKILL, which is what the system does when memory is out" in result["training"]["failed"]
    assert all("failed" not in result[part] for part in child.PARTS if part != "training")


def test_without_a_network_nothing_else_is_tried_and_the_next_backbone_is(tmp_path, monkeypatch):
    def act(folder, spec):
        if folder.name == "a":
            leave(folder, spec, cost={"failed": "no such weights"})
            return 2
        leave(folder, spec, *spec["parts"])
        return 0

    made, candidates, specs = loop_of(tmp_path, monkeypatch, act)
    assert made.all(candidates) == 0
    assert len(specs) == 2


def test_a_stopped_loop_goes_on_with_the_part_that_it_was_in(tmp_path, monkeypatch):
    def stopped(folder, spec):
        leave(folder, spec, "cost", "inference")
        signal.raise_signal(signal.SIGTERM)
        return -signal.SIGKILL

    made, candidates, specs = loop_of(tmp_path, monkeypatch, stopped)
    assert made.all(candidates) == 143
    assert len(specs) == 1

    def whole(folder, spec):
        leave(folder, spec, *spec["parts"])
        return 0

    made, _, specs = loop_of(tmp_path, monkeypatch, whole)
    assert made.all(candidates) == 0
    assert [s["parts"] for s in specs] == [list(child.PARTS)[2:], list(child.PARTS)]
    made, _, specs = loop_of(tmp_path, monkeypatch, whole)
    assert made.all(candidates) == 0
    assert specs == []
    made.machine = {"threads": 2}  # speeds of another machine are no speeds of this one; counts and accuracies hold
    assert made.all(candidates) == 0
    assert [s["parts"] for s in specs] == [list(table.SPEEDS)] * 2
    made, _, specs = loop_of(tmp_path, monkeypatch, whole, fresh=True)
    assert made.all(candidates) == 0
    assert [s["parts"] for s in specs] == [list(child.PARTS)] * 2


def test_a_child_is_a_command_of_its_own(tmp_path, pictures, networks):
    done = run_command("visiontune", *small(pictures, tmp_path / "out", networks / "one", more=["--no-training", "--probe", "knn"]))
    assert done.returncode == 0, done.stderr
    row = rows(tmp_path / "out")["one"]
    assert row["status"] == "finished"
    assert "train_images_per_second" not in row
    assert "RuntimeWarning" not in (tmp_path / "out" / "backbones" / "one" / child.CONSOLE).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "benchmark: expected labelled pictures and --backbones, e.g. "),
        (["--backbones", "resnet19"], "--backbones: nothing is left to measure: resnet19: timm "),
        (["--backbones", "resnet18", "--weights", "w.pth"], "--weights: got 'w.pth'; allowed: timm, random"),
        (["--backbones", "resnet18", "--device", "gpu"], "--device: got 'gpu'; allowed here: "),
        (["--backbones", "resnet18", "--precision", "fp16"], "--precision: got 'fp16'; allowed: auto, 32-true, "),
        (["--backbones", "resnet18", "--probe", "kn"], "--probe: got 'kn'; allowed: knn, linear, few, finetune; did you mean 'knn'?"),
        (["--backbones", "resnet18", "--seconds", "0"], "--seconds: got 0 of 7 windows; expected numbers above 0"),
        (["--backbones", "resnet18", "--val", "/no/photos"], "benchmark: 1 problem, nothing was run\n  data.val: no folder /no/photos; "),
        (["--backbones", "resnet18", "--val", "TRAIN", "data.sizes=3"], "data.sizes: unknown key"),
        (["--backbones", "resnet18", "--out", "TRAIN"], "is not empty; give another folder with --out"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_measured(pictures, capsys, functions, words, message):
    assert main(["benchmark", str(pictures / "train"), *(w.replace("TRAIN", str(pictures / "train")) for w in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert functions == []
