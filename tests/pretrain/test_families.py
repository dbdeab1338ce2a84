"""timm's families by masked methods: some in every run of the tests, all of them behind `-m slow`."""

import sys

import pytest

from tests.conftest import ROOT
from visiontune.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
from masked_families import CLASSES, families, losses_of, read_rows, trains

ROWS = read_rows()
TRAINING = [r for r in ROWS if r["outcome"] == "trains"]
REFUSED = [r for r in ROWS if r["outcome"] == "refused"]
# A plain and a rotary ViT, a hierarchical transformer, a hybrid, and convnets with batch norm and squeeze-excite, layer norm, neither.
OFTEN = {
    ("mae", "vision_transformer"), ("ijepa", "eva"), ("simmim", "swin_transformer_v2"), ("simmim", "edgenext"), ("spark", "mobilenetv3"),
    ("spark", "convnext"), ("spark", "nfnet"),
}  # fmt: skip


def named(row: dict[str, str]) -> str:
    return f"{row['method']}-{row['family']}"


def of(rows: list[dict[str, str]]) -> list:
    return [pytest.param(r, id=named(r), marks=() if (r["method"], r["family"]) in OFTEN else pytest.mark.slow) for r in rows]


@pytest.mark.parametrize("row", of(TRAINING))
def test_the_loss_of_a_fixed_batch_and_mask_falls_in_five_steps(row):
    losses = losses_of(row["method"], row["model"], int(row["image_size"]), float(row["lr"]))
    assert trains(losses), losses


@pytest.mark.slow
@pytest.mark.parametrize("row", REFUSED, ids=named)
def test_what_is_not_supported_is_refused_in_a_sentence(row):
    with pytest.raises(UserError, match=r"^(backbone|data|method)\."):
        losses_of(row["method"], row["model"], 64)


def test_the_ones_run_often_are_in_the_table():
    assert {(r["method"], r["family"]) for r in TRAINING} >= OFTEN


def test_the_table_holds_every_family_and_the_methods_of_each():
    """Of the timm that it was made with; a newer one may have more."""
    by_spark = {r["family"] for r in TRAINING if r["method"] == "spark"}
    assert {(r["family"], r["method"]) for r in ROWS} == {
        (f, m) for f in {r["family"] for r in ROWS} for m in CLASSES if m != "simmim" or f not in by_spark
    }
    assert len({r["family"] for r in ROWS}) >= 40
    missing = set(families()) - {r["family"] for r in ROWS}
    import timm

    assert not missing or timm.__version__ != ROWS[0]["timm"], missing


def test_what_trains_by_nothing_says_why():
    for family in {r["family"] for r in ROWS}:
        own = [r for r in ROWS if r["family"] == family]
        assert any(r["outcome"] == "trains" for r in own) or all(r["said"] for r in own), family
