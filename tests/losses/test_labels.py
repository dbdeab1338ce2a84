import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from visiontune.losses import balanced_positive_weights, balanced_weights, label_loss, log_priors, multi_label_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 0])


def test_smoothed_and_soft_targets_are_timms(batch):
    logits, labels = batch
    assert label_loss(logits, labels, smoothing=0.1).item() == pytest.approx(LabelSmoothingCrossEntropy(0.1)(logits, labels).item())
    shares = torch.rand(6, 4).softmax(dim=1)
    assert label_loss(logits, shares).item() == pytest.approx(SoftTargetCrossEntropy()(logits, shares).item())


def test_several_labels_are_timms(batch):
    targets = (torch.rand(6, 4) > 0.5).float()
    # timm smooths 1 to `1 - s + s / K` and 0 to `s / K`: at K = 2 that is ours
    logits, two = batch[0][:, :2], targets[:, :2]
    expected = F.binary_cross_entropy_with_logits(logits, two * 0.8 + 0.1)
    assert multi_label_loss(logits, two, smoothing=0.2).item() == pytest.approx(expected.item())
    assert multi_label_loss(batch[0], targets).item() == pytest.approx(BinaryCrossEntropy(smoothing=0.0)(batch[0], targets).item())


def test_a_label_and_its_one_hot_share_are_the_same_with_every_option(batch):
    logits, labels = batch
    options = {"smoothing": 0.1, "weights": torch.tensor([0.5, 1.0, 2.0, 3.0]), "adjustment": torch.tensor([0.0, -1.0, -2.0, -3.0])}
    shares = F.one_hot(labels, 4).float()
    assert label_loss(logits, labels, **options).item() == pytest.approx(label_loss(logits, shares, **options).item())


def test_balanced_weights_are_scikit_learns_and_make_every_class_count_the_same(batch):
    labels = np.array([0] * 6 + [1] * 3 + [2])
    counts = np.bincount(labels).tolist()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(counts).tolist() == pytest.approx(expected.tolist())
    loss = label_loss(torch.zeros(10, 3), torch.from_numpy(labels), weights=balanced_weights(counts))
    assert loss.item() == pytest.approx(np.log(3))  # all the same: as without weights
    positive = balanced_positive_weights(counts, 10)
    assert (positive * torch.tensor(counts)).tolist() == pytest.approx([4, 7, 9])  # what those without the class count


def test_adjusted_logits_learn_scores_that_do_not_know_how_frequent_a_class_is():
    """Two classes that look the same, nine to one: plain training scores the frequent one higher by log 9, adjusted training neither."""
    labels = torch.tensor([0] * 9 + [1])
    for adjustment, expected in ((None, np.log(9)), (log_priors([9, 1]), 0.0)):
        logits = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=2.0)
        for _ in range(300):
            optimizer.zero_grad()
            label_loss(logits.expand(10, 2), labels, adjustment=adjustment).backward()
            optimizer.step()
        assert (logits[0] - logits[1]).item() == pytest.approx(expected, abs=1e-3)


def test_gradients():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    # the loss is computed in fp32 on purpose; its gradient is softmax - target
    label_loss(logits, torch.tensor([0, 1, 2])).backward()
    expected = (logits.softmax(dim=1) - torch.eye(4, dtype=torch.float64)[:3]) / 3
    assert torch.allclose(logits.grad, expected, atol=1e-6)
