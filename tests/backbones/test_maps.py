import pytest
import timm
import torch
from torch import nn

from visiontune.backbones import Spec, create
from visiontune.backbones.maps import _on_grid, find_maps
from visiontune.errors import UserError

# name: size, arguments, strides, widths
SWIN = {"window_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}
FAMILIES = {
    "resnet10t": (64, {"channels": [8, 8, 16, 24]}, (8, 16, 32), (8, 16, 24)),
    "tf_efficientnet_lite0": (64, {}, (8, 16, 32), (40, 112, 320)),
    "convnext_atto": (64, {"depths": [1] * 4, "dims": [8, 16, 24, 32]}, (8, 16, 32), (16, 24, 32)),
    "swin_tiny_patch4_window7_224": (64, SWIN, (8, 16, 32), (16, 32, 64)),
    "vit_tiny_patch16_224": (64, {"embed_dim": 32, "depth": 2, "num_heads": 2}, (16,), (32,)),
    "vit_small_patch14_dinov2": (64, {"embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}, (16,), (32,)),
    "levit_128s": (224, {}, (16, 32, 64), (128, 256, 384)),
}  # fmt: skip


def made(name: str):
    size, args, *_ = FAMILIES[name]
    if "patch14" in name:  # as `Detector` makes plain ViTs
        args = args | {"dynamic_img_pad": True}
    return create(name, image_size=size, args=args).eval(), size


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_have_the_strides_and_widths_that_were_found(name):
    backbone, size = made(name)
    maps = find_maps(backbone, size)
    assert (maps.strides, maps.widths) == FAMILIES[name][2:]
    got = maps.take(backbone, torch.randn(2, 3, size, size))
    assert [tuple(m.shape) for m in got] == [(2, d, -(-size // s), -(-size // s)) for d, s in zip(maps.widths, maps.strides, strict=True)]


def test_the_levels_are_those_of_timms_own_feature_network():
    backbone, size = made("resnet10t")
    x = torch.randn(2, 3, size, size)
    expected = backbone.forward_intermediates(x, intermediates_only=True)[-3:]
    for ours, timms in zip(find_maps(backbone, size).take(backbone, x), expected, strict=True):
        assert torch.equal(ours, timms)


def test_strides_are_the_true_ones_where_timm_names_others():
    backbone = timm.create_model("resnet10t", channels=[8, 8, 16, 16], num_classes=0)
    for info in backbone.feature_info:
        info["reduction"], info["num_chs"] = 4, 1000
    maps = find_maps(backbone, 64)
    assert (maps.strides, maps.widths) == ((8, 16, 32), (8, 16, 16))


def test_a_plain_vit_gives_its_last_normed_tokens():
    backbone, size = made("vit_tiny_patch16_224")
    x = torch.randn(2, 3, size, size)
    expected = backbone.forward_features(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    (got,) = find_maps(backbone, size).take(backbone, x)
    assert torch.allclose(got, expected, atol=1e-6)


class Unfaithful(nn.Module):
    """A family that gives NHWC though it was asked for NCHW."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in ((3, 4), (4, 5), (5, 6), (6, 7), (7, 9)))
        self.spec = Spec("unfaithful")

    def forward_intermediates(self, x, indices=None, stop_early=False, output_fmt="NCHW", intermediates_only=False):
        out = []
        for layer in self.layers:
            x = layer(x)
            out.append(x.permute(0, 2, 3, 1))
        return out if indices is None else [out[i] for i in indices]


def test_nhwc_becomes_nchw_whatever_was_promised():
    maps = find_maps(Unfaithful(), (64, 128))
    assert (maps.strides, maps.widths) == ((8, 16, 32), (6, 7, 9))
    assert [tuple(m.shape) for m in maps.take(Unfaithful(), torch.randn(1, 3, 64, 128))] == [(1, 6, 8, 16), (1, 7, 4, 8), (1, 9, 2, 4)]


def test_patches_of_14_pixels_are_read_where_those_of_16_have_their_centres():
    centres = (torch.arange(23) + 0.5) * 14  # 322 pixels
    ramp = centres.expand(1, 1, 23, 23)
    got = _on_grid(ramp, (322, 322), (320, 320), 16)
    assert got.shape == (1, 1, 20, 20)
    assert torch.allclose(got[0, 0, 0], (torch.arange(20) + 0.5) * 16, atol=1e-3)


@pytest.mark.parametrize("size", [100, (70, 130)])
def test_pictures_are_filled_up_to_multiples_of_32(size):
    backbone, _ = made("resnet10t")
    H, W = (size, size) if isinstance(size, int) else size
    got = find_maps(backbone, size).take(backbone, torch.randn(1, 3, H, W))
    assert [tuple(m.shape[-2:]) for m in got] == [(-(-H // 32) * 32 // s, -(-W // 32) * 32 // s) for s in (8, 16, 32)]


def test_the_probe_leaves_the_backbone_as_it_was():
    backbone, size = made("tf_efficientnet_lite0")
    backbone.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = torch.get_rng_state()
    find_maps(backbone, size)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in backbone.modules())


def test_a_size_that_a_fixed_family_cannot_take_is_told_in_one_sentence():
    backbone = create("swin_tiny_patch4_window7_224", image_size=80, args=SWIN)
    with pytest.raises(UserError, match="make no map of 96x96 pixels .* take a multiple of 32 as data.image_size"):
        find_maps(backbone, 80)
