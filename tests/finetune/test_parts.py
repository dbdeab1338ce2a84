import copy

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d

from visiontune import Classifier
from visiontune.errors import UserError
from visiontune.finetune import parts
from visiontune.finetune.ways import Way

FAMILIES = {
    "vit_tiny_patch16_224": ({"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}, 3),
    "resnet10t": ({}, 4),
    "convnext_atto": ({"patch_size": 2, "depths": [1, 2, 1, 1], "dims": [8, 16, 16, 32]}, 5),
    "swin_tiny_patch4_window7_224": ({"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}, 3),
    "tf_efficientnet_lite0": ({}, 16),
}


def classifier(name, **more):
    return Classifier(name, num_classes=4, image_size=32, backbone_args=FAMILIES[name][0], **more)


def trained(module):
    return {n.removeprefix("backbone.") for n, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_blocks_are_trained_with_what_lies_behind_them_and_nothing_before(name):
    blocks = FAMILIES[name][1]
    assert trained(classifier(name, tune=f"last:{blocks}")) < trained(classifier(name))  # without the stem
    one, two = trained(classifier(name, tune="last:1")), trained(classifier(name, tune="last:2"))
    assert one < two
    head = {n for n, p in classifier(name).backbone.named_parameters() if "head" in n or n.startswith(("fc.", "norm.", "classifier."))}
    assert head <= one
    with pytest.raises(UserError, match=f"tune: got last:{blocks + 1}, but .* has {blocks} blocks; give last:{blocks} or less, or full"):
        classifier(name, tune=f"last:{blocks + 1}")


def test_the_last_block_of_a_vit_is_its_last_block_norm_and_head():
    names = {n.split(".")[0] + "." + n.split(".")[1] for n in trained(classifier("vit_tiny_patch16_224", tune="last:1"))}
    assert names == {"blocks.2", "norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_the_rest_stays_bit_identical_its_running_statistics_too(name):
    module = classifier(name, tune="last:1", weight_decay=0.1).train()
    before = {k: v.clone() for k, v in module.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.training_step([torch.randn(4, 3, 32, 32), torch.arange(4)], 0).backward()
    optimizer.step()
    may_change = {n.rpartition(".")[0] for n in trained(module)}
    changed = {k for k, v in module.backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert {k.rpartition(".")[0] for k in changed} <= may_change


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_frozen_batch_norms_compute_what_timms_frozen_ones_do(name):
    """The activation inside timm's BatchNormAct2d included."""
    module = classifier(name, freeze_batch_norms=True)
    for norm in module.backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # statistics that a batch's own would differ from
            torch.nn.init.uniform_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    reference = freeze_batch_norm_2d(copy.deepcopy(module.backbone)).train()
    before = {k: v.clone() for k, v in module.state_dict().items() if "running" in k}
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(module.train()(x), reference(x), atol=1e-5)
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    norms = {n for n, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert frozen == {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")}


FIRST = {
    "vit_tiny_patch16_224": ("cls_token", "pos_embed", "patch_embed.", "blocks.0."),
    "resnet10t": ("conv1.", "bn1.", "layer1."),
    "convnext_atto": ("stem.", "stages.0."),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_stage_goes_with_the_stem_and_nothing_behind_it(name):
    backbone = classifier(name).backbone
    names = {id(p): n for n, p in backbone.named_parameters()}
    assert {names[id(p)] for p in parts.first_stages(backbone, 1)} == {n for n in names.values() if n.startswith(FIRST[name])}


def test_a_user_s_own_frozen_parts_stay_frozen():
    own = timm.create_model("test_resnet", num_classes=4)
    own.bn1.requires_grad_(False)
    module = Classifier(own, num_classes=4).train()
    assert not module.backbone.bn1.weight.requires_grad
    assert not module.backbone.bn1.training


@pytest.mark.parametrize("word", ["last", "last:0", "last:two", "last:-1"])
def test_how_many_blocks_must_be_a_number(word):
    with pytest.raises(UserError, match=f"tune: got '{word}'; allowed: full, .*lora; N is a number of blocks, as in last:2"):
        classifier("resnet10t", tune=word)


def test_a_name_that_is_near_is_named():
    with pytest.raises(ValueError, match="did you mean 'head_then_full'"):
        Way.of("head_than_full")
