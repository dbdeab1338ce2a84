"""Random numbers of a batch: the same whenever it is met again, and no device asked that does not take part."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visiontune.callbacks.checkpoints import Reseed, seed_torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def drawn(device, step, batch=0, rank=0):
    """Numbers of every generator after a batch began."""
    where = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=step, global_rank=rank, strategy=where)
    Reseed(7).on_train_batch_start(trainer, None, None, batch)
    return [*torch.rand(2).tolist(), *torch.rand(2, device=device).tolist(), *np.random.rand(2).tolist()]


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_draws_the_same_again_and_no_two_draw_alike(device):
    first = drawn(device, step=5)
    others = [drawn(device, step=6), drawn(device, step=5, batch=1), drawn(device, step=5, rank=1)]
    assert drawn(device, step=5, batch=2) == first  # the first part of an accumulated step again
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_are_those_of_torchs_own_seeding(device):
    torch.manual_seed(11)
    expected = torch.rand(3, device=device)
    seed_torch(11, torch.device(device))
    assert torch.equal(torch.rand(3, device=device), expected)


def test_on_a_cpu_no_other_device_is_asked(monkeypatch):
    for library in (torch.cuda, torch.mps, torch.xpu, torch.mtia):
        for name in ("manual_seed", "manual_seed_all"):
            monkeypatch.setattr(library, name, None, raising=False)
    seed_torch(3, torch.device("cpu"))
    assert torch.initial_seed() == 3
