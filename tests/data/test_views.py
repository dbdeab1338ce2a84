import random

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import functional as F

from visiontune.data import color
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import TrainOrder
from visiontune.data.views import Augment, CenterCrop, View, Views, random_box
from visiontune.errors import UserError
from visiontune.recipe.options import named_views

PHOTO = np.ascontiguousarray(load_sample_images().images[0][:300, :300])
SIMCLR = Views.of(named_views()["simclr"])


def by_torchvision(pixels, steps, grey=False):
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    functions = {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
    }
    for name, factor in steps:
        x = functions[name](x, factor)
    if grey:
        x = F.rgb_to_grayscale(x, 3)
    return (x * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_each_colour_change_is_torchvisions(name, factor):
    got = color.adjust(PHOTO, [(name, factor)])
    assert np.abs(got - by_torchvision(PHOTO, [(name, factor)])).max() <= 1


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hue_is_torchvisions_up_to_the_rounding_of_uint8(turns):
    """Hue and saturation are held in 256 steps, as in albumentations: about a level in the mean."""
    difference = np.abs(color.adjust(PHOTO, [("hue", turns)]) - by_torchvision(PHOTO, [("hue", turns)]))
    assert difference.mean() < 1.0
    assert difference.max() <= 8


def test_runs_of_colour_changes_are_torchvisions_where_nothing_is_clipped():
    muted = (PHOTO * 0.4 + 70).astype(np.uint8)  # far from black and white
    rng = np.random.default_rng(0)
    for _ in range(30):
        factors = [(n, rng.uniform(0.8, 1.2)) for n in ("brightness", "contrast", "saturation")] + [("hue", rng.uniform(-0.1, 0.1))]
        steps = [factors[i] for i in rng.permutation(4)]
        for grey in (False, True):
            difference = np.abs(color.adjust(muted, steps, grey=grey) - by_torchvision(muted, steps, grey))
            assert difference.mean() < 1.0
            assert difference.max() <= 6


def test_grey_and_solarize_are_torchvisions():
    assert np.abs(color.adjust(PHOTO, [], grey=True) - by_torchvision(PHOTO, [], grey=True)).max() <= 1
    reference = F.solarize(torch.from_numpy(PHOTO).permute(2, 0, 1), 128).permute(1, 2, 0).numpy()
    assert np.array_equal(color.solarize(PHOTO, 128), reference)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_of_that_sigma(sigma):
    reference = F.gaussian_blur(torch.from_numpy(PHOTO).permute(2, 0, 1).float(), [23, 23], [sigma, sigma]).permute(1, 2, 0).numpy()
    assert np.abs(color.blur(PHOTO, sigma) - reference).max() <= 2.5


def test_augmentation_depends_on_the_key_alone_not_on_the_worker(pictures):
    table = list_pictures(pictures / "train")
    views = Views.of(named_views()["dino"], {"albumentations": ["RandomGamma", {"GaussNoise": {"p": 0.5}}], "rotate": 20})
    batches = []
    for workers in (0, 2):
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        dataset = Pictures(table, Augment(views, (32, 32)), seed=7, replace=True)
        batches.append(list(make_loader(dataset, TrainOrder(48, 16, 7, lambda: 0), workers=workers)))
    assert len(batches[0]) == len(batches[1]) == 3
    for a, b in zip(*batches, strict=True):
        assert [tuple(x.shape[2:]) for x in a["images"]] == [(32, 32)] * 2 + [(96, 96)] * 8
        assert all(torch.equal(x, y) for x, y in zip(a["images"], b["images"], strict=True))


def test_augmentations_are_independent_of_each_other():
    """With one random state for all transforms the share that is both flipped and grey would be far from the product."""
    left = np.zeros((16, 16, 3), np.uint8)
    left[:, :8] = (200, 100, 50)
    augment = Augment(Views.of({"flip": 0.5, "grey": 0.5, "albumentations": [{"VerticalFlip": {"p": 0.5}}]}), (16, 16))
    left[:8] //= 2
    flipped, grey, upside = [], [], []
    for i in range(800):
        (view,) = augment(left, np.random.default_rng((0, i)))
        flipped.append(view[:, :8].sum() < view[:, 8:].sum())
        upside.append(view[:8].sum() > view[8:].sum())
        grey.append(bool((view[..., 0] == view[..., 1]).all()))
    shares = [np.mean(x) for x in (flipped, grey, upside)]
    assert shares == pytest.approx([0.5] * 3, abs=0.07)
    for a, b in ((flipped, grey), (flipped, upside), (grey, upside)):
        assert np.mean(np.logical_and(a, b)) == pytest.approx(0.25, abs=0.06)


def test_crops_have_the_areas_and_shapes_that_are_asked_for():
    view = View(crop_scale=(0.3, 0.5), crop_ratio=(0.75, 1.5))
    boxes = np.array([random_box(view, 200, 300, np.random.default_rng(i)) for i in range(400)])
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 60000, boxes[:, 3] / boxes[:, 2]
    assert 0.29 < areas.min() < 0.31
    assert 0.49 < areas.max() < 0.51
    assert 0.74 < ratios.min() < 0.78
    assert 1.45 < ratios.max() < 1.52
    assert (boxes[:, 0] + boxes[:, 2] <= 200).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 300).all()
    assert boxes[:, 0].min() == 0
    for H, W in ((1, 1000), (1000, 1), (1, 1)):  # a shape in which no crop of the ratio fits
        _top, _left, h, w = random_box(view, H, W, np.random.default_rng(0))
        assert 0 < h <= H
        assert 0 < w <= W


