import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference

from visiontune.evaluate.logistic import LogisticRegression, principal_directions


def embeddings(n=240, width=12, classes=5, seed=0):
    """Directions of very different variance, as embeddings have them, and classes that overlap."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = np.random.default_rng(1).normal(size=(classes, width))[y] + rng.normal(size=(n, width))
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(width, width)))[0]
    return torch.from_numpy(x @ turn * np.logspace(0, -3, width) @ turn.T + 3), torch.from_numpy(y)


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("n", [240, 9])  # more pictures than dimensions, and fewer
def test_classes_agree_with_scikit_learn(C, n):
    x, y = embeddings(n, classes=3)
    ours = LogisticRegression(x, y, 3).fit(C, max_iter=5000, tolerance=1e-9)
    theirs = Reference(C=C, solver="newton-cg", tol=1e-10, max_iter=100_000).fit(x.numpy(), y.numpy())
    coefficients, intercepts = ours.weights
    assert coefficients.numpy() == pytest.approx(theirs.coef_, abs=2e-5 * abs(theirs.coef_).max())
    z = embeddings(50, classes=3, seed=7)[0]
    assert ours.logits(z).softmax(dim=1).numpy() == pytest.approx(theirs.predict_proba(z.numpy()), abs=1e-5)
    assert intercepts.shape == (3,)


def test_several_labels_agree_with_scikit_learns_one_against_the_rest():
    x, y = embeddings(classes=3)
    targets = torch.stack([y == 0, y != 1, torch.arange(len(y)) % 2 == 0], dim=1)
    ours = LogisticRegression(x, targets, 3).fit(0.5, max_iter=5000, tolerance=1e-9)
    for k in range(3):
        theirs = Reference(C=0.5, solver="newton-cg", tol=1e-10, max_iter=100_000).fit(x.numpy(), targets[:, k].numpy())
        assert ours.weights[0][k].numpy() == pytest.approx(theirs.coef_[0], abs=1e-5)
        assert float(ours.weights[1][k]) == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_a_fit_on_some_rows_is_one_on_these_pictures_alone_and_does_not_depend_on_where_it_began():
    x, y = embeddings()
    rows = torch.arange(0, len(x), 2)
    whole = LogisticRegression(x, y, 5)
    for C in (100.0, 0.1):
        whole.fit(C, rows, max_iter=5000, tolerance=1e-9)
    alone = LogisticRegression(x[rows], y[rows], 5).fit(0.1, max_iter=5000, tolerance=1e-9)
    assert whole.logits(x).numpy() == pytest.approx(alone.logits(x).numpy(), abs=1e-4)
    assert torch.allclose(whole.logits_of(rows), whole.logits(x[rows]))


def test_in_single_precision_the_objective_is_as_low_as_scikit_learns():
    x, y = embeddings(2000, width=64)
    theirs = Reference(C=1.0, max_iter=10_000).fit(x.float().numpy(), y.numpy())

    def objective(w, b):
        return float(torch.nn.functional.cross_entropy(x @ w.T + b, y, reduction="sum") + 0.5 * w.square().sum())

    ours = LogisticRegression(x.float(), y, 5).fit(1.0).weights
    reference = objective(torch.from_numpy(theirs.coef_).double(), torch.from_numpy(theirs.intercept_).double())
    assert objective(*(w.double() for w in ours)) <= reference * (1 + 1e-5)


def test_principal_directions_are_an_orthonormal_basis_of_the_pictures():
    for n, width in ((50, 8), (6, 20)):
        x = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x -= x.mean(dim=0)
        turn = principal_directions(x)
        R = min(n - 1, width)
        assert torch.allclose(turn.T @ turn, torch.eye(R, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(x @ turn @ turn.T, x, atol=1e-9)
        assert (x @ turn).var(dim=0).diff().max() <= 1e-9  # the largest first


@pytest.mark.parametrize("seed", range(3))
def test_embeddings_that_hardly_differ_have_principal_directions_too(seed):
    """As of a network that loses the picture on the way: rounding is most of what is left, and float32 alone did not converge."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(512, generator=generator)
    x = common + 1e-8 * torch.randn(600, 1, generator=generator) * torch.rand(512, generator=generator)
    x = (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-6)
    turn = principal_directions(x - x.mean(dim=0))
    torch.testing.assert_close(turn.T @ turn, torch.eye(512), atol=1e-5, rtol=0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4,\)"):
        LogisticRegression(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), 2)
