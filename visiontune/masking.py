"""Which patches are hidden. Pure functions, made on the device, sizes constant from step to step.

A mask is True where hidden. B pictures, N patches, K visible patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """One choice of visible patches for a batch.

    Attributes:
        visible: indices of visible patches, `(B, K)`, int64.
        hidden: indices of hidden patches, `(B, N - K)`, int64.
    """

    visible: Tensor
    hidden: Tensor

    @property
    def mask(self) -> Tensor:
        """`(B, N)`, bool, True where hidden."""
        B, N = self.visible.shape[0], self.visible.shape[1] + self.hidden.shape[1]
        return torch.zeros(B, N, dtype=torch.bool, device=self.visible.device).scatter_(1, self.hidden, True)


def random_masking(
    B: int, N: int, ratio: float, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Masking:
    """Hide a random `ratio` of `N` patches in each of `B` pictures, the same number in every picture.

    Source: He et al. 2022 (arXiv 2111.06377), section 3, "Masking": uniform sampling without replacement; the number of visible
    patches is `int(N * (1 - ratio))` as in the authors' code, but never below one.

    Raises:
        ValueError: if `ratio` is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"Expected argument `ratio` to be in [0, 1) but got {ratio}.")
    K = max(1, int(N * (1 - ratio)))
    order = torch.rand(B, N, device=device, generator=generator).argsort(dim=1)
    return Masking(visible=order[:, :K], hidden=order[:, K:])


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """`(B, N, D)`, `(B, K)` -> the tokens at `indices`, `(B, K, D)`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
