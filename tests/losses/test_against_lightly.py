"""The same numbers as an outside implementation, lightly's, on the same random embeddings: losses and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from lightly import loss as lightly

from visiontune.heads.prototypes import Centring
from visiontune.losses import (
    barlow_twins,
    cross_entropy,
    cross_entropy_between_views,
    epps_pulley,
    koleo,
    negative_cosine,
    sinkhorn,
    vicreg,
)


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


PAIRS = {
    "cosine": (negative_cosine, lightly.NegativeCosineSimilarity()),
    "barlow twins": (lambda a, b: barlow_twins(a, b, 0.005), lightly.BarlowTwinsLoss()),
    "vicreg": (vicreg, lightly.VICRegLoss()),
    "koleo": (lambda a, b: koleo(a), lambda a, b: lightly.KoLeoLoss()(a)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_two_views(name):
    ours, theirs = PAIRS[name]
    found = []
    for loss in (ours, theirs):
        a, b = rows(0, 32, 16), rows(1, 32, 16)
        value = loss(a, b)
        value.backward()
        found.append((value.detach(), a.grad))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


def test_dino_over_several_steps_of_its_centre():
    theirs, centring = lightly.DINOLoss(output_dim=12, teacher_temp=0.05, student_temp=0.1), Centring(12)
    for step in range(3):
        student, teacher = rows(step, 5, 8, 12).detach(), rows(step + 9, 2, 8, 12).detach()
        expected = theirs(list(teacher), list(student), teacher_temp=0.05)
        ours = cross_entropy_between_views(student / 0.1, centring(teacher, 0.05))
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(centring.center, theirs.center.value.flatten() if hasattr(theirs.center, "value") else theirs.center.flatten())


def test_swav_with_its_sorting():
    student = 0.3 * rows(0, 5, 16, 12).detach()
    codes = torch.stack([sinkhorn(student[i], 0.05) for i in range(2)])
    expected = lightly.SwaVLoss()(list(student[:2]), list(student[2:]))
    assert cross_entropy_between_views(student / 0.1, codes).item() == pytest.approx(expected.item(), rel=1e-4)


def test_ibot_of_hidden_patches():
    student, teacher = rows(0, 6, 12).detach(), rows(1, 6, 12).detach()  # two pictures, three hidden patches each
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[:, 0] = True
    expected = lightly.IBOTPatchLoss(output_dim=12, teacher_temp=0.05)(teacher, student, mask)
    ours = cross_entropy(student / 0.1, Centring(12)(teacher, 0.05))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sigreg_in_the_same_directions():
    z, towards = rows(0, 3, 32, 8).detach(), F.normalize(rows(1, 8, 16).detach(), dim=0)
    theirs = lightly.SIGReg(knots=9, t_max=5.0, num_vectors=16)
    theirs._generate_unit_vectors = lambda *_: towards
    assert epps_pulley(z @ towards).mean().item() == pytest.approx(theirs(z).item(), rel=1e-4)
