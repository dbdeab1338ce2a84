import numpy as np
import pytest
import torch

from tests.evaluate.test_matching import overlap
from tests.metrics.pictures import random_pictures
from visiontune.boxes import Boxes
from visiontune.evaluate import detection as d
from visiontune.evaluate import detection_results as r
from visiontune.evaluate.matching import IGNORED

K = 5


@pytest.fixture(scope="module")
def answers():
    found, truth, crowd = random_pictures(80, K=K, most=12, seed=2)
    return d.BoxAnswers.of(found, truth, num_classes=K, crowd=crowd)


def boxes(*rows, scored=True):
    """`(x, label, score)`, squares of 40 pixels at x."""
    xyxy = torch.tensor([[x, 0.0, x + 40.0, 40.0] for x, *_ in rows]).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.long)
    return Boxes(xyxy, labels, torch.tensor([row[2] for row in rows]) if scored else None)


def things(*rows):
    return boxes(*rows, scored=False)


def test_the_curve_of_precision_over_recall_has_cocos_area(answers):
    curves = d.box_curves(answers)
    np.testing.assert_allclose(curves.precision.mean(axis=1), answers.coco["ap50"].numpy(), atol=5e-5)
    assert curves.mean_precision.mean() == pytest.approx(answers.coco["map50"].item(), abs=5e-5)
    assert np.isnan(curves.precision[3]).all()


def test_f1_over_scores_and_its_best_threshold_are_those_of_counting(answers):
    curves = d.box_curves(answers)
    for i in (0, 137, 500, 655, 1000):
        threshold = d.THRESHOLDS[i]
        said = answers.said(threshold)
        for k in (0, 1, 2, 4):
            mine = said & (answers.found.label == k)
            tp = int((mine & (answers.match >= 0)).sum())
            assert curves.f1[k, i] == pytest.approx(2 * tp / (mine.sum() + answers.boxes[k])), (k, threshold)
    for k in (0, 1, 2, 4):
        at = np.searchsorted(d.THRESHOLDS, curves.threshold[k])
        assert curves.f1[k, at] == pytest.approx(curves.f1[k].max())
    best = np.searchsorted(d.THRESHOLDS, curves.best_threshold)
    assert curves.mean_f1[best] == curves.mean_f1.max() == pytest.approx(np.nanmean(curves.f1, axis=0).max())


def test_the_best_threshold_lies_in_the_middle_of_where_it_is_best():
    truth = things((0, 0), (100, 0))
    answers = d.BoxAnswers.of([boxes((0, 0, 0.9), (100, 0, 0.8), (200, 0, 0.2))], [truth], num_classes=1)
    assert d.box_curves(answers).best_threshold == pytest.approx(0.5, abs=0.01)


def test_classes_count_what_was_said_and_found_at_the_threshold():
    truth = [things((0, 0), (100, 0), (200, 1)), things((0, 0)), things()]
    found = [boxes((2, 0, 0.9), (300, 0, 0.8), (100, 0, 0.3)), boxes((0, 0, 0.7), (100, 2, 0.7)), boxes((0, 0, 0.2))]
    answers = d.BoxAnswers.of(found, truth, num_classes=3)
    curves = d.box_curves(answers)
    cat, dog, cow = r.box_classes(answers, curves, 0.5)
    assert (cat.pictures, cat.boxes, cat.said) == (2, 3, 3)
    assert cat.precision == cat.recall == cat.f1 == pytest.approx(2 / 3)
    assert (dog.pictures, dog.boxes, dog.said, dog.recall, dog.f1, dog.ap) == (1, 1, 0, 0, 0, 0)
    assert np.isnan(dog.precision)
    assert (cow.pictures, cow.boxes, cow.said) == (0, 0, 1)
    assert np.isnan([cow.precision, cow.recall, cow.f1, cow.ap, cow.ap50, cow.best_threshold]).all()
    found = r.box_results(answers, curves, 0.5)
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(1 / 3)  # of the two classes that have boxes
    assert found["map_small"] is None
    assert found["map50"] == pytest.approx(answers.coco["map50"].item())


