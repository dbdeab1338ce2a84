import copy

import pytest
import torch
from torch import nn

from visiontune import backbones
from visiontune.errors import UserError

FAMILIES = [  # name, pictures
    ("test_resnet", 64), ("test_vit", 64), ("test_convnext", 64), ("test_efficientnet", 64), ("mobilenetv3_small_050", 64),
    ("swin_tiny_patch4_window7_224", 64), ("deit_tiny_distilled_patch16_224", 64), ("vit_base_patch16_siglip_224", 32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_what_a_backbone_is_said_to_give_is_what_it_gives(name, size):
    args = {"depth": 2, "embed_dim": 96, "num_heads": 2} if name == "vit_base_patch16_siglip_224" else {}
    model = backbones.create(name, image_size=size, args=args)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    face = backbones.describe(model, size)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    model.eval()
    images = torch.randn(2, 3, size, size)
    assert backbones.embed(model, images).shape == (2, face.width)
    assert backbones.tokens(model, images).shape == (2, face.token_width, *face.grid)
    maps = backbones.features(model, images)
    assert tuple(m.shape[1] for m in maps) == face.widths
    assert tuple(size // m.shape[2] for m in maps) == face.strides
    assert list(face.strides) == sorted(face.strides)


@pytest.mark.parametrize("name", ["levit_128s", "mixer_s32_224", "hiera_tiny_224"])
def test_families_without_a_grid_of_tokens_still_give_an_embedding(name):
    model = backbones.create(name)
    face = backbones.describe(model, 224)
    assert backbones.embed(model.eval(), torch.zeros(1, 3, 224, 224)).shape == (1, face.width)


def test_the_embedding_is_what_timms_headless_model_gives():
    model = backbones.create("test_resnet", image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbones.embed(model, images), model(images))


def test_layer_order_rises_from_the_picture_to_the_head():
    model = backbones.create("test_vit", image_size=64, num_classes=5)
    order = backbones.layer_order(model)
    assert set(order) == {n for n, _ in model.named_parameters()}
    assert order["patch_embed.proj.weight"] == 0
    assert order["blocks.0.attn.qkv.weight"] < order["blocks.5.attn.qkv.weight"] <= order["head.weight"]


@pytest.mark.parametrize(("name", "hint"), [("resnet_50", "resnet50"), ("vit_smal_patch16_224", "vit_small_patch16_224")])
def test_an_unknown_name_is_told_with_near_ones(name, hint):
    with pytest.raises(UserError, match=f"did you mean.*'{hint}'"):
        backbones.create(name)


def test_pictures_too_small_and_arguments_unknown_are_told():
    with pytest.raises(UserError, match="data.image_size: got 4x4"):
        backbones.describe(backbones.create("test_convnext"), 4)
    with pytest.raises(UserError, match="backbone.args: resnet18 refuses {'patch_size': 4}"):
        backbones.create("resnet18", image_size=32, args={"patch_size": 4})


def test_weights_that_cannot_be_fetched_are_told(monkeypatch):
    import timm

    def no_network(*args, pretrained=False, **more):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match="could not fetch weights for resnet18 .no route to host"):
        backbones.create("resnet18", pretrained=True)


def test_strided_1x1_convolutions_of_few_channels_train_in_channels_last_with_the_plain_formats_gradients():
    """Without help torch 2.14 ends the process here, on a CPU."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 48, 1, 2, bias=False), nn.Conv2d(48, 8, 3))
    last = backbones.to_channels_last(backbones.to_channels_last(copy.deepcopy(plain)))
    images = torch.rand(2, 3, 64, 64)
    for _ in range(5):
        for network, layout in ((plain, torch.contiguous_format), (last, torch.channels_last)):
            network.zero_grad()
            network(images.contiguous(memory_format=layout)).square().mean().backward()
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert len(last[0]._forward_pre_hooks) == 1
    assert not last[1]._forward_pre_hooks
    assert last[1].weight.is_contiguous(memory_format=torch.channels_last)
