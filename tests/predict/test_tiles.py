from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from visiontune.boxes import FILL, Boxes
from visiontune.errors import UserError
from visiontune.predict.box_predictor import BoxPredictor
from visiontune.predict.tiles import Tile, merge_tiles, predict_tiles, tiles_of


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (500, 40)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.45])
def test_tiles_cover_every_pixel_and_overlap_enough(size, overlap):
    height, width = 203, 311
    tiles = tiles_of(height, width, size, overlap=overlap)
    seen = np.zeros((height, width), dtype=int)
    for t in tiles:
        seen[t.top : t.bottom, t.left : t.right] += 1
        assert (t.bottom - t.top, t.right - t.left) == (min(size[0], height), min(size[1], width))
    assert seen.min() == 1
    columns = sorted({t.left for t in tiles})
    assert all(a + size[1] - b >= int(overlap * size[1]) for a, b in pairwise(columns))


def test_a_small_picture_is_one_tile():
    assert tiles_of(30, 40, (64, 64)) == [Tile(0, 0, 30, 40)]


def test_an_overlap_of_half_is_refused():
    with pytest.raises(UserError, match="overlap: got 0.5; expected a share of a tile from 0 to below 0.5"):
        tiles_of(100, 100, (10, 10), overlap=0.5)


class Finder:
    """Finds the painted rectangles of what it is shown exactly; the value of a pixel is its class and one more. Pieces are surer."""

    def __init__(self):
        self.sizes = []

    def __call__(self, pictures):
        self.sizes.append([p.shape[:2] for p in pictures])
        return [self.one(p[..., 0]) for p in pictures]

    def one(self, pixels):
        boxes, labels = [], []
        for value in np.unique(pixels[pixels > 0]):
            for y, x in ndimage.find_objects(ndimage.label(pixels == value)[0]):
                boxes.append([x.start, y.start, x.stop, y.stop])
                labels.append(int(value) - 1)
        xyxy = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
        area = (xyxy[:, 2:] - xyxy[:, :2]).prod(dim=1)
        return Boxes(xyxy, torch.tensor(labels, dtype=torch.long), 1 / (1 + area / 1000))


def painted(boxes, height=230, width=300):
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2, label in boxes:
        pixels[y1:y2, x1:x2] = label + 1
    return pixels


def rows(boxes):
    return sorted([*map(int, b), k] for b, k in zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True))


SETS = {
    "whole in some tile": [[58, 10, 70, 22, 0], [5, 5, 20, 20, 1], [140, 100, 152, 110, 0], [290, 220, 300, 230, 1], [0, 60, 10, 70, 0]],
    "larger than an overlap": [[40, 30, 90, 44, 0], [120, 40, 132, 100, 1], [200, 120, 260, 180, 0]],
    "larger than a tile": [[10, 10, 200, 30, 0], [20, 60, 100, 200, 1], [130, 50, 290, 220, 0]],
    "side by side, and two classes": [[40, 10, 60, 30, 0], [61, 10, 81, 30, 0], [40, 40, 60, 60, 1], [60, 40, 80, 60, 0]],
}


@pytest.mark.parametrize("boxes", SETS.values(), ids=SETS)
@pytest.mark.parametrize("size", [(64, 64), (100, 50)])
def test_painted_squares_are_found_exactly_whatever_ends_cut_them(boxes, size):
    found = predict_tiles(painted(boxes), Finder(), size=size, overlap=0.25)
    assert rows(found) == sorted(boxes)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_random_rectangles_are_found_exactly(seed):
    """Each in a cell of its own, so that none touches another."""
    rng = np.random.default_rng(seed)
    boxes = []
    for y in range(0, 230, 46):
        for x in range(0, 300, 50):
            (x1, x2), (y1, y2) = (sorted(rng.choice(np.arange(2, n), 2, replace=False).tolist()) for n in (48, 44))
            if x2 - x1 > 3 and y2 - y1 > 3:
                boxes.append([x + x1, y + y1, x + x2, y + y2, int(rng.integers(3))])
    found = predict_tiles(painted(boxes), Finder(), size=(70, 80), overlap=0.2)
    assert rows(found) == sorted(boxes)


