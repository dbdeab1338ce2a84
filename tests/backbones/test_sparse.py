"""A dense network that must do what a sparse one does. Gathered positions are the reference everywhere."""

import copy
import os
import pickle
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers.grn import GlobalResponseNorm
from torch import nn

from visiontune.backbones import create, levels
from visiontune.backbones.install import install, restore
from visiontune.backbones.sparse import Active, Masked, MaskedBatchNorm, MaskedGroupNorm
from visiontune.backbones.sparsify import install_masks, make_sparse

FAMILIES = [
    "resnet18", "convnextv2_atto", "efficientnet_b0", "regnety_002", "nfnet_l0", "gcresnet33ts", "skresnet18", "resnest14d", "hgnetv2_b0",
]  # fmt: skip


def show(active: Active, B=2, h=4, w=4, share=0.5) -> torch.Tensor:
    """Show the same number of positions in each picture, others in each; `(B, 1, h, w)`."""
    order = torch.rand(B, h * w).argsort(dim=1)
    seen = torch.zeros(B, h * w, dtype=torch.bool).scatter_(1, order[:, : round(share * h * w)], True).view(B, h, w)
    active.show(seen, share)
    return seen.unsqueeze(1)


def sparse(model: nn.Module, active: Active) -> None:
    make_sparse(model, active, (2, 2), partial(levels, model), torch.zeros(1, 3, 64, 64))


