import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from visiontune.losses import nt_xent


def waves(shift: float = 0.0) -> torch.Tensor:
    """A closed form that anyone can type: z0 = sin(0.37 i j), z1 shifted by 0.25 cos(0.9 i + 0.6 j)."""
    i, j = torch.meshgrid(torch.arange(1, 9, dtype=torch.float64), torch.arange(1, 17, dtype=torch.float64), indexing="ij")
    return torch.sin(0.37 * i * j + shift * torch.cos(0.9 * i + 0.6 * j))


@pytest.mark.parametrize(("temperature", "value"), [(0.1, 0.000715970055684), (0.2, 0.0937267049813), (0.5, 1.0703566052525)])
def test_values_from_an_independent_computation(temperature, value):
    assert nt_xent(waves(), waves(0.25), temperature).item() == pytest.approx(value, abs=1e-9)


def test_agrees_with_the_definition_written_as_loops():
    z0, z1 = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    z = torch.cat([z0, z1])
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(10):
        positive = (i + 5) % 10
        denominator = sum(math.exp(float(z[i] @ z[k]) / 0.3) for k in range(10) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[positive]) / 0.3) / denominator)
    assert nt_xent(z0, z1, 0.3).item() == pytest.approx(total / 10, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equal_embeddings_give_log_of_all_others(temperature):
    z = torch.ones(6, 4)
    assert nt_xent(z, z, temperature).item() == pytest.approx(math.log(2 * 6 - 1), rel=1e-5)


def test_views_may_change_places_and_pictures_may_be_shuffled():
    z0, z1, order = torch.randn(6, 8), torch.randn(6, 8), torch.randperm(6)
    value = nt_xent(z0, z1)
    assert nt_xent(z1, z0).item() == pytest.approx(value.item(), rel=1e-5)
    assert nt_xent(z0[order], z1[order]).item() == pytest.approx(value.item(), rel=1e-5)


def test_length_of_an_embedding_does_not_matter():
    z0, z1 = torch.randn(4, 8), torch.randn(4, 8)
    assert nt_xent(z0 * 7, z1 / 3).item() == pytest.approx(nt_xent(z0, z1).item(), rel=1e-5)


def test_gradcheck():
    z0, z1 = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z0, z1))


def test_under_bf16_autocast_the_loss_stays_fp32():
    z0, z1 = torch.randn(16, 32), torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(z0, z1)
    assert mixed.dtype == torch.float32
    assert mixed.item() == nt_xent(z0, z1).item()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        nt_xent(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(torch.ones(3, 2), torch.ones(3, 2), 0.0)


def _half(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rows = slice(rank * 4, rank * 4 + 4)
    weight = torch.eye(16, dtype=torch.float64, requires_grad=True)  # a shared layer, as DistributedDataParallel would hold it
    loss = nt_xent(waves()[rows] @ weight, waves(0.25)[rows] @ weight, 0.2)
    loss.backward()
    mean = loss.detach().clone()
    for value in (mean, weight.grad):  # what DistributedDataParallel does with gradients
        dist.all_reduce(value)
        value /= 2
    if rank == 0:
        torch.save((mean, weight.grad), out)
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.spawn(_half, args=(str(tmp_path / "meet"), str(tmp_path / "out")), nprocs=2)
    loss, gradient = torch.load(tmp_path / "out")
    weight = torch.eye(16, dtype=torch.float64, requires_grad=True)
    whole = nt_xent(waves() @ weight, waves(0.25) @ weight, 0.2)
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(gradient, weight.grad, atol=1e-12)
