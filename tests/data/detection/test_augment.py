"""Boxes follow the pixels: a coloured rectangle is drawn, changed, and found again by its colour."""

import cv2
import numpy as np
import pytest
import torch

from visiontune.boxes import Boxes, Letterbox
from visiontune.data.decode import Picture
from visiontune.data.detection.augment import BoxAugment, coloured, compose_boxes, flipped, mixup, mosaic
from visiontune.data.detection.place import FILL, Source, draw, empty, fit, random_place, seen
from visiontune.data.detection.views import BOX_PIPELINES, BoxView
from visiontune.errors import UserError

# One colour a class, far apart in some channel.
COLOURS = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)], dtype=np.uint8)
PLAIN = {"jitter": 0.0, "flip": 0.0}


def scene(width=320, height=240, boxes=(((60, 50, 180, 130), 0),), *, jpeg=False, index=0):
    """A grey picture with rectangles, as a source."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    for (x1, y1, x2, y2), k in boxes:
        pixels[y1:y2, x1:x2] = COLOURS[k]
    if jpeg:
        done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])
        assert done
        picture = Picture(data.tobytes())
    else:
        picture = Picture(pixels)
    xyxy = torch.tensor([b for b, _ in boxes], dtype=torch.float32).reshape(-1, 4)
    return Source(picture, Boxes(xyxy, torch.tensor([k for _, k in boxes], dtype=torch.long)), index)


def find(pixels, k):
    """The box around all pixels that are nearer to the class's colour than halfway from the grey; None where there are none."""
    near = np.abs(pixels.astype(int) - COLOURS[k]).max(axis=2) < 105
    y, x = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    return None if not len(x) else [x[0], y[0], x[-1] + 1, y[-1] + 1]


