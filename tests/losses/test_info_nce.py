import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from tests.losses.waves import waves
from visiontune.losses import info_nce, info_nce_queue


def test_value_from_an_independent_computation():
    value = info_nce(waves(), waves(0.25), 0.2) + info_nce(waves(0.25), waves(), 0.2)
    assert value.item() == pytest.approx(0.0383153923619, abs=1e-9)


def test_queue_gives_the_loss_and_gradient_of_lightlys_memory_bank():
    loss = NTXentLoss(temperature=0.07, memory_bank_size=(96, 16))
    queue = loss.memory_bank.bank.clone()
    q, k = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    expected, value = loss(q, k), info_nce_queue(q, k, queue, 0.07)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(*(torch.autograd.grad(x, q)[0] for x in (value, expected)), atol=1e-6)


def test_queue_loss_is_cross_entropy_with_the_positive_first():
    q, k = torch.randn(2, 1, 16, dtype=torch.float64)
    others = F.normalize(torch.randn(5, 16, dtype=torch.float64), dim=1)
    value = info_nce_queue(q, k, others, 0.3)
    logits = F.normalize(q, dim=1) @ torch.cat([F.normalize(k, dim=1), others]).T / 0.3
    assert value.item() == pytest.approx(F.cross_entropy(logits, torch.tensor([0])).item(), rel=1e-12)


def test_equal_rows_give_the_log_of_the_number_of_keys():
    z = torch.ones(6, 4)
    assert info_nce(z, z, 0.2).item() == pytest.approx(0.4 * math.log(6), rel=1e-5)
    assert info_nce_queue(z, z, torch.full((9, 4), 0.5), 0.2).item() == pytest.approx(math.log(10), rel=1e-5)


def test_length_of_queries_and_keys_does_not_matter():
    q, k, queue = torch.randn(4, 8), torch.randn(4, 8), F.normalize(torch.randn(5, 8), dim=1)
    assert info_nce(q * 7, k / 3).item() == pytest.approx(info_nce(q, k).item(), rel=1e-5)
    assert info_nce_queue(q * 7, k / 3, queue).item() == pytest.approx(info_nce_queue(q, k, queue).item(), rel=1e-5)


def test_keys_and_queue_get_no_gradient():
    q, k, queue = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    (info_nce(q, k) + info_nce_queue(q, k, queue)).backward()
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert queue.grad is None


def test_gradcheck():
    q, k = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    queue = F.normalize(torch.randn(4, 5, dtype=torch.float64), dim=1)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, k, 0.5), q)
    assert torch.autograd.gradcheck(lambda q: info_nce_queue(q, k, queue, 0.5), q)


def test_under_bf16_autocast_the_loss_stays_fp32():
    q, k, queue = torch.randn(16, 32), torch.randn(16, 32), F.normalize(torch.randn(8, 32), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, mixed_queue = info_nce(q, k), info_nce_queue(q, k, queue)
    assert mixed.dtype == mixed_queue.dtype == torch.float32
    assert (mixed.item(), mixed_queue.item()) == (info_nce(q, k).item(), info_nce_queue(q, k, queue).item())


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        info_nce(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="temperature"):
        info_nce(torch.ones(3, 2), torch.ones(3, 2), 0.0)
    with pytest.raises(ValueError, match=r"\(L, 2\) but got \(5, 3\)"):
        info_nce_queue(torch.ones(3, 2), torch.ones(3, 2), torch.ones(5, 3))


def _loss(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return info_nce(q, k, 0.2) + info_nce_queue(q, k, F.normalize(waves(0.5), dim=1), 0.2)


def _half(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rows = slice(rank * 4, rank * 4 + 4)
    weight = torch.eye(16, dtype=torch.float64, requires_grad=True)  # a shared layer, as DistributedDataParallel would hold it
    loss = _loss(waves()[rows] @ weight, waves(0.25)[rows])
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
    whole = _loss(waves() @ weight, waves(0.25))
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(gradient, weight.grad, atol=1e-12)
