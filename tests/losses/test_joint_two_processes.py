"""What batch statistics and gathered rows give on two processes is what one process gives on the joined batch: loss and gradient."""

import pytest
import torch

from tests.losses.waves import waves
from tests.two_processes import means
from visiontune.heads.prototypes import Centring
from visiontune.heads.queue import Queue
from visiontune.losses import (
    barlow_twins,
    cross_entropy_between_views,
    gather_with_grad,
    info_nce,
    info_nce_queue,
    koleo,
    sigreg,
    sinkhorn,
    vicreg,
)
from visiontune.pretrain.swav import SwAV


def _views(z0: torch.Tensor, z1: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return cross_entropy_between_views(torch.stack([z0, z1]), shares.detach().unflatten(0, (2, -1)))


def swav(z0, z1):
    return _views(z0, z1, torch.cat([sinkhorn(z0.detach(), 0.5), sinkhorn(z1.detach(), 0.5)]))


def swav_queue(z0, z1):
    kept = SwAV.share_of(waves(0.5)[:6])  # six rows of which every process sorts its part along
    codes = [sinkhorn(torch.cat([kept, z.detach()]), 0.5)[-len(z) :] for z in (z0, z1)]
    return _views(z0, z1, torch.cat(codes))


def rows_used_twice(z0, z1):
    """Autograd hands one gradient to both gathers: neither may write into it."""
    return ((gather_with_grad(z0) + gather_with_grad(z1)) * waves(0.7)).sum()


def dino(z0, z1):
    centring, both = Centring(z0.shape[1]).double(), torch.cat([z0, z1]).detach()
    centring(both + 1, 0.5)  # the mean of all processes
    return _views(z0, z1, centring(both, 0.5))


def moco(z0, z1):
    queue = Queue(12, z0.shape[1]).double()
    queue.rows.copy_(waves()[:1].expand(12, -1))
    queue.add(z1)  # the rows of all processes
    return info_nce_queue(z0, z1, queue.rows, 0.5)


LOSSES = {
    "barlow twins": barlow_twins,
    "vicreg": vicreg,
    "koleo": lambda a, b: koleo(a) + koleo(b),
    "sigreg": lambda a, b: sigreg(torch.stack([a, b]), directions=4, generator=torch.Generator().manual_seed(0)),
    "moco v3": lambda a, b: info_nce(a, b, 0.2) + info_nce(b, a, 0.2),
    "moco v2": moco,
    "swav": swav,
    "swav with a queue": swav_queue,
    "rows used twice": rows_used_twice,
    "dino": dino,
}


def loss_of(name: str, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.eye(16, dtype=torch.float64, requires_grad=True)  # a shared layer, as DistributedDataParallel would hold it
    loss = LOSSES[name](waves()[rows] @ weight, waves(0.25)[rows] @ weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.detach(), gradient


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return means(loss_of, LOSSES, 4, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_give_the_loss_and_gradient_of_one(halves, name):
    loss, gradient = halves[name]
    whole, expected = loss_of(name, slice(0, 8))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-6)


def test_a_queue_that_processes_do_not_divide_is_cut_so_that_all_sort_as_many_rows(monkeypatch):
    for rank in range(3):
        monkeypatch.setattr("visiontune.pretrain.swav.world_size", lambda: 3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        assert SwAV.share_of(torch.arange(8)).tolist() == [rank, rank + 3]
