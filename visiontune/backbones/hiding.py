"""Any backbone that looks at a picture with hidden squares: a mask token where patches are separate, the mean colour where they are not.

B pictures, D width, h x w cells: the grid of the backbone's last features.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visiontune.backbones.face import Face
from visiontune.backbones.install import install
from visiontune.backbones.visible import MaskedTokens, TokenMask, patch_embedding
from visiontune.masking import enlarge


class Hiding(nn.Module):
    """Hides cells of the last grid from a backbone, which it changes (`install.restore` gives it back).

    Args:
        backbone: a timm module with a grid of last features.
        face: what it gives.
        size: rows and columns of pixels.
        channels: of its pictures.

    Attributes:
        token: `(D,)`, learned, in place of hidden patches; None where the family's stem overlaps, which sees the mean colour alone.
    """

    def __init__(self, backbone: nn.Module, face: Face, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        assert face.grid is not None
        self.size, self.grid = size, face.grid
        self.token_mask = TokenMask()
        self.token: nn.Parameter | None = None
        blank = torch.zeros(1, channels, *size).to(next(backbone.parameters()))
        found = patch_embedding(backbone, blank)
        # a grid of patches that the cells do not line up with is left alone
        if found and not any(p % c for p, c in zip(found[2], self.grid, strict=True)):
            layer, layout, self.patch_grid, D = found
            install(layer, MaskedTokens, token_mask=self.token_mask, layout=layout)
            self.token = nn.Parameter(torch.zeros(D))
            nn.init.trunc_normal_(self.token, std=0.02)

    @contextlib.contextmanager
    def forward(self, images: Tensor, hidden: Tensor) -> Iterator[Tensor]:
        """Within the context the backbone hides `hidden`, `(B, h, w)`, of these `images`; gives the pictures for it to look at."""
        if self.token is not None:
            self.token_mask.mask, self.token_mask.token = enlarge(hidden, self.patch_grid), self.token
        H, W = images.shape[-2:]
        cells = hidden.unsqueeze(1).to(images.dtype)
        covered = nn.functional.interpolate(cells, size=(H, W), mode="nearest") > 0
        try:
            yield images.masked_fill(covered, 0.0)  # normalised: 0 is the mean
        finally:
            self.token_mask.mask = self.token_mask.token = None
