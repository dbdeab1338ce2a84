"""Linear probe: logistic regression on frozen embeddings, its regularisation chosen on a part of the training pictures.

Kornblith et al. 2019 (arXiv 1805.08974), section 3 and appendix: L-BFGS, regularisation swept on a held-out part.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """Attributes:
    top1: accuracy on the test pictures, in [0, 1].
    C: inverse regularisation that was chosen.
    """

    top1: float
    C: float


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, seed: int = 0, most: int = 20_000) -> LinearProbe:
    """Fit on `train` `(N, D)`, score on `test` `(M, D)`; deterministic for a seed.

    Embeddings are standardised by the training part's mean and spread. `C` is chosen from 0.001 to 10 on a held-out fifth, which
    then joins the fit again. Beyond `most` training pictures a random part of that size is taken.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = train.float().numpy(), labels.numpy()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))[:most]
    x, y = x[order], y[order]
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, z = (x - mean) / std, (test.float().numpy() - mean) / std
    # Weak regularisation is slow to fit from zero: each fit starts from the one before.
    model = LogisticRegression(max_iter=100, warm_start=True)

    def fit(C: float, rows: slice) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit of iterations is a choice here, not a failure
            return model.set_params(C=C).fit(x[rows], y[rows])

    held = max(1, len(x) // 5)
    best, best_score = 1.0, -1.0
    if len(np.unique(y[held:])) == len(np.unique(y)) > 1:
        for C in (0.001, 0.01, 0.1, 1.0, 10.0):
            score = fit(C, slice(held, None)).score(x[:held], y[:held])
            if score > best_score:
                best, best_score = C, score
    return LinearProbe(top1=float(fit(best, slice(None)).score(z, test_labels.numpy())), C=best)
