import numpy as np
import pytest

from tests.data.detection.sets import write_set
from visiontune.data.detection.parts import few_pictures, shown, split_off_boxes
from visiontune.data.detection.read import read_boxes
from visiontune.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Forty pictures: dogs on all but every fifth, one cat."""
    things = {}
    for i in range(40):
        boxes = [("dog", (5, 6, 25, 30))] * (i % 5 > 0) + [("cat", (30, 30, 40, 40))] * (i == 7)
        things[f"{i:02d}.png"] = ((48, 48), boxes)
    return read_boxes(**write_set(tmp_path / "set", things).coco)


def names(table):
    return {table.pictures.name(i) for i in range(len(table))}


def test_a_smaller_part_lies_in_a_larger_one_and_shows_each_class(table):
    parts = [few_pictures(table, seed=3, fraction=f) for f in (0.05, 0.2, 0.5)]
    assert [len(p) for p in parts] == sorted(len(p) for p in parts)
    assert len(parts[1]) == pytest.approx(8, abs=2)
    assert names(parts[0]) < names(parts[1]) < names(parts[2])
    for part in parts:
        assert shown(part).any(axis=0).all()
        assert b"07.png" in names(part)  # the only cat
    assert names(few_pictures(table, seed=4, fraction=0.2)) != names(parts[1])


def test_validation_and_the_rest_are_all_pictures_and_the_rest_has_each_class(table):
    rest, part = split_off_boxes(table, 0.25, seed=0)
    assert names(rest) | names(part) == names(table)
    assert not names(rest) & names(part)
    assert len(part) == pytest.approx(10, abs=2)
    assert shown(rest).any(axis=0).all()
    assert len(rest.label) + len(part.label) == len(table.label)
    assert np.array_equal(rest.boxes_of(0).xyxy, table.boxes_of(int(np.setdiff1d(range(40), [int(n[:2]) for n in names(part)])[0])).xyxy)
    with pytest.raises(UserError, match="data.val: a share of 0.01 leaves none of 1 picture for validation"):
        split_off_boxes(table.take([7]), 0.01, seed=0)
