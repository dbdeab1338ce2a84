"""Fixed positions of patches: what masked methods give a plain ViT that starts from random weights."""

from typing import Any

import torch
from torch import Tensor

from visiontune.errors import UserError


def sincos_positions(width: int, grid: tuple[int, int], prefix: int, *, what: str = "the backbone's width") -> Tensor:
    """Fixed two-dimensional sine-cosine embedding, `(1, prefix + h * w, width)`, zeros for the prefix tokens.

    The first half of the width encodes the column, the second the row, sines before cosines (the layout of the authors' code).

    Raises:
        UserError: if `width` is no multiple of 4.
    """
    if width % 4:
        raise UserError(f"{what}: got {width}; sine-cosine positions need a multiple of 4")
    h, w = grid
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    halves = []
    for place in (columns, rows):
        angle = place.reshape(-1, 1) * frequency
        halves += [angle.sin(), angle.cos()]
    table = torch.cat(halves, dim=1).float()
    return torch.cat([torch.zeros(prefix, width), table]).unsqueeze(0)


def set_sincos_positions(vit: Any, grid: tuple[int, int]) -> None:
    """Write them into a plain ViT's position embedding, where it has one."""
    if vit.pos_embed is not None:
        prefix = vit.pos_embed.shape[1] - grid[0] * grid[1]
        with torch.no_grad():
            vit.pos_embed.copy_(sincos_positions(vit.embed_dim, grid, prefix))