def check(pixels, boxes, within=1.5):
    """Every box lies where its colour does; gives the number of boxes."""
    assert pixels.dtype == np.uint8
    assert boxes.xyxy.dtype == torch.float32
    for box, k in zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True):
        place = find(pixels, k)
        assert place is not None, (k, box)
        assert np.abs(np.array(place) - box).max() <= within, (k, place, box)
    return len(boxes)


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("shape", [(320, 240), (240, 320), (1600, 1200), (90, 500), (667, 1000)])
@pytest.mark.parametrize("size", [(160, 160), (96, 256), (416, 320)])
def test_boxes_follow_into_the_letterbox_and_back(shape, size, jpeg):
    w, h = shape
    source = scene(w, h, [((w // 5, h // 6, w // 2, h // 2), 0)], jpeg=jpeg)
    pixels, box = fit(source, size)
    assert pixels.shape == (*size, 3)
    assert check(pixels, box.inside(source.boxes)) == 1
    torch.testing.assert_close(box.outside(box.inside(source.boxes)).xyxy, source.boxes.xyxy, rtol=0, atol=1e-3)
    # a box around the whole picture is one around its pixels, though sides that the factor gives no whole number are rounded
    x1, y1, x2, y2 = box.inside(Boxes(torch.tensor([[0.0, 0, w, h]]), torch.tensor([0]))).xyxy[0].tolist()
    height, width = round(y2), round(x2)
    assert (x1, y1, x2, y2) == pytest.approx((0, 0, width, height), abs=1e-4)
    assert (pixels[height:] == FILL).all()
    assert (pixels[:, width:] == FILL).all()
    assert (pixels[height - 1, : width // 8] != FILL).any()
    assert (pixels[: height // 8, width - 1] != FILL).any()


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("shape", [(320, 240), (200, 300), (1500, 1000), (64, 48)])
@pytest.mark.parametrize("name", ["standard", "large_scale"])
def test_boxes_follow_scale_jitter_crop_and_flips(name, shape, jpeg):
    w, h = shape
    source = scene(w, h, [((w // 4, h // 4, w // 2, h // 2), 0), ((w // 2 + 2, h // 2, w - 5, h - 8), 2)], jpeg=jpeg)
    augment = BoxAugment(BoxView.of(BOX_PIPELINES[name], PLAIN, {"flip": 0.5, "vertical_flip": 0.5}))
    # a picture of 64 pixels is enlarged seventeenfold: half a pixel of it is several of the result
    within = 1.5 if w > 100 else 0.5 + 1.1 * max(224 / h, 224 / w) / 2 * augment.view.scale[1]
    count = 0
    for i in range(25):
        pixels, boxes = augment(source, (224, 288), np.random.default_rng((1, i)))
        count += check(pixels, boxes, within)
    assert count > 25


def test_jittered_scales_and_places_are_spread():
    places = [random_place(240, 320, (320, 320), (0.5, 2.0), np.random.default_rng(i)) for i in range(500)]
    scales = np.array([p.scale for p in places])
    assert 0.5 <= scales.min() < 0.52
    assert 1.95 < scales.max() <= 2.0
    small, large = [p for p in places if p.scale < 1], [p for p in places if p.scale > 4 / 3]
    assert all(p.left >= 0 and p.left + 320 * p.scale <= 320 for p in small)  # all of it is seen
    assert all(p.left <= 0 and p.left + 320 * p.scale >= 320 for p in large)  # all of the square is filled
    assert np.std([p.left for p in small]) > 10
    assert np.std([p.top for p in large]) > 10


def test_a_box_of_which_too_little_is_seen_is_left_out():
    boxes = Boxes(torch.tensor([[0.0, 0, 100, 10], [0, 20, 100, 30], [0, 40, 2, 41]]), torch.tensor([0, 1, 2]))
    place = Letterbox(1.0, -80.0, 0.0, 100, 100)
    kept = seen(boxes, place, (0, 0, 50, 50), min_visible=0.19)
    assert kept.xyxy.tolist() == [[0, 0, 20, 10], [0, 20, 20, 30]]
    assert len(seen(boxes, place, (0, 0, 50, 50), min_visible=0.21)) == 0
    assert len(seen(boxes, place, (25, 0, 50, 50), min_visible=0.1)) == 1  # half of a fifth is a tenth: kept; the first is not there
    assert len(seen(boxes, Letterbox(0.1, 0.0, 0.0, 100, 100), (0, 0, 50, 50))) == 0  # one pixel high


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.4, 1.6)])
def test_boxes_follow_into_a_mosaic(scale):
    sources = [scene(300 + 40 * k, 260, [((60, 50, 200, 170), k)], index=k) for k in range(4)]
    count = 0
    for i in range(40):
        pixels, boxes = mosaic(sources, (256, 320), np.random.default_rng(i), scale=scale, min_visible=0.1)
        count += check(pixels, boxes)
        for k in set(range(4)) - set(boxes.labels.tolist()):  # what has no box is hardly seen
            place = find(pixels, k)
            assert place is None or (place[2] - place[0]) * (place[3] - place[1]) < 0.11 * 140 * 120 * scale[1] ** 2 + 40
    assert count > 25
    assert len(set(map(bytes, (mosaic(sources, (64, 64), np.random.default_rng(i), scale=scale)[0] for i in range(5))))) == 5


def test_a_mosaic_shows_four_pictures_around_a_point():
    whole = [Source(Picture(np.full((50, 50, 3), 10 + 60 * k, np.uint8)), Boxes.none(), k) for k in range(4)]
    pixels, boxes = mosaic(whole, (100, 100), np.random.default_rng(3), scale=(2.0, 2.0))
    assert [int(pixels[y, x, 0]) for y, x in ((0, 0), (0, 99), (99, 0), (99, 99))] == [10, 70, 130, 190]
    assert len(np.unique(pixels)) == 4
    assert len(boxes) == 0
    middle = [len(np.unique(pixels[0])), len(np.unique(pixels[:, 0]))]
    assert middle == [2, 2]


def test_mixup_lays_two_samples_over_each_other_and_keeps_all_boxes():
    one, other = (fit(s, (240, 320))[0] for s in (scene(), scene(boxes=[((200, 100, 300, 200), 1)])))
    pixels, boxes = mixup((one, scene().boxes), (other, scene(boxes=[((200, 100, 300, 200), 1)]).boxes))
    assert np.abs(pixels - (one.astype(float) + other) / 2).max() <= 0.5
    assert boxes.labels.tolist() == [0, 1]


def test_flips_are_flips():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    boxes = Boxes(torch.tensor([[1.0, 0, 3, 1]]), torch.tensor([5]))
    across, moved = flipped(pixels, boxes, np.random.default_rng(0), horizontal=1, vertical=0)
    assert np.array_equal(across, pixels[:, ::-1])
    assert moved.xyxy.tolist() == [[3, 0, 5, 1]]
    down, moved = flipped(pixels, boxes, np.random.default_rng(0), horizontal=0, vertical=1)
    assert np.array_equal(down, pixels[::-1])
    assert moved.xyxy.tolist() == [[1, 3, 3, 4]]
    assert moved.labels.tolist() == [5]


def test_colours_change_each_with_its_own_chance_and_places_do_not():
    source = scene()
    view = BoxView(jitter=0.5)
    pixels = fit(source, (240, 320))[0]
    changed = [not np.array_equal(coloured(pixels, view, np.random.default_rng(i)), pixels) for i in range(200)]
    assert 0.88 < np.mean(changed) < 0.98  # 1 - 0.5 ** 4
    for v in (BoxView(jitter=0), BoxView(jitter=1, brightness=0, contrast=0, saturation=0, hue=0)):
        assert np.array_equal(coloured(pixels, v, np.random.default_rng(0)), pixels)


def test_boxes_follow_a_users_albumentations():
    own = [{"Affine": {"translate_px": {"x": 30, "y": -20}, "p": 1}}, {"HorizontalFlip": {"p": 0.5}}]
    source = scene(320, 320, [((60, 80, 180, 130), 0), ((0, 0, 40, 15), 2)])
    augment = BoxAugment(BoxView.of(BOX_PIPELINES["none"], {"albumentations": own}))
    lefts = set()
    for i in range(20):
        pixels, boxes = augment(source, (320, 320), np.random.default_rng(i))
        assert check(pixels, boxes) == 1  # the other one went over the edge
        lefts.add(round(boxes.xyxy[0, 0].item()))
    assert lefts == {90, 320 - 210}
    with pytest.raises(UserError, match="keep size and type: crop and scale with data.augment.scale"):
        BoxAugment(BoxView(albumentations=[{"Resize": {"height": 8, "width": 8, "p": 1}}]))(source, (64, 64), np.random.default_rng(0))
    with pytest.raises(UserError, match="did you mean 'HorizontalFlip'"):
        compose_boxes(["HorizontalFlipp"])


def test_a_users_transforms_are_independent_of_ours():
    """With one random state for all of them the share that is flipped both ways would be far from the product."""
    augment = BoxAugment(BoxView.of(BOX_PIPELINES["none"], {"flip": 0.5, "albumentations": ["VerticalFlip"]}))
    source = scene(64, 64, [((4, 4, 20, 20), 0)])
    boxes = np.array([augment(source, (64, 64), np.random.default_rng((0, i)))[1].xyxy[0].tolist() for i in range(600)])
    across, down = boxes[:, 0] > 32, boxes[:, 1] > 32
    assert [across.mean(), down.mean()] == pytest.approx([0.5, 0.5], abs=0.07)
    assert (across & down).mean() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("name", list(BOX_PIPELINES))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_empty_pictures_survive_everything(name, channels):
    from visiontune.data.decode import Reading

    pixels = np.random.default_rng(0).integers(0, 255, (37, 53, channels), dtype=np.uint8)
    source = Source(Picture(pixels, Reading(channels=channels)), Boxes.none())
    augment = BoxAugment(BoxView.of(BOX_PIPELINES[name], {"jitter": 1.0, "flip": 1.0, "vertical_flip": 1.0}))
    for i in range(5):
        sample, boxes = augment(source, (64, 96), np.random.default_rng(i), another=lambda rng: source)
        assert sample.shape == (64, 96, channels)
        assert boxes.xyxy.shape == (0, 4)
        assert boxes.labels.dtype == torch.long
    own = BoxAugment(BoxView(albumentations=["HorizontalFlip"]))
    if channels == 3:
        assert own(source, (64, 64), np.random.default_rng(0))[1].xyxy.shape == (0, 4)


def test_no_more_is_decoded_than_is_seen(monkeypatch):
    asked = []
    cut = Picture.cut
    monkeypatch.setattr(
        Picture, "cut", lambda self, boxes, sizes, **k: asked.append((boxes, self.reduction(boxes, sizes))) or cut(self, boxes, sizes, **k)
    )
    big = scene(2400, 1600, jpeg=True)
    pixels = empty((100, 100), 3)
    draw(pixels, big, Letterbox(0.125, -50.0, -20.0, 1600, 2400), (0, 0, 100, 100))
    assert asked == [([(160, 400, 800, 800)], 8)]


@pytest.mark.parametrize("augment", [{"scal": 1}, {"mosiac": 1}])
def test_unknown_keys_are_told(augment):
    with pytest.raises(UserError, match="data.augment: unknown '.*did you mean '(scale|mosaic)'"):
        BoxView.of(BOX_PIPELINES["standard"], augment)


def test_mixing_ends_before_the_run_does():
    assert BoxView(mosaic=1.0, plain_end=0.05).mixed_epochs(300) == 285
    assert BoxView(mosaic=1.0, plain_end=0.05).mixed_epochs(3) == 2
    assert BoxView(mixup=1.0, plain_end=0.1).mixed_epochs(1) == 0
    assert BoxView(mosaic=1.0, plain_end=0.0).mixed_epochs(10) == 10