def test_the_whole_picture_is_predicted_too_where_asked_and_tiles_come_in_batches():
    boxes = [[10, 10, 290, 220, 0]]
    finder = Finder()
    found = predict_tiles(painted(boxes), finder, size=(64, 64), overlap=0.2, whole=True, batch_size=4)
    assert rows(found) == boxes
    assert all(len(batch) <= 4 for batch in finder.sizes)
    assert finder.sizes[-1][-1] == (230, 300)
    single = Finder()
    predict_tiles(painted([], 40, 40), single, size=(64, 64), whole=True)
    assert single.sizes == [[(40, 40)]]


def test_a_piece_gives_way_to_the_whole_box_though_it_is_surer():
    tiles = [Tile(0, 0, 100, 100), Tile(0, 80, 100, 180)]
    piece = Boxes(torch.tensor([[85.0, 10, 100, 30]]), torch.tensor([0]), torch.tensor([0.9]))
    whole = Boxes(torch.tensor([[85.0, 10, 130, 30]]), torch.tensor([0]), torch.tensor([0.4]))
    merged = merge_tiles([piece, whole], tiles, 100, 180)
    assert rows(merged) == [[85, 10, 130, 30, 0]]
    assert merged.scores.item() == pytest.approx(0.4)


def test_a_rough_sliver_of_a_whole_box_goes_and_one_of_another_class_stays():
    tiles = [Tile(0, 0, 100, 100), Tile(0, 80, 100, 180)]
    slivers = Boxes(torch.tensor([[97.0, 8, 100, 31], [97, 8, 100, 31]]), torch.tensor([0, 1]), torch.tensor([0.9, 0.9]))
    whole = Boxes(torch.tensor([[92.0, 10, 130, 30]]), torch.tensor([0]), torch.tensor([0.4]))
    assert rows(merge_tiles([slivers, whole], tiles, 100, 180)) == [[92, 10, 130, 30, 0], [97, 8, 100, 31, 1]]


def test_pieces_that_do_not_agree_or_are_of_another_class_stay_apart():
    tiles = [Tile(0, 0, 100, 100), Tile(0, 80, 100, 180)]
    left = Boxes(torch.tensor([[50.0, 10, 100, 30], [50, 60, 100, 80]]), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]))
    right = Boxes(torch.tensor([[80.0, 28, 130, 50], [80, 60, 130, 80]]), torch.tensor([0, 1]), torch.tensor([0.7, 0.6]))
    merged = merge_tiles([left, right], tiles, 100, 180)
    assert rows(merged) == sorted([*rows(left), *rows(right)])


def test_nothing_is_found_where_nothing_is_and_the_limit_holds():
    assert len(predict_tiles(painted([]), Finder(), size=(64, 64))) == 0
    found = predict_tiles(painted(SETS["whole in some tile"]), Finder(), size=(64, 64), max_detections=2)
    assert len(found) == 2


class Unsure(BoxPredictor):
    """Finds the long thing in each tile surely, and in the small whole picture hardly."""

    def __init__(self):
        super().__init__({"pretrained_cfg": {"input_size": [3, 64, 64]}, "num_classes": 1, "detector": {}})

    def __call__(self, images):
        return [found_in(x, 0.05 if x[0, 40:].eq(FILL).all() else 0.9) for x in images]


def found_in(pixels, score):
    y, x = torch.where(pixels[0] > 200)
    if not len(x):
        return Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    return Boxes(torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float(), torch.tensor([0]), torch.tensor([score]))


def test_an_unsure_box_of_the_whole_picture_does_not_stand_for_certain_pieces(tmp_path):
    pixels = np.zeros((64, 160, 3), np.uint8)
    pixels[20:30, 20:140] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = Unsure().predict(str(tmp_path), score=0.3, tile=64, overlap=0.25, workers=0)
    assert found.boxes.xyxy.tolist() == [[20, 20, 140, 30]]
    assert found.boxes.scores.tolist() == pytest.approx([0.9])
