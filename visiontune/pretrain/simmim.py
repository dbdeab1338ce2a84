"""SimMIM. Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling" (arXiv 2111.09886).

Deviations from the authors' code: it takes any backbone of timm whose last feature map is a grid. Where patches are embedded
separately (ViT, Swin, ...), hidden ones become a learned mask token, as in the paper; where the stem is of overlapping convolutions,
which would carry hidden pixels over to visible positions, hidden pixels are set to the mean colour before it instead.

B pictures, N = h * w squares that are hidden or not, M hidden ones, D width, s pixels of a position of the last map, P numbers in a square.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune.backbones import fitting_masked_methods, mean_of_patches, tokens
from visiontune.backbones.install import install, restore
from visiontune.backbones.visible import MaskedTokens, TokenMask, patch_embedding
from visiontune.errors import UserError
from visiontune.losses import paint, patchify, pixel_loss
from visiontune.masking import Masking, enlarge, grid_masking, take
from visiontune.module import Module
from visiontune.ranges import OpenFraction, PositiveInt

# Section 4.1 and the authors' configurations: crop and flip; AdamW, 8e-4 for a batch of 2048 in 100 epochs (half of it in 800).
VIEWS = {"crop_scale": (0.67, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05, "betas": (0.9, 0.999)}


class SimMIM(Module):
    """Hide large squares, let the whole network look, paint the hidden pixels with one linear layer. For transformers of timm.

    Args:
        mask_ratio: share of squares that are hidden.
        mask_size: pixels of a square's side, which divides the picture; a multiple of the patches, whatever later strides are.
        norm_pixels: compare with squares normalised by their own mean and variance; the paper compares pixels as they are.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        mask_ratio: OpenFraction = 0.6,
        mask_size: PositiveInt = 32,
        norm_pixels: bool = False,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = mean_of_patches(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        self.mask_ratio, self.norm_pixels = mask_ratio, norm_pixels
        H, W = self.picture_size
        if H % mask_size or W % mask_size or (mask_size, mask_size) == (H, W):
            sizes = ", ".join(str(n) for n in range(2, min(H, W) // 2 + 1) if H % n == 0 and W % n == 0)
            raise UserError(f"method.mask_size: got {mask_size}; pictures of {H}x{W} are whole numbers of squares of {sizes} pixels")
        self.mask_patch = (mask_size, mask_size)
        self.grid = (H // mask_size, W // mask_size)
        if self.face.grid is None or self.face.token_width is None:
            raise UserError(f"backbone.name: got {self.spec.name}, whose last features are no grid of positions, which simmim paints from")
        h, w = self.face.grid
        for_convnets = "method: spark is made for convnets: it keeps hidden positions empty in every layer"
        convnet = fitting_masked_methods(self.backbone) == "method: spark"
        if H % h or W % w or H // h != W // w:
            raise UserError(
                f"data.image_size: got {H}x{W}; {self.spec.name} makes {h}x{w} positions of it, no whole number of pixels each; "
                f"take a multiple of 32{f' ({for_convnets})' if convnet else ''}"
            )
        self.stride = H // h

        # ------------------------------------------------------------ hidden patches become a token, where patches are separate
        self.token_mask = TokenMask()
        self.mask_token: nn.Parameter | None = None
        self.patch_grid: tuple[int, int] | None = None
        if found := patch_embedding(self.backbone, torch.zeros(1, self.spec.channels, H, W).to(next(self.backbone.parameters()))):
            layer, layout, grid, D = found
            if any(g % m for g, m in zip(grid, self.grid, strict=True)):
                p = H // grid[0]
                fits = [str(n) for n in range(p, H // 2 + 1, p) if H % n == 0 and W % n == 0]
                raise UserError(
                    f"method.mask_size: got {mask_size}, which {self.spec.name}'s patches of {p} pixels do not divide; "
                    f"pictures of {H}x{W} can hide squares of {', '.join(fits)}"
                )
            install(layer, MaskedTokens, token_mask=self.token_mask, layout=layout)
            self.patch_grid = grid
            self.mask_token = nn.Parameter(torch.zeros(D))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

        # ------------------------------------------------------------ one linear layer paints: the pixels of each position
        self.head = nn.Sequential(
            nn.Conv2d(self.face.token_width, self.stride**2 * self.spec.channels, kernel_size=1), nn.PixelShuffle(self.stride)
        )
        hidden, N = self.mask(torch.zeros(1, 1, 1, 1)).hidden.shape[1], self.grid[0] * self.grid[1]
        how = "by a mask token" if self.mask_token is not None else "as the mean colour, for its stem overlaps"
        self.notes.append(f"mask: {hidden} of {N} squares of {mask_size} pixels hidden, {how}")
        if convnet:
            self.notes.append(f"{self.spec.name}: simmim trains it, but {for_convnets}")
        self.leave_out_unreached(lambda images: [self.paint_all(images, self.mask(images))])
        self.load_rest_of(common.get("weights"))

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> Masking:
        return grid_masking(images.shape[0], self.grid, (1, 1), self.mask_ratio, device=images.device, generator=generator)

    def paint_all(self, images: Tensor, masking: Masking) -> Tensor:
        """`(B, C, H, W)` with some squares hidden -> all of it as painted, `(B, C, H, W)`."""
        hidden = masking.mask.view(-1, *self.grid)  # (B, h, w)
        seen = images * ~enlarge(hidden, self.picture_size).unsqueeze(1)
        if self.patch_grid is not None:
            self.token_mask.mask, self.token_mask.token = enlarge(hidden, self.patch_grid), self.mask_token
        try:
            return self.head(tokens(self.backbone, seen))
        finally:
            self.token_mask.mask = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        masking = self.mask(images)
        painted = patchify(self.paint_all(images, masking), self.mask_patch)  # (B, N, P)
        target = take(patchify(images, self.mask_patch), masking.hidden)  # (B, M, P)
        loss = pixel_loss(take(painted, masking.hidden), target, normalize=self.norm_pixels, power=1)
        self.record(loss=loss, baseline=pixel_loss(None, target, normalize=self.norm_pixels, power=1))
        return loss

    @torch.no_grad()
    def pictures(self, images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Original, masked, painted and pasted, each `(B, C, H, W)` in [0, 1], for reports."""
        images = self.normalize(images)
        masking = self.mask(images, generator)
        painted = patchify(self.paint_all(images, masking), self.mask_patch)
        return paint(images, painted, masking.mask, self.mask_patch, normalized=self.norm_pixels, mean=self.mean, std=self.std)

    def release(self) -> nn.Module:
        restore(self.backbone)
        return super().release()
