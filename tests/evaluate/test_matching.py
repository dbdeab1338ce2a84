import numpy as np
import pytest

from tests.metrics.pictures import random_pictures
from visiontune.evaluate.detection import BoxAnswers
from visiontune.evaluate.matching import IGNORED, WRONG, match_by_class, overlaps


def overlap(a, b):
    """Intersection, and areas, of two boxes, number by number."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    return shared, (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])


def one_by_one(found, truth, crowd, least):
    """What each prediction of one picture found, slowly: (number of the true box, WRONG or IGNORED)."""
    said, free = [WRONG] * len(found), set(range(len(truth)))
    for d in sorted(range(len(found)), key=lambda d: -found.scores[d].item()):
        best, best_iou = None, least
        for t in range(len(truth)):
            if t in free and truth.labels[t] == found.labels[d]:
                shared, a, b = overlap(found.xyxy[d].tolist(), truth.xyxy[t].tolist())
                if shared / (a + b - shared) >= best_iou:
                    best, best_iou = t, shared / (a + b - shared)
        if best is not None:
            said[d] = best
            free.remove(best)
            continue
        for c in range(len(crowd)):
            shared, a, _ = overlap(found.xyxy[d].tolist(), crowd.xyxy[c].tolist())
            if crowd.labels[c] == found.labels[d] and shared / a >= least:
                said[d] = IGNORED
    return said


@pytest.mark.parametrize("least", [0.3, 0.5, 0.75])
def test_all_pictures_at_once_match_as_one_box_after_the_other(least):
    found, truth, crowd = random_pictures(60, most=20, seed=1, absent=())
    answers = BoxAnswers.of(found, truth, num_classes=5, crowd=crowd)
    match = match_by_class(answers.found, answers.score, answers.true, answers.crowd, least)
    expected = []
    for i, picture in enumerate(zip(found, truth, crowd, strict=True)):
        start = int(answers.true.offsets[i])
        expected += [m if m < 0 else m + start for m in one_by_one(*picture, least)]
    assert match.tolist() == expected
    assert {WRONG, IGNORED} < set(expected)
    hits = [m for m in expected if m >= 0]
    assert len(hits) == len(set(hits)) > 50


def test_boxes_without_an_area_overlap_with_nothing():
    flat = np.array([[3.0, 3, 3, 9]])
    assert overlaps(flat, flat).item() == 0
    assert overlaps(flat, np.array([[0.0, 0, 10, 10]]), of_first=True).item() == 0
