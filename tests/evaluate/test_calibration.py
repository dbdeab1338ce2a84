import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from visiontune.evaluate.calibration import Cuts, best_thresholds, fit_temperature, reliability
from visiontune.metrics import classification_metrics


def answers(n=600, classes=7, scale=3.0, seed=0, margin=1.0):
    """Logits that know a little, and say it with too much certainty where `scale` is large."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += margin
    return logits * scale, labels


def error_by_hand(scores, right, bins=15):
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for b in range(bins):
        inside = (scores > b / bins) & (scores <= (b + 1) / bins)
        if inside.any():
            total += inside.sum() / len(scores) * abs(right[inside].mean() - scores[inside].mean())
    return total


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_the_calibration_error_is_the_papers_and_that_of_training(scale):
    logits, labels = answers(scale=scale)
    score, said = logits.softmax(dim=1).max(dim=1)
    right = (said == labels).numpy()
    found = reliability(score.numpy(), right)
    assert found.error == pytest.approx(error_by_hand(score.numpy(), right), abs=1e-7)
    metrics = classification_metrics(7)
    metrics.update(logits, labels)
    assert found.error == pytest.approx(metrics.compute()["ece"].item(), abs=1e-6)
    assert found.count.sum() == 600
    assert np.isnan(found.score[found.count == 0]).all()


def test_scores_of_0_and_1_lie_in_the_outermost_bins():
    found = reliability(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert found.count[[0, -1]].tolist() == [1, 2]
    assert found.error == pytest.approx(2 / 3 * 0.5)


@pytest.mark.parametrize("scale", [0.02, 0.5, 1.0, 4.0, 60.0])
def test_the_temperature_is_the_most_likely_one_and_no_answer_changes(scale):
    logits, labels = answers(scale=scale)
    found = fit_temperature(logits, labels)

    def loss(log_T):
        return F.cross_entropy(logits.double() / np.exp(log_T), labels).item()

    expected = np.clip(np.exp(minimize_scalar(loss, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}).x), 0.05, 100)
    assert found == pytest.approx(expected, rel=1e-3)
    assert loss(np.log(found)) <= loss(0.0)
    assert torch.equal((logits / found).argmax(dim=1), logits.argmax(dim=1))


def test_logits_of_half_the_size_ask_for_half_the_temperature():
    logits, labels = answers()
    assert fit_temperature(logits / 2, labels) == pytest.approx(fit_temperature(logits, labels) / 2, abs=1e-4)


def test_calibrated_scores_ask_for_no_temperature_and_temperature_mends_the_others():
    """Labels that are drawn from the softmax itself are what its scores say."""
    logits = 2 * torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.03)
    T = fit_temperature(5 * logits, labels)
    assert pytest.approx(5.0, rel=0.03) == T

    def error(x):
        score, said = x.softmax(dim=1).max(dim=1)
        return reliability(score.numpy(), (said == labels).numpy()).error

    assert error(5 * logits) > 0.15
    assert error(5 * logits / T) < 0.02


def test_where_every_picture_is_right_scores_stay_as_they_are():
    logits = torch.eye(4)
    assert fit_temperature(logits, torch.arange(4)) == 1.0
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 1.0


def test_many_pictures_are_fitted_in_parts_as_if_at_once():
    logits, labels = answers(n=9000)
    copies = fit_temperature(logits.repeat(2, 1), labels.repeat(2))
    assert fit_temperature(logits, labels) == pytest.approx(copies, abs=2e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_of_a_class_is_scikit_learns(ties):
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.2
    scores = np.clip(rng.normal(0.4, 0.2, 300) + 0.2 * truth, 0, 1)
    scores = np.round(scores, 1) if ties else scores
    cuts = Cuts.of(scores, truth)
    assert cuts.average_precision == pytest.approx(average_precision_score(truth, scores))
    assert cuts.auroc == pytest.approx(roc_auc_score(truth, scores))
    precision, recall, _ = precision_recall_curve(truth, scores)
    best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    said = scores >= cuts.best_threshold
    assert 2 * (said & truth).sum() / (said.sum() + truth.sum()) == pytest.approx(best)


def test_a_class_without_pictures_or_with_all_of_them():
    none, every = (Cuts.of(np.array([0.1, 0.7, 0.7]), np.full(3, has)) for has in (False, True))
    assert np.isnan([none.average_precision, none.auroc, every.auroc]).all()
    assert (none.best_threshold, every.average_precision) == (0.5, 1.0)
    assert 0 < every.best_threshold < 0.1


def test_thresholds_lie_between_scores_and_are_what_is_saved():
    scores = np.array([[0.9, 2e-7], [0.6, 1e-7], [0.2, 4e-8]])
    found = best_thresholds(scores, np.array([[1, 1], [1, 0], [0, 0]]))
    assert found.tolist() == pytest.approx([0.4, 1.5e-7])
    assert ((scores >= found) == [[True, True], [True, False], [False, False]]).all()
    assert found.tolist() == [float(f"{t:.6g}") for t in found]
