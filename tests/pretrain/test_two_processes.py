"""Each masked method on two processes has the gradient of one process on the joined batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.conftest import CONV, VIT
from visiontune import IJEPA, MAE, SimMIM, SparK
from visiontune.module import Module

KINDS = ("mae", "simmim", "spark", "ijepa")
SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "drop_path_rate": 0.0}


def make(kind: str) -> Module:
    torch.manual_seed(0)
    vit = {"backbone": VIT["name"], "backbone_args": VIT["args"], "image_size": 32}
    if kind == "mae":
        return MAE(**vit, decoder_dim=16, decoder_depth=1, decoder_heads=2).double()
    if kind == "ijepa":
        return IJEPA(**vit, target_scale=0.15, predictor_dim=16, predictor_depth=1, predictor_heads=2).double()
    if kind == "simmim":
        return SimMIM("swin_tiny_patch4_window7_224", image_size=32, backbone_args=SWIN, mask_size=8).double()
    module = SparK(CONV["name"], image_size=64, backbone_args=CONV["args"], decoder_dim=16).double()
    module.decoder.eval()  # its dense batch norms; torch's synchronised ones refuse the CPU
    module.active.everywhere = True
    return module


def loss_of(kind: str, rows: slice) -> tuple[Module, torch.Tensor]:
    module = make(kind)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, *module.picture_size, dtype=torch.float64, generator=generator)
    masks = module.mask(images, generator)
    part = type(masks)(**{name: value[rows] for name, value in vars(masks).items()})
    module.mask = lambda *_: part
    return module, module.training_step(images[rows], 0)


def gradient(module: Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def _half(rank: int, file: str, out: str, kind: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module, loss = loss_of(kind, slice(rank * 2, rank * 2 + 2))
    loss.backward()
    values = [loss.detach().clone(), gradient(module)]
    for value in values:  # what DistributedDataParallel does with gradients
        dist.all_reduce(value)
        value /= 2
    if rank == 0:
        torch.save(values, out)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.spawn(_half, args=(str(tmp_path / "meet"), str(tmp_path / "out"), kind), nprocs=2)
    loss, grad = torch.load(tmp_path / "out")
    module, whole = loss_of(kind, slice(0, 4))
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)  # the loss is computed in fp32 where pictures are
    assert torch.allclose(grad, gradient(module), atol=1e-6, rtol=1e-4)
