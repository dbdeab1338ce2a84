import pytest
import torch

from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.finetune.targets import boxes_of, pictures_of

BOX, LABEL = torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([1])

WRONG = {
    "none at all": (None, "got a NoneType as targets for 1 pictures"),
    "too many": ([Boxes.none()] * 2, "got 2 of them as targets for 1 pictures"),
    "neither kind": ([3], r"targets\[0\] is a int; expected visiontune.boxes.Boxes"),
    "no labels": ([{"boxes": BOX}], r"targets\[0\] has no 'labels', only boxes"),
    "five numbers": ([Boxes(torch.zeros(1, 5), LABEL)], r"boxes of shape \(1, 5\)"),
    "labels of another number": ([Boxes(BOX, torch.tensor([0, 1]))], r"labels of shape \(2,\); expected \(M, 4\)"),
    "float labels": ([{"boxes": BOX, "labels": LABEL.float()}], "labels of torch.float32; expected whole numbers"),
    "reversed": ([{"boxes": [[5.0, 2, 1, 6]], "labels": [0]}], r"the box \[5.0, 2.0, 1.0, 6.0\] with no width or height"),
    "flat": ([{"boxes": [[1.0, 2, 5, 2]], "labels": [0]}], "with no width or height"),
    "not a number": ([{"boxes": [[1.0, 2, float("nan"), 6]], "labels": [0]}], "a box that is not finite"),
    "labels from 1": ([Boxes(BOX, torch.tensor([2]))], "the label 2, but num_classes=2 allows 0 to 1; count labels from 0"),
    "negative": ([Boxes(BOX, torch.tensor([-1]))], "the label -1"),
}


@pytest.mark.parametrize(("targets", "said"), WRONG.values(), ids=WRONG)
def test_wrong_targets_are_told_in_one_sentence(targets, said):
    with pytest.raises(UserError, match=said) as error:
        boxes_of(targets, 1, 2)
    assert "\n" not in str(error.value)


def test_dictionaries_become_boxes_whatever_numbers_they_hold():
    target = {"boxes": torch.tensor([[1, 2, 5, 6]]), "labels": torch.tensor([1], dtype=torch.int32), "image_id": 3, "iscrowd": LABEL}
    (boxes,) = boxes_of((target,), 1, 2)
    assert torch.equal(boxes.xyxy, BOX)
    assert torch.equal(boxes.labels, LABEL)
    assert (boxes.xyxy.dtype, boxes.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("empty", [{"boxes": [], "labels": []}, {"boxes": torch.zeros(0), "labels": torch.zeros(0)}, Boxes.none()])
def test_an_empty_picture_has_four_columns(empty):
    (boxes,) = boxes_of([empty], 1, 2)
    assert boxes.xyxy.shape == (0, 4)
    assert (boxes.xyxy.dtype, boxes.labels.dtype) == (torch.float32, torch.int64)


def test_values_on_another_device_are_not_looked_at():
    """A look would make every step wait; `meta` has none to give, and would raise."""
    (boxes,) = boxes_of([Boxes(BOX.flip(1).to("meta"), LABEL.to("meta"))], 1, 1)
    assert boxes.xyxy.device.type == "meta"


def test_a_list_of_pictures_of_one_size_is_a_batch_and_of_several_is_told():
    assert pictures_of((torch.zeros(3, 4, 6),) * 2).shape == (2, 3, 4, 6)
    with pytest.raises(UserError, match="pictures of 3x4x6, 3x8x6 .*Letterbox"):
        pictures_of([torch.zeros(3, 4, 6), torch.zeros(3, 8, 6)])
    with pytest.raises(UserError, match=r"a tensor of shape \(3, 4, 6\) for the pictures"):
        pictures_of(torch.zeros(3, 4, 6))
