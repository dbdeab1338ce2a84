import pytest
import torch

from tests.losses.test_nt_xent import waves
from visiontune.evaluate import rank_me


def test_value_from_an_independent_computation():
    assert rank_me(waves()).item() == pytest.approx(7.99993178787, abs=1e-9)


def test_agrees_with_the_definition_written_as_a_loop():
    z = torch.randn(20, 6, dtype=torch.float64)
    sigma = torch.linalg.svd(z)[1].tolist()
    entropy = 0.0
    for s in sigma:
        p = torch.tensor(s / sum(sigma) + 1e-7, dtype=torch.float64)
        entropy -= float(p * p.log())
    assert rank_me(z).item() == pytest.approx(torch.tensor(entropy).exp().item(), rel=1e-6)


def test_equal_rows_have_rank_one_and_many_gaussian_rows_nearly_their_width():
    assert rank_me(torch.ones(50, 16)).item() == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.zeros(50, 16)).item() == pytest.approx(1, abs=1e-3)
    z = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert rank_me(z).item() == pytest.approx(16, abs=0.1)
    assert rank_me(z[:10]).item() < 10


def test_it_counts_directions():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.linalg.qr(torch.randn(32, 3))[0].T
    assert rank_me(z).item() == pytest.approx(3, abs=0.05)


def test_scale_and_order_do_not_matter():
    z = torch.randn(40, 8)
    assert rank_me(z * 1e4).item() == pytest.approx(rank_me(z).item(), rel=1e-4)
    assert rank_me(z[torch.randperm(40)]).item() == pytest.approx(rank_me(z).item(), rel=1e-4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(5,\)"):
        rank_me(torch.ones(5))
