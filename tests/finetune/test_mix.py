import numpy as np
import pytest
import timm.data.mixup as reference
import torch

from visiontune.finetune import mix
from visiontune.finetune.mix import Mixing, box_around, erase, erasing_boxes, inside, paste, share_left


def pictures(count=6, size=(12, 16)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def fixed(monkeypatch, share, shift, middle=(0, 0)):
    """A batch is mixed with this share of itself and its `shift`-th neighbour."""
    whole = iter([shift, *middle])
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(share))
    monkeypatch.setattr(mix.torch, "randint", lambda *args: torch.tensor(next(whole)))


def test_mixup_is_timms_for_the_same_share(monkeypatch):
    images, labels = pictures(2), torch.tensor([0, 2])
    theirs = reference.Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=4)
    theirs._params_per_batch = lambda: (0.3, False)
    x, y = theirs(images.clone(), labels)  # of two pictures its flipped batch is our shifted one
    fixed(monkeypatch, 0.3, 1)
    mixed, targets = Mixing(mixup=1.0)(images, torch.eye(4)[labels])
    assert torch.allclose(mixed, x, atol=1e-6)
    assert torch.allclose(targets, y, atol=1e-6)


def test_cutmix_is_timms_for_the_same_share_and_place(monkeypatch):
    images, labels = pictures(2), torch.tensor([3, 1])
    theirs = reference.Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=4)
    theirs._params_per_batch = lambda: (0.6, True)
    places = iter([3, 14])  # near the right border, so that the box is cut off there
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "randint", lambda *args, **more: next(places))
        x, y = theirs(images.clone(), labels)
    fixed(monkeypatch, 0.6, 1, (3, 14))
    mixed, targets = Mixing(cutmix=1.0)(images, torch.eye(4)[labels])
    assert torch.equal(mixed, x)
    assert torch.allclose(targets, y, atol=1e-6)


def test_boxes_are_timms_wherever_they_lie(monkeypatch):
    for share in (0.05, 0.4, 0.9):
        for middle in ((0, 0), (5, 9), (11, 15)):
            places = iter(middle)
            monkeypatch.setattr(np.random, "randint", lambda *args, places=places, **more: next(places))
            top, bottom, left, right = map(int, reference.rand_bbox((3, 12, 16), share))
            assert box_around(middle, share, (12, 16)) == (top, bottom, left, right)


def test_targets_are_the_shares_of_pixels():
    torch.manual_seed(0)
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 20, 20)  # each picture is its own number
    seen = set()
    for _ in range(40):
        mixed, targets = Mixing(mixup=0.4, cutmix=0.4)(images, torch.eye(5))
        assert torch.allclose(targets.sum(dim=1), torch.ones(5))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(5.0), atol=1e-4)
        assert (targets.diagonal() < 1 + 1e-6).all()
        seen.add("cutmix" if len(mixed[0].unique()) == 2 and mixed[0].unique().frac().abs().max() == 0 else "mixup")
    assert seen == {"mixup", "cutmix"}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_batch_size_and_the_users_pictures_stay_as_they_are(count):
    images = pictures(count)
    before = images.clone()
    mixed, targets = Mixing(mixup=0.2, cutmix=1.0)(images, torch.eye(7)[:count])
    assert mixed.shape == images.shape
    assert targets.shape == (count, 7)
    erase(images, 1.0)
    assert torch.equal(images, before)


def test_the_probability_of_mixing():
    torch.manual_seed(0)
    images, targets = pictures(), torch.eye(6)
    mixed = sum(Mixing(mixup=1.0, probability=0.3)(images, targets)[0] is not images for _ in range(500))
    assert mixed == pytest.approx(150, abs=40)
    assert not Mixing(mixup=1.0, probability=0.0)
    assert not Mixing()


def test_drawn_by_torchs_generator_alone():
    def draw():
        torch.manual_seed(3)
        return [*Mixing(mixup=0.5, cutmix=0.5)(pictures(), torch.eye(6)), erase(pictures(), 0.5)]

    first = draw()
    np.random.seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))


def test_erased_boxes_are_of_the_areas_and_shapes_that_timm_draws_and_inside():
    torch.manual_seed(0)
    top, bottom, left, right = erasing_boxes(4000, (60, 80), 1.0).unbind(1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert bottom.max() <= 60
    assert right.max() <= 80
    areas = (bottom - top) * (right - left) / (60 * 80)
    assert areas.min() > 0.015
    assert areas.max() < 0.35
    assert areas.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    aspects = (bottom - top) / (right - left)
    assert aspects.log().mean().item() == pytest.approx(0, abs=0.05)
    assert aspects.max() < 3.6


def test_the_probability_of_erasing_and_what_is_put_there():
    torch.manual_seed(0)
    images = torch.full((1000, 3, 16, 16), 9.0)
    erased = erase(images, 0.25)
    changed = (erased != 9.0).any(dim=1)
    assert changed.any(dim=(1, 2)).float().mean().item() == pytest.approx(0.25, abs=0.04)
    noise = erased[erased != 9.0]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(erase(images, 0.0), images)


def test_inside_is_what_paste_pastes():
    box = (2, 5, 1, 9)
    hidden = inside(torch.tensor([box]), (12, 16))
    pasted = paste(torch.zeros(1, 3, 12, 16), torch.ones(1, 3, 12, 16), box)
    assert torch.equal(pasted[:, 0].bool(), hidden)
    assert 1 - hidden.float().mean().item() == pytest.approx(share_left(box, (12, 16)))
