import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from visiontune import Classifier
from visiontune.backbones import create
from visiontune.errors import UserError
from visiontune.finetune import average, lora

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
FAMILIES = {
    "vit_tiny_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,  # reads qkv.weight without calling qkv
    "eva02_tiny_patch14_224": SMALL,  # q, k and v apart; gated
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "deit_tiny_distilled_patch16_224": {},
}


def classifier(name, **more):
    return Classifier(name, num_classes=3, image_size=32, backbone_args=FAMILIES[name], tune="lora", lora_rank=4, **more)


def step(module, lr=0.3):
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    module.train().training_step([torch.randn(6, 3, 32, 32), torch.arange(6) % 3], 0).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_forward_is_the_bases_and_every_adapter_learns(name):
    module = classifier(name).eval()
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.ones_(norm.weight)  # Swin v2 begins with zeros, through which nothing learns at once
    x = torch.randn(2, 3, 32, 32)
    base = create(name, image_size=32, num_classes=3, args=FAMILIES[name]).eval()
    under = {n.replace(".base", ".weight"): v for n, v in module.backbone.state_dict().items()}
    base.load_state_dict({n: v for n, v in under.items() if ".lora_" not in n})
    torch.testing.assert_close(module(x), base(x))  # not bit for bit: kernels may differ by where a tensor lies in memory
    step(module)
    step(module)
    adapters = [m for m in module.modules() if isinstance(m, lora.LowRankLinear)]
    assert adapters
    assert all(m.lora_b.abs().sum() > 0 for m in adapters)  # also where a family uses the weight without calling the layer
    assert (module.eval()(x) - base(x)).abs().max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_it_is_timms_network_with_the_same_outputs(name):
    module = classifier(name)
    for _ in range(2):
        step(module)
    x = torch.randn(2, 3, 32, 32)
    expected = module.eval()(x)
    released = module.release().eval()
    plain = timm.create_model(name, num_classes=3, **released.spec.args).eval()
    plain.load_state_dict(released.state_dict())
    assert torch.allclose(plain(x), expected, atol=1e-5)
    assert all(p.requires_grad for p in released.parameters())


def test_an_average_with_adapters_is_merged_too_and_it_is_the_one_that_is_kept():
    module = classifier("vit_tiny_patch16_224", ema=0.5)
    step(module)
    average.follow(module.average, module.backbone, 0.5)
    x = torch.randn(2, 3, 32, 32)
    expected = module.eval()(x)
    assert not torch.allclose(expected, module.backbone.eval()(x))
    released = module.release()
    assert torch.allclose(released.eval()(x), expected, atol=1e-5)
    assert type(released.blocks[0].attn.qkv) is nn.Linear
    assert list(released.state_dict()) == list(create("vit_tiny_patch16_224", image_size=32, num_classes=3, args=SMALL).state_dict())


def test_adapted_networks_can_be_copied_and_pickled():
    network = classifier("vit_tiny_patch16_224").backbone.eval()
    x = torch.randn(2, 3, 32, 32)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(x), network(x))


def test_only_adapters_and_head_are_trained():
    module = classifier("vit_tiny_patch16_224")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    step(module)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    # `a` has no gradient before `b` has left zero
    assert changed == {n for n, p in module.named_parameters() if p.requires_grad and not n.endswith("lora_a")}
    layers = {n.removesuffix(".lora_b").split(".", 3)[-1] for n in changed if "lora_b" in n}
    assert layers == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}


def test_a_step_is_the_papers():
    """W + alpha / rank * B A, and its gradient, beside the same written out."""
    layer = nn.Linear(6, 5, bias=False)
    holder = nn.ModuleDict({"fc1": layer})
    base = layer.weight.detach().clone()
    a, b = lora.add_adapters(holder, rank=2, alpha=3.0)
    nn.init.normal_(b)
    x = torch.randn(4, 6)
    expected = x @ base.T + 1.5 * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), expected, atol=1e-6)
    (ours,) = torch.autograd.grad(layer(x).sum(), a)
    (written,) = torch.autograd.grad(expected.sum(), a)
    assert torch.allclose(ours, written, atol=1e-5)


def test_weights_from_a_file_come_under_the_adapters(tmp_path):
    source = create("vit_tiny_patch16_224", image_size=32, args=SMALL)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    early = classifier("vit_tiny_patch16_224", weights=str(tmp_path / "w.pt"))
    late = classifier("vit_tiny_patch16_224")
    late.load_backbone(str(tmp_path / "w.pt"))
    x = torch.randn(2, 3, 32, 32)
    for module in (early, late):
        module.eval()
        assert torch.equal(module.represent(x), source.eval()(x))
        assert sum(isinstance(m, lora.LowRankLinear) for m in module.modules()) == 8


def test_refused_where_there_is_nothing_to_adapt_or_the_rank_is_too_high():
    with pytest.raises(UserError, match="tune: got lora, but ResNet has no linear layers .*; take last:N, head_then_full or full"):
        Classifier("test_resnet", num_classes=3, tune="lora")
    with pytest.raises(UserError, match="head.lora_rank: got 40, no less than the narrowest layer of VisionTransformer, 32"):
        Classifier("vit_tiny_patch16_224", num_classes=3, image_size=32, backbone_args=SMALL, tune="lora", lora_rank=40)
