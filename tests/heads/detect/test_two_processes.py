"""Losses that are divided by how many boxes there are: two processes, one of them without a box, learn what one process does of all."""

import pytest
import torch

from tests.heads.detect.test_heads import TRUTH, features, head
from tests.two_processes import means

# Faster R-CNN draws a fixed number of positions for each picture.
HEADS = ("fcos", "retinanet", "dfine", "deimv2", "rtdetrv2")
# The distillation is a mean over queries, weighted by how many are matched on this process, as the authors have it.
PARTS = ("classes", "boxes", "centers", "overlaps", "sides")


def loss_of(name: str, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    more = {} if name in ("fcos", "retinanet") else {"denoising": 0}
    net = head(name, width=64, **more).eval()  # batch norms of statistics that stand still
    found = net.loss([m[rows] for m in features(width=64)], TRUTH[rows], (64, 64))
    loss = sum(value for part, value in found.items() if part in PARTS)
    weight = max((p for p in net.parameters() if p.requires_grad), key=lambda p: p.numel())
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.detach(), gradient


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return means(loss_of, HEADS, 1, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_give_the_loss_and_gradient_of_one(halves, name):
    loss, gradient = halves[name]
    whole, expected = loss_of(name, slice(0, 2))
    assert [len(t) for t in TRUTH[:2]] == [2, 0]
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert expected.abs().max() > 0
    assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-4)
