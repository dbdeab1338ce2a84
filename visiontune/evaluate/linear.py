"""Linear probe: logistic regression on frozen embeddings, its regularisation chosen on a part of the training pictures.

Kornblith et al. 2019 (arXiv 1805.08974), section 3 and appendix: L-BFGS, regularisation swept on a held-out part.

N training and M test pictures, D width, K classes.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.evaluate.logistic import LogisticRegression

# From strong to weak, half a power of ten apart. Standardised embeddings of 1,000 dimensions and some thousand pictures find their best
# between 0.001 and 0.1.
STRENGTHS = tuple(10 ** (e / 2) for e in range(-8, 5))
# The sweep ends where so many values in a row were no better: weaker penalties only fit the training pictures closer.
PATIENCE = 3


@dataclass(frozen=True)
class LinearProbe:
    """Attributes:
    top1: accuracy on the test pictures, in [0, 1].
    C: inverse regularisation that was chosen.
    logits: `(M, K)` of the test pictures.
    """

    top1: float
    C: float
    logits: Tensor = field(compare=False, repr=False)


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, seed: int = 0, most: int = 20_000) -> LinearProbe:
    """Fit on `train` `(N, D)`, score on `test` `(M, D)`; deterministic for a seed.

    Embeddings are standardised by the training pictures' mean and spread. `C` is chosen by accuracy on a held-out fifth of each class
    (of equal ones the one with the smaller loss), which then joins the fit again; 1 where fewer than two classes have two pictures or
    more, of which some can be held out. Beyond `most` training pictures a random part of that size is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)[:most]
    x, y = train.float()[order], labels[order]
    x, z = standardise(x, test.float())
    K = int(max(labels.max(), test_labels.max())) + 1
    model = LogisticRegression(x, y, K)
    C = 1.0
    held = held_out(y)
    if len(held):
        C = choose(model, held)
    logits = model.fit(C).logits(z)
    return LinearProbe(top1=float((logits.argmax(dim=1) == test_labels).double().mean()), C=C, logits=logits)


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the mean and spread of `train` in each dimension."""
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0) + 1e-6
    return (train - mean) / std, (test - mean) / std


def held_out(y: Tensor) -> Tensor:
    """The first fifth of each class's rows, at least one; of a single picture, which cannot be on both sides, none.

    None at all where they would be of one class: whatever answers with that class would be the best.
    """
    parts = [rows for k in y.unique() if len(rows := torch.nonzero(y == k).flatten()) > 1]
    if len(parts) < 2:
        return y.new_empty(0)
    return torch.cat([rows[: max(1, len(rows) // 5)] for rows in parts])


def choose(model: LogisticRegression, held: Tensor) -> float:
    """The `C` of which a fit on the other rows labels the held-out ones best."""
    keep = torch.ones(len(model.y), dtype=torch.bool)
    keep[held] = False
    rows, truth = torch.nonzero(keep).flatten(), model.y[held]
    best, chosen, worse = (-1.0, 0.0), 1.0, 0
    for C in STRENGTHS:
        logits = model.fit(C, rows, tolerance=1e-4).logits_of(held)  # close enough to choose by
        score = (float((logits.argmax(dim=1) == truth).double().mean()), -float(F.cross_entropy(logits, truth)))
        if score > best:
            best, chosen, worse = score, C, 0
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return chosen
