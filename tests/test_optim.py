import itertools

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from visiontune import optim
from visiontune.backbones import create
from visiontune.errors import UserError


def test_norms_biases_positions_and_tokens_are_not_decayed():
    vit = create("test_vit", image_size=64)
    groups = optim.parameter_groups(vit, weight_decay=0.1, lr=1.0)
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    names = {n for n, p in vit.named_parameters() if id(p) in undecayed}
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.mlp.fc1.bias"} <= names
    assert not any(n.endswith("fc1.weight") for n in names)
    assert len(groups) == 2
    assert sum(len(g["params"]) for g in groups) == len(list(vit.parameters()))


def test_layer_decay_gives_few_groups_and_the_full_rate_to_the_head():
    vit = create("test_vit", image_size=64, num_classes=3)
    groups = optim.parameter_groups(vit, weight_decay=0.1, lr=1.0, backbone=vit, layer_decay=0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    by_name = {n: rate[id(p)] for n, p in vit.named_parameters()}
    assert by_name["head.weight"] == 1.0
    depths = [by_name[f"blocks.{i}.attn.qkv.weight"] for i in range(len(vit.blocks))]
    assert all(a == pytest.approx(0.5 * b) for a, b in itertools.pairwise(depths))
    assert by_name["patch_embed.proj.weight"] == pytest.approx(0.5 * depths[0])
    assert len(groups) <= 2 * (len(vit.blocks) + 2)


def test_a_factor_for_the_backbone_is_on_top_of_its_layer_decay_and_leaves_the_rest_alone():
    module = nn.ModuleDict({"backbone": create("vit_tiny_patch16_224", args={"depth": 2}), "head": nn.Linear(192, 4)})
    given = {"weight_decay": 0.1, "lr": 1.0, "backbone": module["backbone"]}
    rates = {id(p): g["lr"] for g in optim.parameter_groups(module, **given, layer_decay=0.5, backbone_factor=0.1) for p in g["params"]}
    alone = {id(p): g["lr"] for g in optim.parameter_groups(module, **given, layer_decay=0.5) for p in g["params"]}
    assert {rates[id(p)] for p in module["head"].parameters()} == {1.0}
    assert all(rates[id(p)] == pytest.approx(0.1 * alone[id(p)]) for p in module["backbone"].parameters())
    assert len(optim.parameter_groups(module, **given, backbone_factor=0.1)) == 4


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_learning_rates_are_for_a_batch_of_256(rule, expected):
    assert optim.scale_lr(0.1, 1024, rule) == pytest.approx(expected)


def test_lars_is_the_published_step():
    """One weight with a trust ratio, one bias without; two steps written out by hand."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0, "adapt": False}]
    optimizer = optim.LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    w, b, mw, mb = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]), torch.zeros(1, 2), torch.zeros(1)
    for _ in range(2):
        weight.grad, bias.grad = torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])
        g = weight.grad + 0.1 * w
        mw = 0.9 * mw + 0.01 * w.norm() / g.norm() * g
        mb = 0.9 * mb + 0.5
        w, b = w - 0.5 * mw, b - 0.5 * mb
        optimizer.step()
    assert torch.allclose(weight, w)
    assert torch.allclose(bias, b)


@pytest.mark.parametrize("name", optim.OPTIMISERS)
def test_every_optimiser_lowers_a_simple_loss(name):
    x = nn.Parameter(torch.full((4, 4), 2.0))
    lr = {"lars": 5.0}.get(name, 0.05)
    groups = [{"params": [x], "weight_decay": 1e-4, "lr": lr}]
    optimizer = optim.make_optimizer(name, groups, lr=lr, betas=(0.9, 0.99), momentum=0.9, fused=False)
    for _ in range(5):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert (x**2).sum() < 4 * 4 * 4


def test_nothing_to_train_is_an_error():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        optim.parameter_groups(frozen, weight_decay=0.0, lr=1.0)


def test_lars_keeps_its_trust_ratio_without_weight_decay():
    layer = nn.Linear(4, 4)
    groups = optim.parameter_groups(layer, weight_decay=0.0, lr=6.4)
    optimizer = optim.LARS(groups, lr=6.4, trust=0.001)
    before = layer.weight.detach().clone()
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert (layer.weight.detach() - before).norm().item() == pytest.approx(float(6.4 * 0.001 * before.norm()), rel=1e-4)


FAMILIES = {
    "vit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32},
    "resnet18": {},
    "convnext_atto": {"patch_size": 2, "dims": [8, 16, 16, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "num_heads": [1, 2, 2, 2]},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_decay_is_timms_in_few_groups(name):
    model = timm.create_model(name, num_classes=3, **FAMILIES[name])
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=skip, layer_decay=0.7)
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    ours = optim.parameter_groups(model, weight_decay=0.05, lr=1.0, backbone=model, layer_decay=0.7)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in ours for p in g["params"]}
    assert found.keys() == expected.keys()
    for n, p in model.named_parameters():
        assert found[id(p)] == pytest.approx(expected[id(p)]), n
    assert len(ours) <= len(theirs) <= 2 * (len(set(optim.layer_order(model).values())))


def test_those_that_join_late_have_groups_and_a_warm_up_of_their_own():
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    groups = optim.parameter_groups(nn.Sequential(body, head), weight_decay=0.1, lr=1.0, late=body.parameters())
    assert [(g["late"], len(g["params"])) for g in groups] == [(True, 1), (True, 1), (False, 1), (False, 1)]
    factor = optim.cosine_with_warmup(100, 10, 0.0, start=20)
    assert [round(factor(s), 3) for s in (0, 20, 27, 28, 64, 99)] == [0.125, 0.125, 1.0, 1.0, 0.5, 0.0]
