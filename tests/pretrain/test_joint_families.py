"""timm's families by joint-embedding methods, behind `-m slow`; three families are in every run of the tests (`test_joint.py`)."""

import sys

import pytest

from tests.conftest import JOINT, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from joint_families import losses_of, read_rows, trains

ROWS = read_rows()
TRAINING = [r for r in ROWS if r["outcome"] == "trains"]


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINING, ids=lambda r: f"{r['method']}-{r['family']}")
def test_the_loss_of_a_fixed_batch_falls_in_five_steps(row):
    losses = losses_of(row["method"], row["model"], int(row["image_size"]), float(row["lr"]))
    assert trains(losses), losses


def test_the_table_says_that_each_method_trains_on_twenty_families():
    for method in JOINT:
        assert len({r["family"] for r in TRAINING if r["method"] == method}) >= 20, method
    assert {(r["family"], r["method"]) for r in ROWS} == {(f, m) for f in {r["family"] for r in ROWS} for m in JOINT}


def test_what_does_not_train_says_why():
    assert all(r["said"] for r in ROWS if r["outcome"] != "trains")
