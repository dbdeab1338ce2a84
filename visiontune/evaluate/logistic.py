"""Logistic regression with an L2 penalty, fitted for several strengths of it in a row.

The objective is scikit-learn's, `C * sum of losses + |W|^2 / 2` with a free intercept. What takes a solver hundreds of iterations is the
spread of an embedding's directions: the largest has a thousand times the variance of the smallest. So the embedding is turned into its
principal directions once, which leaves the penalty as it is, and each direction is scaled by the largest curvature that the loss can
have along it (Böhning 1992, "Multinomial logistic regression algorithm": half the covariance). L-BFGS then begins where every
direction is about as steep, for any C.

N pictures, D width, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class LogisticRegression:
    """Fits on a set of embeddings, or on some rows of it.

    Args:
        x: `(N, D)`, float32 or float64, which is what is computed in.
        y: `(N,)` int64 classes, or `(N, K)` targets in [0, 1], of which each column is a regression of its own (one against the rest).
        num_classes: K.

    Raises:
        ValueError: for shapes that do not belong together.
    """

    def __init__(self, x: Tensor, y: Tensor, num_classes: int) -> None:
        if x.ndim != 2 or len(y) != len(x) or (y.ndim == 2 and y.shape[1] != num_classes):
            raise ValueError(f"Expected `x` (N, D) and `y` (N,) or (N, {num_classes}) but got {tuple(x.shape)} and {tuple(y.shape)}.")
        self.single = y.ndim == 1
        self.y, self.K = y if self.single else y.to(x.dtype), num_classes
        self.centre = x.mean(dim=0)
        self.turn = principal_directions(x - self.centre)  # (D, R)
        self.z = (x - self.centre) @ self.turn  # (N, R)
        self.variance = self.z.square().mean(dim=0)
        self._w = x.new_zeros(num_classes, self.z.shape[1] + 1)  # the intercepts come last

    def fit(self, C: float, rows: Tensor | None = None, *, max_iter: int = 500, tolerance: float = 2e-5) -> "LogisticRegression":
        """Minimise the objective, from where the last fit ended.

        Args:
            C: inverse strength of the penalty.
            rows: numbers of the pictures to fit on; default: all.
            max_iter: of L-BFGS.
            tolerance: largest entry of the scaled gradient of the mean loss.
        """
        z, y = (self.z, self.y) if rows is None else (self.z[rows], self.y[rows])
        N = len(z)
        curvature = 0.5 if self.single else 0.25
        scale = (curvature * self.variance + 1 / (C * N)).rsqrt()
        scale = torch.cat([scale, scale.new_tensor([curvature**-0.5])])
        v = (self._w / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [v], max_iter=max_iter, tolerance_grad=tolerance, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
        )

        @torch.no_grad()
        def objective() -> Tensor:
            w = v * scale
            # (K, N): products of a few long rows with the embeddings take a third of the time of those of long, narrow columns
            logits = w[:, :-1] @ z.T + w[:, -1:]
            if self.single:
                log_p = logits.log_softmax(dim=0)
                loss = -log_p.gather(0, y[None]).mean()
                error = log_p.exp_().scatter_add_(0, y[None], -torch.ones_like(log_p[:1]))
            else:
                loss = F.binary_cross_entropy_with_logits(logits, y.T) * self.K
                error = logits.sigmoid_() - y.T
            error /= N
            penalty = w[:, :-1] / (C * N)
            v.grad = torch.cat([error @ z + penalty, error.sum(dim=1, keepdim=True)], dim=1) * scale
            return loss + 0.5 * (penalty * w[:, :-1]).sum()

        step: Any = optimizer.step
        step(objective)
        self._w = (v * scale).detach()
        return self

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Coefficients `(K, D)` and intercepts `(K,)` for embeddings as they were given."""
        coefficients = self._w[:, :-1] @ self.turn.T
        return coefficients, self._w[:, -1] - coefficients @ self.centre

    def logits(self, x: Tensor) -> Tensor:
        """`(M, D)` -> `(M, K)`."""
        coefficients, intercepts = self.weights
        return x @ coefficients.T + intercepts

    def logits_of(self, rows: Tensor) -> Tensor:
        """Of pictures of the set itself, by their numbers."""
        return self.z[rows] @ self._w[:, :-1].T + self._w[:, -1]


def principal_directions(x: Tensor) -> Tensor:
    """An orthonormal basis `(D, R)` of the centred rows of `x` `(N, D)`, by falling variance; R is D, or less where N is."""
    N, D = x.shape
    if N >= D:  # all of them, so that turning loses nothing however exact the eigenvalues are
        # in float64: LAPACK does not converge in float32 on embeddings that hardly differ, as those of some random networks
        return torch.linalg.eigh((x.T @ x).double())[1].flip(1).to(x.dtype)
    variance, left = torch.linalg.eigh(x.double() @ x.double().T)
    kept = variance > variance[-1] * 1e-10
    return (x.double().T @ left[:, kept] / variance[kept].sqrt()).flip(1).to(x.dtype)
