"""timm's families under a detection head, behind `-m slow`; six are in every run of the tests (`test_detect.py`)."""

import sys

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from detect_families import FAMILIES, HEADS, losses_of, made, read_rows, trains

ROWS = read_rows()
TRAINING = [(r["head"], r["model"]) for r in ROWS if r["outcome"] == "trains"]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "name"), TRAINING, ids="-".join)
def test_the_loss_of_a_fixed_batch_falls_in_five_steps(head, name):
    detector, size = made(head, name), FAMILIES[name]
    assert [tuple(m.shape[-2:]) for m in detector.features(torch.zeros(1, 3, size, size, dtype=torch.uint8))] == [
        (-(-size // 32) * 32 // s,) * 2 for s in (8, 16, 32)
    ]
    losses = losses_of(detector, size, ("denoising",) if head == "dfine" else ())
    assert trains(losses), losses


def test_the_table_says_that_heads_train_on_most_families():
    trained = {head: {model for h, model in TRAINING if h == head} for head in HEADS}
    assert len(trained["fcos"]) >= 40
    assert len(trained["dfine"]) >= 15
    assert {"swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"} <= trained["dfine"]
    assert {(r["head"], r["model"]) for r in ROWS} == {(head, model) for head, models in HEADS.items() for model in models}


def test_what_does_not_train_says_why():
    assert all(r["said"] for r in ROWS if r["outcome"] != "trains")
