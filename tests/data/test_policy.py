import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from visiontune.data.policy import OPERATIONS, apply, operate
from visiontune.data.views import Augment, Views
from visiontune.errors import UserError

THEIRS = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "saturation": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


def photo(channels=3, size=(64, 80), seed=0):
    """Smooth shapes with a little noise: interpolations agree on it, and every value occurs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (6, 7, channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)
    return np.clip(smooth + rng.integers(-3, 4, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_torchvisions_at_the_same_place_of_its_range(name, wide):
    x = photo()
    space = TrivialAugmentWide() if wide else RandAugment()
    ranges = space._augmentation_space(31) if wide else space._augmentation_space(31, x.shape[:2])
    assert set(THEIRS.values()) == set(ranges)
    for place in (5, 20, 30):
        values, signed = ranges[THEIRS[name]]
        for sign in (1, -1) if signed else (1,):
            value = float(values[place]) * sign if values.ndim else 0.0
            args = (value, InterpolationMode.BILINEAR, [128.0] * 3)
            expected = np.asarray(_apply_op(Image.fromarray(x), THEIRS[name], *args)).astype(int)
            found = operate(x, name, place / 30, sign=sign, wide=wide).astype(int)
            off = np.abs(found - expected)
            # what they interpolate or round differently: a level or two, and pixels at the border with what lies outside
            assert np.quantile(off, 0.97 if name in ("shear_x", "shear_y", "rotate") else 1) <= 2, (place, sign)


def test_translations_of_small_pictures_keep_half_of_them():
    moved = operate(np.full((20, 20, 3), 9, np.uint8), "translate_x", 1.0, sign=1, wide=True)
    assert (moved == 9).all(axis=(0, 2)).sum() == 10


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_and_no_other_generator(policy, channels):
    x = photo(channels)
    before = x.copy()
    for seed in range(60):
        np.random.seed(seed)
        torch.manual_seed(seed)
        first, again = (apply(x, policy, 9, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again)
        assert first.shape == x.shape
        assert first.dtype == np.uint8
    assert np.array_equal(x, before)


def test_policies_change_pictures_and_stronger_ones_more():
    x = photo().astype(int)

    def change(policy, magnitude):
        outs = [apply(x.astype(np.uint8), policy, magnitude, np.random.default_rng(s)) for s in range(200)]
        return np.mean([np.abs(out - x).mean() for out in outs])

    assert 0 < change("randaugment", 3) < change("randaugment", 9) < change("randaugment", 27)
    assert change("trivialaugment", 9) == change("trivialaugment", 20) > 0
    assert np.array_equal(apply(x.astype(np.uint8), "none", 9, np.random.default_rng(0)), x)


def test_a_view_may_have_one_and_it_stays_the_pictures_own():
    views = Views.of({"policy": "randaugment", "magnitude": 15})
    plain, random = Augment(Views.of({}), (64, 80)), Augment(views, (64, 80))
    x = photo()
    outs = [random(x, np.random.default_rng(s))[0] for s in (1, 1, 2)]
    assert np.array_equal(outs[0], outs[1])
    assert not np.array_equal(outs[0], outs[2])
    assert np.array_equal(plain(x, np.random.default_rng(1))[0], x)


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="data.augment.policy: got 'randaug'; allowed: none, randaugment, trivialaugment; did you mean"):
        Views.of({"policy": "randaug"})
