import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from visiontune.data.decode import BrokenPicture, read_picture
from visiontune.data.folder import few_labels, list_pictures, split_off
from visiontune.data.loader import Pictures, collate, make_loader
from visiontune.data.order import EvalOrder, TrainOrder, permute
from visiontune.data.sample import sample_folder
from visiontune.data.views import Augment, CenterCrop, Views
from visiontune.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 4097])
def test_an_epochs_order_is_a_permutation(n):
    order = permute(np.arange(n), n, seed=3, epoch=5)
    assert sorted(order.tolist()) == list(range(n))


def test_orders_differ_by_epoch_and_seed_and_do_not_follow_the_folder():
    n = 5000
    a, b, c = (permute(np.arange(n), n, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0)))
    for x, y in ((a, b), (a, c), (a, np.arange(n))):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.06  # four standard deviations
        assert (x == y).mean() < 0.003


def test_a_position_can_be_asked_for_alone():
    whole = permute(np.arange(100), 100, seed=0, epoch=2)
    assert permute(np.array([41, 7]), 100, seed=0, epoch=2).tolist() == whole[[41, 7]].tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_every_step_has_the_same_pictures_whatever_the_ranks_and_accumulation(world, accumulate):
    def step_pictures(world, accumulate):
        orders = [list(TrainOrder(50, 8, 0, lambda: 0, accumulate, r, world)) for r in range(world)]
        for step in range(6):
            batches = [o[step * accumulate + a] for o in orders for a in range(accumulate)]
            yield sorted(key for batch in batches for key in batch)

    assert list(step_pictures(world, accumulate)) == list(step_pictures(1, 1))


def test_an_epoch_shows_no_picture_twice_and_leaves_out_less_than_a_batch():
    keys = [k for batch in TrainOrder(50, 8, 0, lambda: 0) for k in batch]
    assert len(set(keys)) == len(keys) == 48
    left = set(range(50)) - {i for i, _ in keys}
    again = set(range(50)) - {i for b in TrainOrder(50, 8, 0, lambda: 6) for i, _ in b}
    assert left != again  # others in the next epoch


