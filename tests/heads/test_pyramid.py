import pytest
import torch

from visiontune.heads.pyramid import FeaturePyramid, OwnMaps, SimplePyramid, make_pyramid

GIVEN = {
    "all": (8, 16, 32),
    "no 8": (16, 32, 64),
    "no 32": (8, 16),
    "only coarse": (32, 64),
    "gap": (8, 32),
    "one of 8": (8,),
    "one of 16": (16,),
    "one of 32": (32,),
    "one of 2": (2,),
}


@pytest.mark.parametrize("strides", GIVEN.values(), ids=GIVEN)
def test_strides_8_16_and_32_come_out_whatever_went_in(strides):
    H, W = 64, 96
    widths = [8 * (i + 1) for i in range(len(strides))]
    maps = [torch.randn(2, d, -(-H // s), -(-W // s), requires_grad=True) for d, s in zip(widths, strides, strict=True)]
    pyramid = make_pyramid(strides, widths, 32)
    assert isinstance(pyramid, SimplePyramid if len(strides) == 1 else FeaturePyramid)
    out = pyramid(maps)
    assert [tuple(m.shape) for m in out] == [(2, 32, H // s, W // s) for s in (8, 16, 32)]
    sum(m.square().sum() for m in out).backward()
    assert all(p.grad is not None for p in pyramid.parameters())
    assert all(m.grad is not None for m in maps)


@pytest.mark.parametrize("strides", GIVEN.values(), ids=GIVEN)
def test_a_head_that_mixes_strides_itself_gets_the_backbones_own_maps_where_it_has_them(strides):
    widths = [8 * (i + 1) for i in range(len(strides))]
    maps = [torch.randn(1, d, 64 // s, 64 // s) for d, s in zip(widths, strides, strict=True)]
    pyramid = make_pyramid(strides, widths, 32, mixed_later=True)
    out = pyramid(maps)
    assert pyramid.widths == tuple(m.shape[1] for m in out)
    assert isinstance(pyramid, OwnMaps) == ({8, 16, 32} <= set(strides))
    if isinstance(pyramid, OwnMaps):
        assert all(any(a is b for b in maps) for a in out)
        assert list(pyramid.parameters()) == []


def test_own_maps_leave_out_coarser_ones():
    pyramid = make_pyramid((8, 16, 32, 64), (1, 2, 3, 4), 32, mixed_later=True)
    maps = [torch.zeros(1, d, 64 // s, 64 // s) for d, s in zip((1, 2, 3, 4), (8, 16, 32, 64), strict=True)]
    assert pyramid.widths == (1, 2, 3)
    assert [m.shape[2] for m in pyramid(maps)] == [8, 4, 2]


def test_each_level_depends_on_the_coarser_ones_and_on_no_finer_one():
    pyramid = make_pyramid((8, 16, 32), (8, 8, 8), 32)
    maps = [torch.randn(1, 8, 64 // s, 64 // s, requires_grad=True) for s in (8, 16, 32)]
    for i, level in enumerate(pyramid(maps)):
        gradients = torch.autograd.grad(level.square().sum(), maps, allow_unused=True, retain_graph=True)
        assert [g is not None for g in gradients] == [j >= i for j in range(3)]


def test_maps_of_any_scale_come_out_alike():
    pyramid = make_pyramid((8, 16, 32), (8, 8, 8), 32)
    maps = [torch.randn(1, 8, 64 // s, 64 // s) for s in (8, 16, 32)]
    for a, b in zip(pyramid(maps), pyramid([m * 100 for m in maps]), strict=True):
        assert torch.allclose(a, b, atol=1e-2)


def test_notes_say_what_was_made_from_what():
    assert make_pyramid((16, 32, 64), (8, 8, 8), 32).notes == ["pyramid: top-down (FPN); made here: stride 8 from coarser ones"]
    assert make_pyramid((8, 16), (8, 8), 32).notes == ["pyramid: top-down (FPN); made here: stride 32 from 16"]
    assert make_pyramid((16,), (8,), 32).notes == ["pyramid: all of one map of stride 16 (ViTDet)"]
