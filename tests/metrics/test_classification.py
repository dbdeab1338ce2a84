import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import torchmetrics

from visiontune.errors import UserError
from visiontune.metrics import Mean, classification_metrics, log_odds
from visiontune.metrics.classification import CalibrationError


def scores(pictures=400, classes=7, absent=(), scale=2.0, seed=0):
    """Logits that know a little, and labels without some classes."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([k for k in range(classes) if k not in absent])
    labels = allowed[torch.randint(len(allowed), (pictures,), generator=generator)]
    logits = torch.randn(pictures, classes, generator=generator)
    logits[torch.arange(pictures), labels] += 1.0
    return logits * scale, labels


def measured(logits, truth, *, parts=3, **more):
    metrics = classification_metrics(logits.shape[1], prefix="val/", **more)
    for x, y in zip(logits.tensor_split(parts), truth.tensor_split(parts), strict=True):
        metrics.update(x, y)
    return {name.removeprefix("val/"): value.item() for name, value in metrics.compute().items()}


def test_single_label_metrics_are_scikit_learns():
    logits, labels = scores()
    found, p = measured(logits, labels), logits.softmax(dim=1).numpy()
    y, said = labels.numpy(), logits.argmax(dim=1).numpy()
    assert set(found) == {"top1", "top5", "balanced_accuracy", "macro_f1", "auroc", "ece"}
    assert found["top1"] == pytest.approx(reference.accuracy_score(y, said), abs=1e-6)
    assert found["top5"] == pytest.approx(reference.top_k_accuracy_score(y, p, k=5), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, said), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, said, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=2e-4)


def test_the_calibration_error_is_torchmetrics():
    logits, labels = scores(scale=4.0)
    expected = torchmetrics.CalibrationError("multiclass", num_classes=7, n_bins=15)(logits, labels)
    assert measured(logits, labels)["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_classes_that_the_truth_does_not_hold_are_left_out_of_means():
    logits, labels = scores(absent=(2, 5))
    found, y, said = measured(logits, labels), labels.numpy(), logits.argmax(dim=1).numpy()
    assert set(said) == set(range(7))  # they are said, though never true
    there = sorted(set(y))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, said, labels=there, average="macro"), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(reference.recall_score(y, said, labels=there, average="macro"), abs=1e-6)
    p = logits.softmax(dim=1).numpy()
    assert found["auroc"] == pytest.approx(np.mean([reference.roc_auc_score(y == k, p[:, k]) for k in there]), abs=2e-4)


def test_multi_label_metrics_are_scikit_learns():
    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(400, 6, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.05, 0.6, 0.0])).to(torch.uint8)
    logits = 2 * torch.randn(400, 6, generator=generator) + 2 * targets - 1
    found, y = measured(logits, targets.float(), labels="multi"), targets.numpy()
    p, said, there = logits.sigmoid().numpy(), (logits > 0).numpy(), slice(0, 5)  # nothing is of the sixth class
    assert set(found) == {"macro_ap", "micro_f1", "macro_f1", "auroc", "exact"}
    assert found["macro_ap"] == pytest.approx(reference.average_precision_score(y[:, there], p[:, there], average="macro"), abs=2e-3)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y[:, there], p[:, there], average="macro"), abs=2e-4)
    assert found["micro_f1"] == pytest.approx(reference.f1_score(y, said, average="micro"), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y[:, there], said[:, there], average="macro"), abs=1e-6)
    assert found["exact"] == pytest.approx(reference.accuracy_score(y, said), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 300])
def test_few_and_many_classes(classes):
    logits, labels = scores(pictures=2000, classes=classes, scale=3.0)
    p = logits.softmax(dim=1).double()
    p = (p / p.sum(dim=1, keepdim=True)).numpy()
    expected = np.mean([reference.roc_auc_score(labels.numpy() == k, p[:, k]) for k in labels.unique().tolist()])
    found = measured(logits, labels)
    assert found["auroc"] == pytest.approx(expected, abs=1e-3)
    assert ("top5" in found) == (classes > 5)


def test_a_batch_more_or_less_and_another_process_change_nothing():
    logits, labels = scores()
    whole = measured(logits, labels, parts=1)
    assert measured(logits, labels, parts=9) == pytest.approx(whole, abs=1e-6)
    halves = [classification_metrics(7) for _ in range(2)]
    for metrics, x, y in zip(halves, logits.tensor_split(2), labels.tensor_split(2), strict=True):
        metrics.update(x, y)
    for name, metric in halves[0].items():
        other = halves[1][name]
        for state in metric.metric_state:  # as they are reduced over processes
            setattr(metric, state, getattr(metric, state) + getattr(other, state))
        assert metric.compute().item() == pytest.approx(whole[name], abs=1e-6)


def test_states_do_not_grow_with_the_pictures():
    metrics = classification_metrics(10)
    sizes = set()
    for _ in range(3):
        metrics.update(*scores(pictures=50, classes=10))
        sizes.add(sum(state.numel() for m in metrics.values() for state in m.metric_state.values()))
    assert len(sizes) == 1


def test_scores_that_fp32_calls_certain_are_still_told_apart():
    logits = torch.tensor([[40.0, 0.0], [60.0, 0.0], [0.0, 80.0]])
    assert (logits.softmax(dim=1) == 1).any(dim=1).all()
    assert torch.allclose(log_odds(logits), torch.tensor([[40.0, -40.0], [60.0, -60.0], [-80.0, 80.0]]))
    assert measured(torch.tensor([[40.0, 0.0], [60.0, 0.0]]), torch.tensor([1, 0]), parts=1)["auroc"] == 1.0


def test_half_precision_logits_are_measured_in_full():
    logits, labels = scores()
    assert measured(logits.bfloat16(), labels) == pytest.approx(measured(logits.bfloat16().float(), labels), abs=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("value", "single", "multi"), [("nan", True, True), ("inf", True, False), ("-inf", False, False)])
def test_no_number_is_made_of_scores_that_are_none(value, single, multi, parts):
    """Of one label the softmax of an infinite logit is nan, of several its sigmoid is 1; -inf is a score of 0."""
    logits, labels = scores(pictures=20)
    logits[3, 2] = float(value)
    found = measured(logits, labels, parts=parts)
    assert {name: np.isnan(v) for name, v in found.items()} == dict.fromkeys(found, single)
    found = measured(logits, torch.nn.functional.one_hot(labels, 7), labels="multi", parts=parts)
    assert {name: np.isnan(v) for name, v in found.items()} == dict.fromkeys(found, multi)


def test_the_mean_of_a_loss_is_over_pictures_and_nan_where_one_is():
    mean = Mean()
    for value, pictures in ((1.0, 3), (5.0, 1)):
        mean.update(torch.tensor(value), pictures)
    assert mean.compute().item() == 2.0
    mean.update(torch.tensor(float("nan")), 4)
    assert mean.compute().isnan()


def test_unknown_labels_are_refused():
    with pytest.raises(UserError, match="labels: got 'many'; allowed: single, multi"):
        classification_metrics(3, "many")


def test_sums_stay_whole_numbers_apart_in_a_module_of_half_precision():
    holder = torch.nn.Module()
    holder.metrics = torch.nn.ModuleList([Mean(), CalibrationError()])
    holder.to(dtype=torch.bfloat16)
    mean, error = holder.metrics
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    for _ in range(500):
        mean.update(torch.tensor(0.7, dtype=torch.bfloat16), 16)
        error.update(logits, torch.tensor([0, 0]))
    assert float(mean.compute()) == pytest.approx(0.7, abs=0.003)
    expected = CalibrationError()
    expected.update(logits, torch.tensor([0, 0]))
    assert float(error.compute()) == pytest.approx(float(expected.compute()), abs=1e-5)
