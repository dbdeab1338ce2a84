"""`benchmarks/gpu.py`: all that needs no card is tried without one."""

import csv
import sys

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu

TIMES = ("mae", "precision", "waits", "detect", "data")


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_what_needs_no_card_runs_without_one(tmp_path, capsys):
    pytest.importorskip("transformers")
    words = ["--device", "cpu", "--quick", "--peak-tflops", "0.1", "--csv", str(tmp_path / "gpu.csv"), "--parts", *TIMES, "simclr"]
    assert gpu.main(words) == 0
    rows = rows_of(tmp_path / "gpu.csv")
    assert list(dict.fromkeys(row["part"] for row in rows)) == [*TIMES, "simclr"]
    value = {row["what"]: row["value"] for row in rows}
    assert 0 < float(value["MFU"]) < 100
    assert float(value["MAE on a transformer: loss in bf16-mixed over fp32's"]) == pytest.approx(1, abs=0.05)
    # batch norms over a few pictures magnify what bf16 rounds
    assert float(value["SimCLR on a ResNet: loss in bf16-mixed over fp32's"]) == pytest.approx(1, abs=0.5)
    assert float(value["waits a step of mae, bf16-mixed"]) == 0
    assert float(value["fcos: loss of the last step in bf16"]) > 0
    assert float(value["dfine: waits a step"]) < float(value["fcos: waits a step"])
    assert 0 <= float(value["time waiting for JPEG files"]) <= 100
    assert rows[-1]["note"] == "not run: give --cifar FOLDER"
    assert "rows, 0 parts failed" in capsys.readouterr().out


@pytest.mark.slow
def test_all_of_it_runs_without_a_card(tmp_path, pictures):
    cifar = tmp_path / "cifar10"
    cifar.mkdir()
    for name, part in (("train", "train"), ("test", "val")):
        (cifar / name).symlink_to(pictures / part)
    words = ["--device", "cpu", "--quick", "--csv", str(tmp_path / "gpu.csv"), "--cifar", str(cifar), "--minutes", "20"]
    assert gpu.main([*words, "--parts", "compile", "benchmark", "simclr"]) == 0
    rows = rows_of(tmp_path / "gpu.csv")
    speeds = [row for row in rows if row["part"] == "benchmark"]
    assert [row["note"] for row in speeds] == ["finished"] * 3
    assert all(float(row["value"]) > 0 for row in speeds)
    assert {row["what"] for row in rows if row["part"] == "simclr"} >= {"SimCLR on CIFAR-10: k-NN"}


def test_a_part_that_fails_says_why_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(plan):
        yield gpu.number("first", 1.0)
        raise ValueError("no such kernel\nand more")

    monkeypatch.setattr(gpu, "PARTS", {"mae": broken, "data": lambda plan: iter([gpu.number("second", 2.0)])})
    plan = gpu.Plan(torch.device("cpu"), True, 30.0, None, None, tmp_path, 2)
    rows = gpu.run_parts(plan, ["mae", "data"], tmp_path / "gpu.csv")
    assert [(row["part"], row["what"]) for row in rows] == [("mae", "first"), ("mae", "failed"), ("data", "second")]
    assert rows[1]["note"] == "ValueError: no such kernel"
    plan.minutes = 0.0
    assert gpu.run_parts(plan, ["data"], tmp_path / "gpu.csv")[0]["note"] == "the 0 minutes are over"
    assert len(rows_of(tmp_path / "gpu.csv")) == 1


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A10G", 70), ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA RTX A4000", None), ("NVIDIA L40S", 362),
    ],
)  # fmt: skip
def test_a_cards_peak_is_found_by_its_name(tmp_path, monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    plan = gpu.Plan(torch.device("cuda"), True, 30.0, None, None, tmp_path, 2)
    assert gpu.peak_flops(plan) == (None if tera is None else 1e12 * tera)
    plan.peak_tflops = 50.0
    assert gpu.peak_flops(plan) == 50e12


def test_a_machine_without_a_card_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "there is no CUDA here; `--device cpu --quick` tries all parts without" in capsys.readouterr().err
