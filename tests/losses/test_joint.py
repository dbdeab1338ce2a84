"""Losses of the joint-embedding methods: values from elsewhere, properties, gradients, mixed precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.losses.waves import waves
from visiontune.losses import (
    barlow_twins,
    cross_entropy,
    cross_entropy_between_views,
    epps_pulley,
    feature_distance,
    koleo,
    negative_cosine,
    sigreg,
    sinkhorn,
    spread,
    vicreg,
    vicreg_parts,
)


def of_seed(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda: negative_cosine(waves(), waves(0.25)), -0.985914645446),
        (lambda: 2 + 2 * negative_cosine(waves(), waves(0.25)), 0.028170709107),
        (lambda: barlow_twins(waves(), waves(0.25)), 0.126734522414),
        (lambda: vicreg(waves(), waves(0.25)), 8.21685107466),
        (lambda: vicreg_parts(waves(), waves(0.25))[0], 0.0150301268566),
        (lambda: vicreg_parts(waves(), waves(0.25))[1], 0.285945325541),
        (lambda: vicreg_parts(waves(), waves(0.25))[2], 0.692464764719),
        (lambda: koleo(waves()), -0.344541318759),
    ],
    ids=["cosine", "byol", "barlow twins", "vicreg", "invariance", "variance", "covariance", "koleo"],
)
def test_values_from_an_independent_computation(loss, value):
    assert loss().item() == pytest.approx(value, rel=1e-10)


SHARES = F.softmax(waves()[:5, :6], dim=-1)
LOSSES = {
    "cosine": negative_cosine,
    "barlow twins": barlow_twins,
    "vicreg": vicreg,
    "koleo": lambda a, b: koleo(a) + koleo(b),
    "sigreg": lambda a, b: sigreg(torch.stack([a, b]), directions=4, generator=torch.Generator().manual_seed(0)),
    "views": lambda a, b: cross_entropy_between_views(
        torch.stack([a, b]), F.softmax(waves()[:5, :6], dim=-1).to(a.dtype).expand(2, -1, -1)
    ),
    "patches": lambda a, b: cross_entropy(a * b, F.softmax(waves()[:5, :6], dim=-1).to(a.dtype)),
    "features": feature_distance,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    a, b = (of_seed(s, 5, 6).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(LOSSES[name], (a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_half_precision_embeddings_is_computed_in_full(name):
    a, b = (of_seed(s, 5, 6).bfloat16() for s in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = LOSSES[name](a, b)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(LOSSES[name](a.float(), b.float()).item(), rel=0.02 if name in ("patches", "views") else 1e-5)


@pytest.mark.parametrize("name", ["cosine", "barlow twins", "vicreg", "koleo", "sigreg", "features"])
def test_pictures_may_be_shuffled(name):
    a, b, order = of_seed(1, 6, 8), of_seed(2, 6, 8), torch.randperm(6)
    assert LOSSES[name](a[order], b[order]).item() == pytest.approx(LOSSES[name](a, b).item(), rel=1e-9)


def test_equal_views_are_the_optimum_of_the_cosine_and_of_features():
    z = of_seed(0, 4, 8)
    assert negative_cosine(z, 3 * z).item() == pytest.approx(-1)
    assert feature_distance(z, z).item() == pytest.approx(0, abs=1e-12)


def test_barlow_twins_is_zero_where_dimensions_agree_and_are_uncorrelated():
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow_twins(z, 5 * z + 2, eps=0).item() == pytest.approx(0, abs=1e-12)
    assert barlow_twins(z, -z, eps=0).item() == pytest.approx(8)  # both dimensions at -1
    assert barlow_twins(z, z.flip(1), redundancy=0.5, eps=0).item() == pytest.approx(2 + 0.5 * 2)  # exchanged


def test_vicreg_is_zero_where_views_agree_dimensions_are_wide_and_uncorrelated():
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert vicreg(z, z).item() == pytest.approx(0, abs=1e-12)
    collapsed = torch.ones(4, 2, dtype=torch.float64)
    parts = vicreg_parts(collapsed, collapsed)
    assert [p.item() for p in parts] == pytest.approx([0, 1 - math.sqrt(1e-4), 0], abs=1e-9)


def test_koleo_is_the_distance_to_the_nearest_and_falls_as_rows_move_apart():
    near = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=torch.float64)
    far = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert koleo(far).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)
    assert koleo(far) < koleo(near)
    assert math.isfinite(koleo(torch.ones(3, 2)).item())


def test_epps_pulley_tells_a_normal_sample_from_others_and_agrees_with_the_integral():
    normal = of_seed(0, 4000, 1)
    assert epps_pulley(normal).item() < 2
    for other in (3 * normal, normal + 1, torch.rand(4000, 1).double() * math.sqrt(12) - math.sqrt(3), torch.zeros(4000, 1).double()):
        assert epps_pulley(other).item() > 5
    x = of_seed(1, 50, 1)
    t = torch.linspace(-5, 5, 17, dtype=torch.float64)
    empirical = torch.exp(1j * x * t).mean(dim=0)
    integrand = (empirical - torch.exp(-t.square() / 2)).abs().square() * torch.exp(-t.square() / 2)
    assert epps_pulley(x).item() == pytest.approx(50 * torch.trapezoid(integrand, t).item(), rel=1e-10)


def test_sigreg_draws_the_same_directions_for_a_step_and_others_for_the_next():
    z = of_seed(0, 32, 8)
    first, again, other = (sigreg(z, directions=8, generator=torch.Generator().manual_seed(s)).item() for s in (3, 3, 4))
    assert first == again != other
    assert sigreg(z, directions=2048).item() == pytest.approx(sigreg(z, directions=2048).item(), rel=0.1)


def test_undecided_networks_have_the_entropy_of_a_fair_choice():
    even = torch.full((2, 4, 10), 0.1)
    assert cross_entropy_between_views(torch.zeros(5, 4, 10), even).item() == pytest.approx(math.log(10))
    assert cross_entropy(torch.zeros(4, 10), even[0]).item() == pytest.approx(math.log(10))


def test_each_view_is_compared_with_every_other_and_never_with_itself():
    student, teacher = of_seed(0, 4, 3, 5), F.softmax(of_seed(1, 2, 3, 5), dim=-1)
    log_p = F.log_softmax(student, dim=-1)
    pairs = [-(teacher[i] * log_p[j]).sum(-1).mean() for i in range(2) for j in range(4) if i != j]
    assert cross_entropy_between_views(student, teacher).item() == pytest.approx(torch.stack(pairs).mean().item())


def test_sinkhorn_uses_all_prototypes_alike_and_needs_no_wide_exponent():
    logits = of_seed(0, 64, 8)
    shares = sinkhorn(logits, 0.5, iterations=200)
    assert torch.allclose(shares.sum(dim=1), torch.ones(64).double())
    assert torch.allclose(shares.sum(dim=0), torch.full((8,), 8.0).double(), atol=1e-4)
    sharp = sinkhorn(100 * logits.float(), 0.01)  # exp(10^4) overflows
    assert torch.isfinite(sharp).all()
    assert torch.allclose(sinkhorn(logits + 7, 0.5), sinkhorn(logits, 0.5))


def test_spread_of_a_cloud_and_of_a_point():
    assert spread(of_seed(0, 2000, 32)).item() == pytest.approx(1, abs=0.05)
    assert spread(torch.ones(16, 8)).item() == 0
    assert not spread(of_seed(0, 4, 4).requires_grad_()).requires_grad


def test_wrong_arguments_are_named():
    for loss in (barlow_twins, vicreg):
        with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
            loss(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="at least 2 pictures"):
        vicreg(torch.ones(1, 2), torch.ones(1, 2))
