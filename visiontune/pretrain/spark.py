"""SparK. Tian et al. 2023, "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (arXiv 2301.03580).

Deviations from the authors' code: any convnet of timm whose hidden positions can be kept out (it is tried when the module is made);
global pooling counts visible positions alone; the coarsest map is the one that the embedding is pooled from, behind a last
convolution where there is one; maps are normed by batch norm before the decoder for every family (theirs by layer norm for ConvNeXt)
and always projected; AdamW for LAMB, with one beta2 for all families.

B pictures, N = h * w squares of s pixels that are hidden or not, M hidden ones, P numbers in a square.
"""

import math
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from visiontune.backbones import fitting_masked_methods, has_attention, levels, undisturbed
from visiontune.backbones.install import install, restore
from visiontune.backbones.sparse import Active, MaskedBatchNorm
from visiontune.backbones.sparsify import NotSparse, make_sparse, nearest_size
from visiontune.errors import UserError
from visiontune.heads.unet import UNetDecoder
from visiontune.losses import paint, patchify, pixel_loss
from visiontune.masking import Masking, enlarge, random_masking, take
from visiontune.module import Module
from visiontune.ranges import OpenFraction, PositiveInt

# Appendix B and the authors' configuration: crop and flip; LAMB, learning rate 2e-4 for a batch of 256. AdamW here, at the same rate.
VIEWS = {"crop_scale": (0.67, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 2e-4, "weight_decay": 0.04, "betas": (0.9, 0.95)}
LEVELS = 4  # of the encoder that the decoder sees, from the coarsest on


class SparK(Module):
    """Hide squares from a convnet as if it were sparse, paint them with a U-shaped decoder. For convnets of timm.

    Args:
        mask_ratio: share of squares that are hidden; a square is one position of the coarsest map.
        decoder_dim: width of the decoder at the coarsest resolution; it halves with each doubling.
        norm_pixels: compare with squares normalised by their own mean and variance.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        mask_ratio: OpenFraction = 0.6,
        decoder_dim: PositiveInt = 512,
        norm_pixels: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.mask_ratio, self.norm_pixels = mask_ratio, norm_pixels
        self.active = Active()

        # ------------------------------------------------------------ encoder: timm's, each layer keeping hidden positions out
        H, W = self.picture_size
        h, w = self.grid = self._coarsest()
        if (H % h or W % w or H // h != W // w or h * w < 4) and not has_attention(self.backbone):
            raise UserError(
                f"data.image_size: got {H}x{W}; {self.spec.name} makes {h}x{w} positions of it, and spark hides whole squares of pixels, "
                f"of 2x2 at least; try {nearest_size((H, W), self.grid)}, or smaller strides in backbone.args"
            )
        blank = torch.zeros(1, self.spec.channels, H, W).to(next(self.backbone.parameters()))
        try:
            make_sparse(self.backbone, self.active, self.grid, partial(levels, self.backbone), blank)
        except NotSparse as error:
            raise UserError(
                f"backbone.name: got {self.spec.name}; spark needs a convnet whose hidden positions stay out, and {error}; "
                f"use {self._instead()}"
            ) from error
        with torch.no_grad(), undisturbed(self.backbone):
            maps = levels(self.backbone, blank)
        self.stride = H // h

        # ------------------------------------------------------------ decoder
        self.decoder = UNetDecoder(decoder_dim, self.stride, self.spec.channels)
        widths = {h * 2**i: width for i, width in enumerate(self.decoder.widths)}  # by rows of the map
        self.at = {m.shape[-2]: i for i, m in enumerate(maps) if m.shape[-2] in widths}
        self.at = dict(sorted(self.at.items())[:LEVELS])  # rows of the map -> its place among the encoder's, coarse to fine
        self.norms, self.projections, self.mask_tokens = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        for rows, i in self.at.items():
            D, kernel = maps[i].shape[1], 1 if rows == h else 3
            norm = nn.BatchNorm2d(D)
            install(norm, MaskedBatchNorm, active=self.active)
            self.norms.append(norm)
            self.mask_tokens.append(nn.init.trunc_normal_(torch.zeros(1, D, 1, 1), std=0.02))
            self.projections.append(nn.Conv2d(D, widths[rows], kernel, padding=kernel // 2))
        hidden, N = self.mask(blank).hidden.shape[1], math.prod(self.grid)
        self.notes.append(f"mask: {hidden} of {N} squares of {self.stride} pixels hidden; the decoder sees {len(self.at)} levels")
        self.leave_out_unreached(lambda images: [self.decode(self.encode(images, self.mask(images)))])
        self.active.clear()
        self.load_rest_of(common.get("weights"))

    def _coarsest(self) -> tuple[int, int]:
        """Rows and columns of the last map; of the patches of a plain ViT, where there is no map."""
        grid = self.face.grid
        if grid is None:
            raise UserError(f"backbone.name: got {self.spec.name}, which makes no map that spark could paint from; use {self._instead()}")
        return grid

    def _instead(self) -> str:
        fits = fitting_masked_methods(self.backbone)
        return "method: simmim" if "spark" in fits else fits

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> Masking:
        N = math.prod(self.grid)
        visible = min(N - 1, max(1, round(N * (1 - self.mask_ratio))))  # rounded, as in the authors' code
        return random_masking(images.shape[0], N, visible=visible, device=images.device, generator=generator)

    def encode(self, images: Tensor, masking: Masking) -> list[Tensor]:
        """`(B, C, H, W)` -> feature maps of all levels, fine to coarse, zero where hidden."""
        visible = ~masking.mask.view(-1, *self.grid)
        self.active.show(visible, masking.visible.shape[1] / math.prod(self.grid))
        return levels(self.backbone, images * enlarge(visible, self.picture_size).unsqueeze(1))

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Feature maps of all levels -> the picture as painted, `(B, C, H, W)`."""
        dense: list[Tensor | None] = [None] * len(self.decoder.widths)
        for (rows, i), norm, token, project in zip(self.at.items(), self.norms, self.mask_tokens, self.projections, strict=True):
            x = norm(maps[i])
            seen = self.active.map(tuple(x.shape[-2:])).to(x.dtype)  # type: ignore[arg-type]
            dense[self.decoder_level(rows)] = project(x + token.to(x.dtype) * (1 - seen))  # hidden positions get the mask token
        return self.decoder(dense)

    def decoder_level(self, rows: int) -> int:
        return (rows // self.grid[0]).bit_length() - 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        masking = self.mask(images)
        painted = patchify(self.decode(self.encode(images, masking)), (self.stride, self.stride))  # (B, N, P)
        target = take(patchify(images, (self.stride, self.stride)), masking.hidden)  # (B, M, P)
        loss = pixel_loss(take(painted, masking.hidden), target, normalize=self.norm_pixels)
        self.record(loss=loss, baseline=pixel_loss(None, target, normalize=self.norm_pixels))
        self.active.clear_after(loss)
        return loss

    def represent(self, images: Tensor) -> Tensor:
        self.active.clear()
        return super().represent(images)

    forward = represent

    @torch.no_grad()
    def pictures(self, images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Original, masked, painted and pasted, each `(B, C, H, W)` in [0, 1], for reports."""
        images, patch = self.normalize(images), (self.stride, self.stride)
        masking = self.mask(images, generator)
        painted = patchify(self.decode(self.encode(images, masking)), patch)
        self.active.clear()
        return paint(images, painted, masking.mask, patch, normalized=self.norm_pixels, mean=self.mean, std=self.std)

    def sync_batch_norms(self) -> None:
        self.active.everywhere = True  # the changed layers gather their own sums
        convert_sync_batchnorm(self.decoder)

    def release(self) -> nn.Module:
        self.active.clear()
        restore(self.backbone)
        return super().release()
