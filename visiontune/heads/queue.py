"""Embeddings of the last batches, oldest first out. MoCo, He et al. 2019 (arXiv 1911.05722), section 3.2.

B pictures, L places, D width.
"""

import torch
from torch import Tensor, nn

from visiontune.losses import gather_with_grad


class Queue(nn.Module):
    """A ring of the last L embeddings of all processes, the same on each; part of checkpoints.

    Attributes:
        rows: `(L, D)`, random directions until they are replaced.
        filled: how many have been written, a tensor on the device, so that no step waits.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", nn.functional.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Write the rows `(B, D)` of every process over the oldest ones; of more than L, the last L."""
        rows = gather_with_grad(rows.detach())[-len(self.rows) :]
        at = (self.filled + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[at] = rows.to(self.rows.dtype)
        self.filled += len(rows)