def test_the_order_goes_on_at_the_step_that_it_is_told():
    whole = list(TrainOrder(50, 8, 0, lambda: 0)) + list(TrainOrder(50, 8, 0, lambda: 6))
    for step in (1, 5, 6, 8, 11):
        assert list(TrainOrder(50, 8, 0, lambda s=step: s)) == whole[step : (step // 6 + 1) * 6]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_picture_once(world):
    keys = [i for r in range(world) for batch in EvalOrder(17, 4, r, world) for i, _ in batch]
    assert sorted(keys) == list(range(17))
    assert all(len(list(EvalOrder(17, 4, r, world))) == len(EvalOrder(17, 4, r, world)) for r in range(world))


def test_a_folder_is_listed_sorted_at_any_depth_and_other_files_are_left(tmp_path):
    for name in ("b/2.PNG", "a/x/1.jpg", "a/0.jpeg", "a/notes.txt", "c.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = list_pictures(tmp_path)
    assert [table.path(i).removeprefix(f"{tmp_path}/") for i in range(len(table))] == ["a/0.jpeg", "a/x/1.jpg", "b/2.PNG", "c.tif"]
    labelled = list_pictures(tmp_path, labelled=True)
    assert labelled.classes == ("a", "b")
    assert labelled.labels.tolist() == [0, 0, 1]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    name = b"caf\xe9.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        file.write(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    table = list_pictures(tmp_path)
    assert read_picture(table.path(0)).shape == (4, 4, 3)


def test_few_labels_are_stratified_nested_and_repeatable(pictures):
    table = list_pictures(pictures / "train", labelled=True)
    small, large = (few_labels(table, seed=1, per_class=k) for k in (3, 9))
    names = [{t.path(i) for i in range(len(t))} for t in (small, large)]
    assert np.bincount(small.labels).tolist() == [3, 3]
    assert names[0] < names[1]
    assert names[0] == {few_labels(table, seed=1, per_class=3).path(i) for i in range(6)}
    assert names[0] != {few_labels(table, seed=2, per_class=3).path(i) for i in range(6)}
    assert len(few_labels(table, seed=1, fraction=0.01)) == 2  # at least one a class


def test_a_share_set_aside_for_validation_is_apart_from_the_rest(pictures):
    table = list_pictures(pictures / "train", labelled=True)
    rest, part = split_off(table, 0.25, seed=0)
    a, b = ({t.path(i) for i in range(len(t))} for t in (rest, part))
    assert not a & b
    assert (len(rest), len(part)) == (36, 12)
    assert np.bincount(part.labels).tolist() == [6, 6]


def test_the_sample_is_the_real_digits():
    train, test = (list_pictures(f"sample:digits/{p}", labelled=True) for p in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    from sklearn.datasets import load_digits

    first = np.asarray(Image.open(sample_folder("digits/train") / "0" / "0000.png"))
    assert np.array_equal(first, (load_digits().images[0] * 255 / 16).round().astype(np.uint8))
    with pytest.raises(UserError, match="did you mean 'digits/train'"):
        sample_folder("sample:digit/train")


def test_pictures_of_many_kinds_come_out_as_rgb(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    image.save(tmp_path / "c.tiff")
    image.save(tmp_path / "d.webp", lossless=True)
    for name in ("a.png", "b.bmp", "c.tiff", "d.webp"):
        assert np.array_equal(read_picture(str(tmp_path / name)), rgb), name
    image.convert("L").save(tmp_path / "grey.png")
    image.quantize(16).save(tmp_path / "palette.gif")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + 7).save(tmp_path / "deep.png")
    for name in ("grey.png", "palette.gif", "cmyk.jpg", "deep.png"):
        assert read_picture(str(tmp_path / name)).shape == (12, 10, 3), name
    assert np.array_equal(read_picture(str(tmp_path / "deep.png"))[..., 0], rgb[..., 0])  # scaled, not clipped
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(str(tmp_path / "turned.jpg")).shape == (10, 12, 3)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.jpg", b"", "empty file"),
        ("page.jpg", b"<!DOCTYPE html><html>", "a web page"),
        ("junk.png", b"\x00\x01\x02\x03" * 9, "not a picture"),
        ("half.jpg", "half", "cut off|cannot be decoded"),
    ],
)
def test_broken_pictures_have_a_cause(tmp_path, name, content, cause):
    if content == "half":
        whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()
        content = whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenPicture, match=cause):
        read_picture(str(tmp_path / name))


def test_missing_files_and_links_have_a_cause(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    for name, cause in (("link.jpg", "dangling link"), ("gone.jpg", "file is gone")):
        with pytest.raises(BrokenPicture, match=cause):
            read_picture(str(tmp_path / name))


SIMCLR = Views(
    views=2, crop_scale=(0.2, 1.0), flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.5
)


def test_augmentation_depends_on_the_key_alone_not_on_the_worker(pictures):
    table = list_pictures(pictures / "train")
    batches = []
    for workers in (0, 2):
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        dataset = Pictures(table, Augment(SIMCLR, (32, 32)), seed=7, replace=True)
        batches.append(list(make_loader(dataset, TrainOrder(48, 16, 7, lambda: 0), workers=workers)))
    assert len(batches[0]) == len(batches[1]) == 3
    for a, b in zip(*batches, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a["images"], b["images"], strict=True))


def test_augmentations_are_independent_of_each_other(pictures):
    """With one random state for all transforms the share that is both flipped and grey would be far from the product."""
    left = np.zeros((16, 16, 3), np.uint8)
    left[:, :8] = (200, 100, 50)
    augment = Augment(Views(flip=0.5, grey=0.5), (16, 16))
    flipped, grey = [], []
    for i in range(800):
        (view,) = augment(left, np.random.default_rng((0, i)))
        flipped.append(view[:, :8].sum() < view[:, 8:].sum())
        grey.append(bool((view[..., 0] == view[..., 1]).all()))
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.07)
    assert np.mean(grey) == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.logical_and(flipped, grey)) == pytest.approx(0.25, abs=0.06)


def test_crops_have_the_areas_and_shapes_that_are_asked_for():
    augment = Augment(Views(crop_scale=(0.3, 0.5), crop_ratio=(0.75, 1.5)), (8, 8))
    picture = np.zeros((200, 300, 3), np.uint8)
    for i in range(200):
        h, w = augment._crop(picture, np.random.default_rng(i)).shape[:2]
        assert 0.29 < h * w / 60000 < 0.51
        assert 0.74 < w / h < 1.52


def test_the_clean_view_is_the_middle_square_resized():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255
    (view,) = CenterCrop((10, 10))(picture, np.random.default_rng())
    assert view.shape == (10, 10, 3)
    assert (view == 255).all()


def test_collate_gives_uint8_channels_last_without_a_copy():
    items = [([np.full((4, 6, 3), i, np.uint8)] * 2, i, []) for i in range(3)]
    batch = collate(items)
    assert [tuple(v.shape) for v in batch["images"]] == [(3, 3, 4, 6)] * 2
    assert batch["images"][0].dtype == torch.uint8
    assert batch["images"][0].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"].tolist() == [0, 1, 2]


def test_a_broken_picture_is_replaced_in_training_and_left_out_in_evaluation(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    table = list_pictures(tmp_path)
    whole = CenterCrop((8, 8))
    views, _, broken = Pictures(table, whole, replace=True)[(1, 0)]
    assert (views[0] == 2).all()
    assert broken == [(str(tmp_path / "1.png"), "empty file")]
    batch = next(iter(make_loader(Pictures(table, whole), EvalOrder(4, 4), workers=0)))
    assert batch["images"][0][:, 0, 0, 0].tolist() == [0, 2, 3]


def test_unknown_views_are_told():
    with pytest.raises(UserError, match="unknown 'flipp'.*did you mean 'flip'"):
        Views.of({"flipp": 1})
