import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from tests.evaluate.test_evaluate import clusters
from visiontune.evaluate import few_labels
from visiontune.evaluate.few_labels import PENALTIES, Ridge


@pytest.mark.parametrize("n", [10, 60])  # fewer pictures than the 16 dimensions, and more
def test_the_closed_form_is_scikit_learns_ridge(n):
    x, y = clusters(n)
    x, z = x.double(), clusters(30, seed=5)[0].double()
    ours = Ridge(x, y, 4, penalty=0.7)
    targets = np.where(np.eye(4)[y.numpy()] > 0, 1.0, -1.0)
    theirs = Reference(alpha=0.7, solver="cholesky").fit(x.numpy(), targets)
    assert ours.scores(z).numpy() == pytest.approx(theirs.predict(z.numpy()), abs=1e-9)
    classifier = RidgeClassifier(alpha=0.7).fit(x.numpy(), y.numpy())
    assert (ours.scores(z).argmax(dim=1).numpy() == classifier.predict(z.numpy())).all()


@pytest.mark.parametrize("n", [10, 60])
def test_leave_one_out_in_closed_form_is_leaving_out_one_after_another(n):
    x, y = clusters(n, spread=1.5)
    x = x.double()
    ours = Ridge(x, y, 4, penalty=0.3).loo
    for i in range(n):
        rows = torch.arange(n) != i
        theirs = Reference(alpha=0.3).fit(x[rows].numpy(), np.where(np.eye(4)[y[rows].numpy()] > 0, 1.0, -1.0))
        assert ours[i].numpy() == pytest.approx(theirs.predict(x[i : i + 1].numpy())[0], abs=1e-8)


def test_the_penalty_is_the_one_that_scikit_learn_chooses():
    x, y = clusters(40, spread=2.0)
    x = x.double()
    unit = float((x - x.mean(dim=0)).square().sum() / len(x))
    ours = Ridge(x, y, 4)
    theirs = RidgeClassifierCV(alphas=[p * unit for p in PENALTIES]).fit(x.numpy(), y.numpy())
    assert ours.penalty == pytest.approx(theirs.alpha_)


def test_more_labels_help_draws_are_nested_and_the_same_seed_gives_the_same_numbers():
    x, y = clusters(400, spread=2.5)
    z, truth = clusters(300, seed=1, spread=2.5)
    found = few_labels(x, y, z, truth, shots=(1, 5, 20), draws=8, seed=4)
    assert [f.shots for f in found] == [1, 5, 20]
    assert all(len(f.top1) == 8 for f in found)
    assert found[0].mean < found[1].mean < found[2].mean
    assert found[0].spread == pytest.approx(np.std(found[0].top1, ddof=1))
    assert found == few_labels(x, y, z, truth, shots=(1, 5, 20), draws=8, seed=4)
    assert found != few_labels(x, y, z, truth, shots=(1, 5, 20), draws=8, seed=5)
    assert found[:1] == few_labels(x, y, z, truth, shots=(1,), draws=8, seed=4)


def test_more_shots_than_the_smallest_class_has_pictures_are_left_out():
    x, y = clusters(40)
    fewest = int(torch.bincount(y).min())
    assert [f.shots for f in few_labels(x, y, x, y, shots=(fewest, fewest + 1), draws=1)] == [fewest]
