import importlib
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch.utils._python_dispatch import TorchDispatchMode

from tests.losses.waves import waves
from visiontune.losses import nt_xent

module = importlib.import_module("visiontune.losses.nt_xent")  # the package's attribute of this name is the function


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


def value_and_gradient(loss, *rows: torch.Tensor) -> tuple[float, torch.Tensor]:
    rows = tuple(z.clone().requires_grad_() for z in rows)
    value = loss(*rows)
    return value.item(), torch.cat(torch.autograd.grad(value, rows))


@pytest.mark.parametrize(("pairs", "temperature"), [(1, 0.5), (7, 0.1), (64, 0.5), (300, 0.01)])
def test_loss_and_gradient_are_those_of_lightly(pairs, temperature):
    rows = torch.randn(2, pairs, 32).unbind()
    value, gradient = value_and_gradient(lambda a, b: nt_xent(a, b, temperature), *rows)
    expected, expected_gradient = value_and_gradient(NTXentLoss(temperature), *rows)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5 * expected_gradient.abs().max().item() + 1e-9)


@pytest.mark.parametrize("block", [1, 18 * 4, 18 * 9, 18 * 100])
def test_size_of_a_block_does_not_matter(monkeypatch, block):
    def at_once(z0: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
        z = F.normalize(torch.cat([z0, z1]), dim=1)
        logits = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
        return F.cross_entropy(logits, torch.arange(18).roll(9))

    rows = torch.randn(2, 9, 8, dtype=torch.float64).unbind()
    monkeypatch.setattr(module, "BLOCK_CPU", block)
    value, gradient = value_and_gradient(lambda a, b: nt_xent(a, b, 0.2), *rows)
    expected, expected_gradient = value_and_gradient(at_once, *rows)
    assert value == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made within."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(x.numel() for x in (out if isinstance(out, (tuple, list)) else [out])))
        return out


def test_all_logits_are_never_in_memory_together():
    z0, z1 = (torch.randn(1024, 8, requires_grad=True) for _ in range(2))
    with Largest() as largest:
        nt_xent(z0, z1).backward()
    assert largest.elements == module.BLOCK_CPU < 2048**2


def test_far_apart_rows_at_a_small_temperature_stay_finite():
    z0 = torch.eye(4, requires_grad=True)
    loss = nt_xent(z0, -torch.eye(4), 0.001)  # the positive is 1000 below the negatives
    loss.backward()
    assert loss.item() == pytest.approx(1000 + math.log(6), rel=1e-5)
    assert z0.grad.isfinite().all()


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


def test_a_gradient_of_the_gradient_is_refused():
    z0, z1 = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(nt_xent(z0, z1), z0, create_graph=True)


def test_compiles_as_one_graph():
    rows = torch.randn(2, 8, 4).unbind()
    value, gradient = value_and_gradient(torch.compile(nt_xent, fullgraph=True, backend="aot_eager"), *rows)
    expected, expected_gradient = value_and_gradient(nt_xent, *rows)
    assert value == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-7)


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
    module.BLOCK_CPU = 3 * 16  # blocks of three rows and of one
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
