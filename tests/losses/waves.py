"""Rows that anyone can type, for values from elsewhere."""

import torch


def waves(shift: float = 0.0) -> torch.Tensor:
    """`(8, 16)` in float64: sin(0.37 i j), i = 1 to 8, j = 1 to 16, or shifted by `shift` * cos(0.9 i + 0.6 j)."""
    i, j = torch.meshgrid(torch.arange(1, 9, dtype=torch.float64), torch.arange(1, 17, dtype=torch.float64), indexing="ij")
    return torch.sin(0.37 * i * j + shift * torch.cos(0.9 * i + 0.6 * j))
