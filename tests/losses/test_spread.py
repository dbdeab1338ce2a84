import pytest
import torch

from tests.losses.test_nt_xent import waves
from visiontune.losses import spread


def test_value_of_lightlys_function_in_our_units():
    """lightly.utils.debug.std_of_l2_normalized(z0) of lightly 1.6 is 0.243745300231: the sample's deviation, not times sqrt(D)."""
    assert spread(waves()).item() == pytest.approx(0.24374530023115312 * 16**0.5 * (7 / 8) ** 0.5, abs=1e-12)


def test_it_is_one_for_an_isotropic_cloud_and_zero_for_a_collapsed_one():
    cloud = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))
    assert spread(cloud).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(64, 32)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.zeros(64, 32)).item() == 0
    assert spread(cloud[:1]).item() == 0
    assert spread(cloud + 30).item() < 0.1


@pytest.mark.parametrize("n", [2, 3, 100])
def test_it_never_exceeds_one(n):
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    assert 0 <= spread(torch.cat([z, -z])).item() <= 1 + 1e-6


def test_length_of_an_embedding_does_not_matter():
    z, length = torch.randn(8, 4), torch.rand(8, 1) + 0.1
    assert spread(z * length).item() == pytest.approx(spread(z).item(), rel=1e-5)


def test_it_is_a_measure_without_gradient_and_stays_fp32_under_bf16():
    z = torch.randn(16, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = spread(z)
    assert not mixed.requires_grad
    assert mixed.item() == spread(z).item()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        spread(torch.ones(2, 3, 4))