def randomise(model: nn.Module) -> nn.Module:
    """No zero-initialised gammas or biases, which would hide what they let through."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_positions_are_zero_after_every_layer(name):
    torch.manual_seed(0)
    model, active = randomise(create(name, image_size=64)).train(), Active()
    sparse(model, active)
    seen = show(active, h=2, w=2)
    leaking = []

    def look(layer, _, out):
        if not isinstance(out, torch.Tensor) or out.ndim != 4 or getattr(layer, "fill", 0) != 0:
            return
        last = out.shape[1:3] in {(2 * n, 2 * n) for n in (1, 2, 4, 8, 16)} and out.shape[2] != out.shape[3]
        x = out.permute(0, 3, 1, 2) if last or getattr(layer, "channels_last", False) else out
        if x.shape[2] * x.shape[3] > 1 and (x * (1 - active.map(tuple(x.shape[2:])))).any():
            leaking.append(type(layer).__name__)

    # what a norm does inside itself (activating) comes before its own masking
    inside = {part for norm in model.modules() if isinstance(norm, MaskedBatchNorm | MaskedGroupNorm) for part in norm.children()}
    for layer in set(model.modules()) - inside:
        layer.register_forward_hook(look)
    maps = levels(model, torch.randn(2, 3, 64, 64) * active.map((64, 64)))
    assert leaking == []
    assert len(maps) > 2
    for m in maps:
        hidden = ~seen.repeat_interleave(m.shape[2] // 2, 2).repeat_interleave(m.shape[3] // 2, 3)
        assert not (m * hidden).any()
        assert m.isfinite().all()
        assert (m * ~hidden).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_under_hidden_positions_change_nothing(name):
    torch.manual_seed(0)
    model, active = randomise(create(name, image_size=64)).eval(), Active()
    sparse(model, active)
    show(active, h=2, w=2)
    images, visible = torch.randn(2, 3, 64, 64), active.map((64, 64))
    other = images * visible + torch.randn(2, 3, 64, 64) * (1 - visible)
    for a, b in zip(levels(model, images * visible), levels(model, other * visible), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_nothing_hidden_it_is_timms_network_and_its_running_statistics(name):
    torch.manual_seed(0)
    plain = randomise(create(name, image_size=64)).train()
    model, active = copy.deepcopy(plain), Active()
    sparse(model, active)
    active.show(torch.ones(8, 2, 2, dtype=torch.bool), 1.0)
    images = torch.randn(8, 3, 64, 64)
    for module in (plain, model):  # dropout off, batch statistics on
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    for a, b in zip(levels(plain, images), levels(model, images), strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)
    for (n, a), (m, b) in zip(plain.state_dict().items(), model.state_dict().items(), strict=True):
        assert n == m
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-3), n


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_masked_convolution_equals_a_gathered_one(stride, groups):
    """The reference visits the visible output positions alone and sums over visible inputs alone, in plain loops."""
    torch.manual_seed(0)
    conv, active = nn.Conv2d(4, 8, 3, stride=stride, padding=1, groups=groups), Active()
    install(conv, Masked, active=active)
    show(active, h=4, w=4)
    seen = active.map((8, 8))
    x = torch.randn(2, 4, 8, 8) * seen
    out, kept = conv(x), active.map((8 // stride, 8 // stride))
    for b, _, i, j in kept.nonzero().tolist():
        value = conv.bias.detach().clone()
        for di in range(3):
            for dj in range(3):
                y, z = i * stride + di - 1, j * stride + dj - 1
                if 0 <= y < 8 and 0 <= z < 8 and seen[b, 0, y, z]:
                    part = x[b, :, y, z].view(groups, 4 // groups, 1)
                    weight = conv.weight[:, :, di, dj].view(groups, 8 // groups, 4 // groups)
                    value = value + (weight @ part).flatten()
        assert torch.allclose(out[b, :, i, j], value, atol=1e-5)
    assert not (out * (1 - kept)).any()


@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda c: timm.layers.BatchNormAct2d(c, act_layer=nn.SiLU)])
def test_masked_batch_norm_equals_batch_norm_of_the_gathered_positions(make):
    torch.manual_seed(0)
    plain = randomise(make(6)).double().train()
    layer, active = copy.deepcopy(plain), Active()
    install(layer, MaskedBatchNorm, active=active)
    seen = show(active, B=3)
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64) * seen
    where = seen[:, 0]
    gathered = x.permute(0, 2, 3, 1)[where].t().contiguous().view(1, 6, -1, 1)  # as one picture of all visible positions
    a, b = x.clone().requires_grad_(), gathered.clone().requires_grad_()
    out, expected = layer(a), plain(b)
    assert torch.allclose(out.permute(0, 2, 3, 1)[where], expected[0, :, :, 0].t(), atol=1e-10)
    for n, value in plain.state_dict().items():
        assert torch.allclose(layer.state_dict()[n].double(), value.double(), atol=1e-10), n
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected[0, :, :, 0].t() * weights.permute(0, 2, 3, 1)[where]).sum().backward()
    assert torch.allclose(a.grad.permute(0, 2, 3, 1)[where], b.grad[0, :, :, 0].t(), atol=1e-9)
    assert torch.allclose(layer.weight.grad, plain.weight.grad, atol=1e-9)


def test_gradcheck_of_masked_batch_norm():
    layer, active = nn.BatchNorm2d(2).double(), Active()
    install(layer, MaskedBatchNorm, active=active)
    seen = show(active)
    x = (torch.randn(2, 2, 4, 4, dtype=torch.float64) * seen).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x * seen), (x,))


def test_gradcheck_of_masked_group_norm():
    layer, active = nn.GroupNorm(2, 4).double(), Active()
    install(layer, MaskedGroupNorm, active=active)
    seen = show(active)
    x = (torch.randn(2, 4, 4, 4, dtype=torch.float64) * seen).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x * seen), (x,))


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (3, True), (1, False)])
def test_masked_group_norm_equals_group_norm_of_the_gathered_positions(groups, bias):
    torch.manual_seed(0)
    plain = randomise(nn.GroupNorm(groups, 6))
    if not bias:  # as in PoolFormer v2
        plain.bias = None
    layer, active = copy.deepcopy(plain), Active()
    install(layer, MaskedGroupNorm, active=active)
    seen = show(active, B=3)
    x = torch.randn(3, 6, 4, 4) * seen
    out = layer(x)
    for b in range(3):
        gathered = x[b, :, seen[b, 0]].unsqueeze(0)  # (1, 6, positions)
        assert torch.allclose(out[b, :, seen[b, 0]], plain(gathered)[0], atol=1e-5)


@pytest.mark.parametrize(
    "gate",
    [
        lambda: timm.layers.SEModule(8, rd_channels=4),
        lambda: timm.layers.EffectiveSEModule(8),
        lambda: timm.layers.EcaModule(8),
        lambda: timm.layers.GlobalContext(8, rd_channels=4),
        lambda: timm.layers.SplitAttn(8, 8, kernel_size=1, norm_layer=nn.BatchNorm2d),
        lambda: timm.layers.SelectiveKernel(8, 8),
        lambda: GlobalResponseNorm(8, channels_last=False),
    ],
)
def test_global_pooling_counts_visible_positions_alone(gate):
    """Two pictures with the same visible halves, one masked, the other only as large as what is visible, give the same."""
    torch.manual_seed(0)
    plain = randomise(gate()).eval()
    layer, active = copy.deepcopy(plain), Active()
    wrapped = nn.Sequential(layer)
    install_masks(wrapped, active)
    x = torch.randn(2, 8, 4, 4)
    seen = torch.zeros(2, 4, 4, dtype=torch.bool)
    seen[:, :, :2] = True
    active.show(seen, 0.5)
    whole = torch.cat([x[..., :2], torch.zeros(2, 8, 4, 2)], dim=3)
    assert torch.allclose(wrapped(whole)[..., :1], plain(x[..., :2])[..., :1], atol=1e-5)


def test_restoring_gives_back_the_very_network():
    torch.manual_seed(0)
    model, active = create("seresnet50", image_size=64), Active()
    kinds = [type(m) for m in model.modules()]
    names, attributes = list(model.state_dict()), [set(vars(m)) for m in model.modules()]
    images = torch.randn(2, 3, 64, 64)
    before = model.eval()(images)
    install_masks(model, active)
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] != kinds
    assert torch.equal(model(images), before)  # nothing is hidden
    restore(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_changed_layers_can_be_copied_and_pickled(again):
    model, active = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), Active()
    install_masks(model, active)
    show(active)
    copied = again(model)
    assert [type(m) for m in copied] == [type(m) for m in model]
    assert copied[0].active is copied[1].active
    assert copied[0].active is not active
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(copied(x), model(x))


def test_under_bf16_statistics_are_taken_in_fp32():
    torch.manual_seed(0)
    layer, active = nn.BatchNorm2d(4), Active()
    install(layer, MaskedBatchNorm, active=active)
    seen = show(active, B=8)
    x = ((torch.randn(8, 4, 4, 4) + 30) * seen).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    gathered = x.float().permute(0, 2, 3, 1)[seen[:, 0]]
    assert torch.allclose(layer.running_mean, 0.1 * gathered.mean(0), rtol=1e-4)
    assert torch.allclose(layer.running_var, 0.9 + 0.1 * gathered.var(0), rtol=1e-3)


def data():
    generator = torch.Generator().manual_seed(5)
    seen = (torch.arange(16).view(1, 4, 4) % 2 == 0).expand(4, 4, 4)
    return torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=generator) * seen.unsqueeze(1), seen


def make() -> tuple[nn.Module, Active]:
    torch.manual_seed(0)
    layer, active = nn.BatchNorm2d(3).double(), Active()
    install(layer, MaskedBatchNorm, active=active)
    active.everywhere = True
    return layer, active


def _half(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    (x, seen), (layer, active) = data(), make()
    rows = slice(rank * 2, rank * 2 + 2)
    active.show(seen[rows], 0.5)
    loss = (layer(x[rows]) ** 3).mean()
    loss.backward()
    grad = layer.weight.grad
    dist.all_reduce(grad)  # what DistributedDataParallel does with gradients
    if rank == 0:
        torch.save((grad / 2, layer.state_dict()), out)
    dist.destroy_process_group()


def test_two_processes_with_synchronised_statistics_equal_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.spawn(_half, args=(str(tmp_path / "meet"), str(tmp_path / "out")), nprocs=2)
    grad, state = torch.load(os.path.join(tmp_path, "out"))
    (x, seen), (layer, active) = data(), make()
    active.show(seen, 0.5)
    (layer(x) ** 3).mean().backward()
    assert torch.allclose(grad, layer.weight.grad, atol=1e-12)
    for n, value in layer.state_dict().items():
        assert torch.allclose(value.double(), state[n].double(), atol=1e-12), n
