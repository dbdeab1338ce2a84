"""Losses as pure functions on tensors: torch only, usable without the rest of the package."""

from visiontune.losses.gather import gather_with_grad
from visiontune.losses.nt_xent import nt_xent
from visiontune.losses.pixels import paint, patchify, pixel_loss, unpatchify

__all__ = ["gather_with_grad", "nt_xent", "paint", "patchify", "pixel_loss", "unpatchify"]
