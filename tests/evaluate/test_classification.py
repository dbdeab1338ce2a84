import numpy as np
import pytest
import sklearn.metrics as reference
import torch

from visiontune.evaluate import classification as c
from visiontune.evaluate.calibration import best_thresholds
from visiontune.metrics import classification_metrics


def single(n=500, K=7, absent=(), scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([k for k in range(K) if k not in absent])
    labels = there[torch.randint(len(there), (n,), generator=generator)]
    logits = torch.randn(n, K, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return c.Answers(logits * scale, labels)


def multi(n=400, seed=1):
    """Six classes; nothing is of the last."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, 6, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.05, 0.6, 0.0])).to(torch.uint8)
    return c.Answers(2 * torch.randn(n, 6, generator=generator) + 2 * targets - 1.5, targets)


@pytest.mark.parametrize("absent", [(), (2, 5)])
def test_the_numbers_of_one_label_a_picture_are_those_of_training_and_of_scikit_learn(absent):
    answers = single(absent=absent)
    classes = c.class_results(answers)
    found = c.results(answers, classes)
    metrics = classification_metrics(7)
    metrics.update(answers.logits, answers.truth)
    training = {k: v.item() for k, v in metrics.compute().items()}
    assert {k: found[k] for k in training} == pytest.approx(training, abs=3e-4)  # training counts AUROC in bins
    p, y = answers.logits.double().softmax(dim=1).numpy(), answers.truth.numpy()
    there = sorted(set(y))
    assert found["auroc"] == pytest.approx(np.mean([reference.roc_auc_score(y == k, p[:, k]) for k in there]))
    assert found["cross_entropy"] == pytest.approx(reference.log_loss(y, p, labels=range(7)), rel=1e-5)
    assert found["ece_scaled"] == pytest.approx(found["ece"])


def test_rows_of_classes_are_scikit_learns_and_absent_ones_are_of_nothing():
    answers = single(absent=(3,))
    rows, y, p = c.class_results(answers), answers.truth.numpy(), answers.logits.double().softmax(dim=1).numpy()
    precision, recall, f1, count = reference.precision_recall_fscore_support(y, answers.label, labels=range(7), zero_division=0)
    for k, row in enumerate(rows):
        if k == 3:
            assert (row.pictures, row.said > 0) == (0, True)
            assert np.isnan([row.precision, row.recall, row.f1, row.ap, row.auroc]).all()
            continue
        assert (row.precision, row.recall, row.f1, row.pictures) == pytest.approx((precision[k], recall[k], f1[k], count[k]))
        assert row.ap == pytest.approx(reference.average_precision_score(y == k, p[:, k]))
        assert row.auroc == pytest.approx(reference.roc_auc_score(y == k, p[:, k]))
        assert np.isnan(row.threshold)


@pytest.mark.parametrize("make", [single, multi])
def test_no_number_is_made_of_scores_that_are_none(make):
    good = make()
    logits = good.logits.clone()
    logits[5] = float("nan")
    answers = c.Answers(logits, good.truth)
    assert answers.words_on_lost.startswith(f"the scores of 1 picture of {len(logits)} are not finite numbers")
    assert good.words_on_lost == ""
    assert c.fitted(answers) is answers
    rows = c.class_results(answers)
    assert np.isnan([[row.precision, row.recall, row.f1, row.ap, row.auroc] for row in rows]).all()
    found = c.results(answers, rows)
    assert {k for k, v in found.items() if not np.isnan(v)} <= {"temperature"}
    assert np.isnan(c.calibration(answers).error)
    for right in (True, False):
        cases = c.certain_cases(answers, right=right, most=1000)
        assert 5 not in [case.picture for case in cases]
        assert cases
    if answers.labels == "single":
        assert sum(cell.pictures for cell in c.confusions(answers)) == len(logits) - 1
        assert sum(row.said for row in rows) == len(logits) - 1


def test_several_labels_a_picture_are_measured_at_one_half_and_at_the_thresholds():
    answers = c.fitted(multi())
    rows = c.class_results(answers)
    found, y, p = c.results(answers, rows), answers.truth.numpy(), answers.scores
    some = slice(0, 5)
    assert found["macro_ap"] == pytest.approx(reference.average_precision_score(y[:, some], p[:, some], average="macro"))
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y[:, some], p[:, some], average="macro"))
    for name, said in (("", p >= 0.5), ("_thresholds", p >= answers.thresholds)):
        assert found["micro_f1" + name] == pytest.approx(reference.f1_score(y, said, average="micro"))
        assert found["macro_f1" + name] == pytest.approx(reference.f1_score(y[:, some], said[:, some], average="macro"))
    assert found["macro_f1_thresholds"] > found["macro_f1"]
    assert [r.threshold for r in rows] == best_thresholds(p, y).tolist()
    assert rows[5].threshold == 0.5
    assert np.isnan(rows[5].f1)


def test_confusions_are_scikit_learns_matrix_without_its_zeros():
    answers = single()
    matrix = np.zeros((7, 7), dtype=int)
    shares = np.zeros((7, 7))
    for cell in c.confusions(answers):
        matrix[cell.truth, cell.label], shares[cell.truth, cell.label] = cell.pictures, cell.share
        assert cell.pictures > 0
    y = answers.truth.numpy()
    assert (matrix == reference.confusion_matrix(y, answers.label)).all()
    assert np.allclose(shares, reference.confusion_matrix(y, answers.label, normalize="true"))
    np.fill_diagonal(matrix, 0)
    worst = c.most_confused(c.confusions(answers), 3)
    assert [w.pictures for w in worst] == sorted(matrix.ravel(), reverse=True)[:3]
    assert all(w.truth != w.label for w in worst)


def test_the_most_certain_mistakes_are_the_wrong_answers_with_the_highest_scores():
    answers = c.fitted(single())
    cases = c.certain_cases(answers, right=False, most=12)
    scores, wrong = answers.score, answers.label != answers.truth.numpy()
    assert [x.score for x in cases] == sorted(scores[wrong], reverse=True)[:12]
    assert all(wrong[x.picture] and x.label == answers.label[x.picture] for x in cases)
    assert c.certain_cases(answers, right=True, most=1)[0].score == scores[~wrong].max()


def test_scores_that_fp32_calls_1_are_still_put_in_order():
    answers = c.Answers(torch.tensor([[20.0, 0.0], [22.0, 0.0], [21.0, 0.0]]), torch.tensor([1, 1, 1]))
    assert [x.picture for x in c.certain_cases(answers, right=False, most=3)] == [1, 2, 0]


def test_of_several_labels_a_certain_mistake_is_a_yes_or_a_no():
    logits = torch.tensor([[4.0, 5.0], [-6.0, 2.0], [3.0, -2.0], [-1.0, -7.0]])
    answers = c.Answers(logits, torch.tensor([[0, 0], [1, 1], [1, 0], [1, 0]], dtype=torch.uint8))

    def cases(**which):
        return [(x.picture, x.label, round(x.score, 3)) for x in c.certain_cases(answers, most=5, **which)]

    assert cases(right=False, said=True) == [(0, 1, 0.993)]  # one a picture
    assert cases(right=False, said=False) == [(1, 0, 0.002), (3, 0, 0.269)]
    assert cases(right=True, said=True) == [(2, 0, 0.953), (1, 1, 0.881)]
    assert cases(right=True, said=False) == [(3, 1, 0.001), (2, 1, 0.119)]


def test_fitting_changes_no_answer_and_lowers_the_loss():
    before = single(scale=8.0)
    after = c.fitted(before)
    assert after.temperature > 2
    assert (after.label == before.label).all()
    assert (after.score < before.score + 1e-12).all()
    assert c.results(after, c.class_results(after))["ece_scaled"] < c.results(before, c.class_results(before))["ece"]