def test_the_clean_view_is_the_middle_square_resized():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255
    (view,) = CenterCrop((10, 10))(picture)
    assert view.shape == (10, 10, 3)
    assert (view == 255).all()


def test_the_second_view_and_the_small_ones_differ_by_their_own_keys():
    byol = Views.of(named_views()["byol"])
    assert [(v.blur, v.solarize) for v in byol.each] == [(1.0, 0.0), (0.1, 0.2)]
    dino = Views.of(named_views()["dino"], {"local": {"views": 4, "image_size": 48}, "second": {"grey": 0.0}, "flip": 0.3})
    assert len(dino.each) == 6
    assert dino.sizes == (None, None, *[(48, 48)] * 4)
    assert {v.flip for v in dino.each} == {0.3}
    assert (dino.each[0].grey, dino.each[1].grey, dino.each[1].solarize, dino.each[2].crop_scale) == (0.2, 0.0, 0.2, (0.05, 0.4))
    views = Augment(dino, (64, 64))(PHOTO, np.random.default_rng(0))
    assert [v.shape for v in views] == [(64, 64, 3)] * 2 + [(48, 48, 3)] * 4
    assert Views.of(named_views()["dino"], {"local": {"views": 0}}).sizes == (None, None)


def test_every_pipeline_has_a_name_and_the_methods_have_theirs():
    assert {"simclr", "byol", "moco_v3", "dino", "mae", "none", "crop"} <= set(named_views())
    for name, keys in named_views().items():
        for view in Augment(Views.of(keys), (32, 32))(PHOTO, np.random.default_rng(1)):
            assert view.dtype == np.uint8, name


def test_pictures_of_other_channels_are_augmented_without_what_needs_colour():
    views, dropped = SIMCLR.of_channels(5)
    assert dropped == ["saturation", "hue", "grey"]
    five = np.dstack([PHOTO, PHOTO[..., :2]])
    first, second = Augment(views, (32, 32))(five, np.random.default_rng(0))
    assert first.shape == second.shape == (32, 32, 5)
    one = Augment(SIMCLR.of_channels(1)[0], (32, 32))(PHOTO[..., :1], np.random.default_rng(0))
    assert one[0].shape == (32, 32, 1)
    changed = color.adjust_any(PHOTO, 0.7, 0.5)
    assert np.abs(changed.astype(float) - ((PHOTO * 0.7 - PHOTO.mean() * 0.7) * 0.5 + PHOTO.mean() * 0.7)).max() <= 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"flipp": 1}, "unknown 'flipp'.*did you mean 'flip'"),
        ({"second": {"blur": 1}}, "data.augment.second: there is one view"),
        ({"views": 2, "second": {"blurr": 1}}, "unknown second.'blurr'"),
    ],
)
def test_views_that_cannot_be_are_told(keys, message):
    with pytest.raises(UserError, match=message):
        Views.of(keys)


# ---------------------------------------------------------------- the user's own albumentations


def test_a_users_transforms_are_albumentations_own(tmp_path):
    import albumentations as A

    saved = tmp_path / "mine.yaml"
    A.save(A.Compose([A.InvertImg(p=1)]), str(saved), data_format="yaml")
    listed = tmp_path / "listed.yaml"
    listed.write_text("- InvertImg: {p: 1}\n")
    for spec in (
        ["InvertImg"],
        [{"InvertImg": {"p": 1}}],
        [{"OneOf": {"transforms": [{"InvertImg": {"p": 1}}], "p": 1}}],
        str(saved),
        str(listed),
    ):
        augment = Augment(Views.of({"albumentations": spec}), (300, 300))
        inverted = [np.array_equal(augment(PHOTO, np.random.default_rng(i))[0], 255 - PHOTO) for i in range(12)]
        assert all(inverted) if spec != ["InvertImg"] else any(inverted) and not all(inverted)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["RandomGama"], "no transform 'RandomGama'.*did you mean 'RandomGamma'"),
        ([{"RandomGamma": {"gama_limit": [80, 120]}}], "RandomGamma does not take.*gama_limit"),
        ([{"Blur": {"blur_limit": "much"}}], "Blur does not take"),
        ([3], "got 3; expected a name"),
        ("nothing.yaml", "no file nothing.yaml"),
    ],
)
def test_transforms_that_albumentations_does_not_know_are_told(spec, message):
    from visiontune.data.user_transforms import compose

    with pytest.raises(UserError, match=message):
        compose(spec)


def test_a_transform_that_changes_the_size_is_told():
    augment = Augment(Views.of({"albumentations": [{"Resize": {"height": 8, "width": 8, "p": 1}}]}), (32, 32))
    with pytest.raises(UserError, match="keep size and type: crop with data.augment.crop_scale"):
        augment(PHOTO, np.random.default_rng(0))


def test_opencv_is_held_to_one_thread():
    assert cv2.getNumThreads() <= 1
