"""Boxes and the way into a letterbox and back."""

import pytest
import torch

from visiontune.boxes import Boxes, Letterbox


def test_what_lies_beside_the_picture_has_no_area_in_it():
    found = Letterbox.of(40, 80, (64, 64)).outside(Boxes(torch.tensor([[0.0, 40, 30, 60], [4, 4, 30, 60]]), torch.tensor([0, 1])))
    assert found.with_area().labels.tolist() == [1]


def some_boxes(height: int, width: int, count: int = 20) -> Boxes:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    return Boxes(corners.flatten(1), torch.arange(count), torch.rand(count, generator=generator))


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (33, 900)])
def test_a_letterbox_and_back_gives_the_same_boxes(height, width):
    boxes = some_boxes(height, width)
    box = Letterbox.of(height, width, (320, 256))
    inside = box.inside(boxes)
    assert (inside.xyxy <= torch.tensor([256, 320, 256, 320]) + 1e-3).all()
    torch.testing.assert_close(box.outside(inside).xyxy, boxes.xyxy, rtol=0, atol=1e-3)


def test_an_empty_picture_has_boxes_of_no_rows():
    empty = Boxes.none()
    assert empty.xyxy.shape == (0, 4)
    assert empty.labels.dtype == torch.long
    assert len(empty) == 0
    assert len(Letterbox.of(10, 20, (5, 5)).outside(empty)) == 0


def test_boxes_outside_are_cut_to_the_picture():
    boxes = Boxes(torch.tensor([[-5.0, 2.0, 30.0, 50.0]]), torch.tensor([1]))
    assert boxes.clip(20, 10).xyxy.tolist() == [[0.0, 2.0, 10.0, 20.0]]


def test_taking_some_keeps_labels_and_scores_beside_them():
    boxes = some_boxes(100, 100)
    half = boxes.take(boxes.labels % 2 == 0)
    assert half.labels.tolist() == list(range(0, 20, 2))
    assert torch.equal(half.scores, boxes.scores[::2])
    assert torch.equal(half.to("cpu").xyxy, boxes.xyxy[::2])