def test_sizes_are_counted_by_area_as_coco_does():
    xyxy = torch.tensor([[0.0, 0, 32, 32], [0, 0, 33, 32], [0, 0, 96, 96], [0, 0, 97, 96]])
    answers = d.BoxAnswers.of([Boxes.none()], [Boxes(xyxy, torch.zeros(4, dtype=torch.long))], num_classes=1)
    assert [(s.size, s.boxes) for s in r.size_classes(answers)] == [("small", 1), ("medium", 2), ("large", 1)]
    assert [s.recall for s in r.size_classes(answers)] == [0, 0, 0]


def confusion_one_by_one(found, truth, answers, threshold):
    """The rule of `box_confusion`, picture by picture and box by box."""
    matrix = np.zeros((K + 1, K + 1), dtype=int)
    for i, (f, t) in enumerate(zip(found, truth, strict=True)):
        match = answers.match[answers.found.rows(i)].tolist()
        start = int(answers.true.offsets[i])
        said = [m for m in range(len(f)) if float(f.scores[m]) >= threshold and match[m] != IGNORED]
        free = set(range(len(t)))
        for m in said:
            if match[m] >= 0:
                free.remove(match[m] - start)
                matrix[f.labels[m], f.labels[m]] += 1
        for m in sorted((m for m in said if match[m] < 0), key=lambda m: -float(f.scores[m])):
            best, best_iou = None, 0.5
            for j in sorted(free):
                shared, a, b = overlap(f.xyxy[m].tolist(), t.xyxy[j].tolist())
                if shared / (a + b - shared) >= best_iou:
                    best, best_iou = j, shared / (a + b - shared)
            matrix[K if best is None else t.labels[best], f.labels[m]] += 1
            free.discard(best)
        for j in free:
            matrix[t.labels[j], K] += 1
    return matrix


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_the_confusion_matrix_is_that_of_one_box_after_the_other(threshold):
    found, truth, crowd = random_pictures(80, K=K, most=12, seed=2)
    answers = d.BoxAnswers.of(found, truth, num_classes=K, crowd=crowd)
    matrix = r.box_confusion(answers, threshold)
    assert (matrix == confusion_one_by_one(found, truth, answers, threshold)).all()
    assert (matrix[:K].sum(axis=1) == answers.boxes).all()
    assert (matrix[:, :K].sum(axis=0) == np.bincount(answers.found.label[answers.said(threshold)], minlength=K)).all()
    assert matrix[:K, :K].trace() < matrix[:K, :K].sum()


def test_the_worst_pictures_have_most_mistakes_and_say_what_to_draw():
    truth = [things((0, 0)), things((0, 0), (100, 1)), things((0, 1)), things()]
    found = [boxes((0, 0, 0.9)), boxes((200, 0, 0.6), (2, 0, 0.8), (300, 0, 0.1)), boxes((0, 0, 0.7)), boxes((0, 0, 0.9))]
    crowd = [Boxes.none(), Boxes.none(), Boxes.none(), things((0, 0))]  # what is found there is no mistake
    answers = d.BoxAnswers.of(found, truth, num_classes=2, crowd=crowd)
    worst = r.worst_pictures(answers, 0.5)
    assert [(c.picture, c.mistakes) for c in worst] == [(2, 2), (1, 2)]  # of equal ones that with nothing right comes first
    case = worst[1]
    assert case.missed.tolist() == [False, True]
    assert case.right.tolist() == [True, False]
    assert case.found.scores.tolist() == pytest.approx([0.8, 0.6])
    assert torch.equal(case.truth.xyxy, truth[1].xyxy)
    assert len(r.box_case(answers, 3, 0.5).crowd) == 1
    assert [c.picture for c in r.worst_pictures(answers, 0.5, most=1)] == [2]


def test_pictures_without_any_box_are_no_mistake():
    answers = d.BoxAnswers.of([Boxes.none()], [Boxes.none()], num_classes=2)
    curves = d.box_curves(answers)
    assert curves.best_threshold == 0.5
    assert r.box_results(answers, curves, 0.5)["f1"] is None
    assert r.box_confusion(answers, 0.5).sum() == 0
    assert r.worst_pictures(answers, 0.5) == []
