"""Masked autoencoder. He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377).

Deviations from the authors' code: the embedding is the mean of the patch tokens after the last norm (their fine-tuning uses the
mean too; the class token gets no training signal of its own); the encoder keeps timm's initialisation and the decoder torch's;
positions that a backbone brings with its weights are kept, and not trained either.

B pictures, N patches, K visible ones, M = N - K hidden ones, D encoder width, E decoder width, P numbers in a patch.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from visiontune.backbones import mean_of_patches
from visiontune.backbones.positions import set_sincos_positions, sincos_positions
from visiontune.backbones.visible import check_grid, forward_visible, let_patches_out, release_patches
from visiontune.errors import UserError
from visiontune.heads.narrow_vit import NarrowViT
from visiontune.losses import paint, patchify, pixel_loss
from visiontune.masking import Masking, block_masking, random_masking, take
from visiontune.module import Module
from visiontune.ranges import OpenFraction, PositiveInt

# Appendix A, table 8: random resized crop and flip, nothing else. lr is for a batch of 256.
VIEWS = {"crop_scale": (0.2, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05, "betas": (0.9, 0.95)}


class MAE(Module):
    """Hide most patches, encode the rest, paint the hidden ones. For plain vision transformers of timm.

    Args:
        mask_ratio: share of patches that are hidden.
        masking: `random` patches, or `block`s as in BEiT (the paper's table 1f: random is better, at a higher ratio).
        decoder_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder; its width must be a multiple of them.
        norm_pixels: compare with patches normalised by their own mean and variance.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        mask_ratio: OpenFraction = 0.75,
        masking: Literal["random", "block"] = "random",
        decoder_dim: PositiveInt = 512,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        norm_pixels: bool = True,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = mean_of_patches(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        vit: Any = self.backbone
        let_patches_out(vit, self.spec.name, "mae")
        if decoder_dim % decoder_heads:
            raise UserError(f"method.decoder_heads: got {decoder_heads}; method.decoder_dim ({decoder_dim}) is no multiple of it")
        self.mask_ratio, self.masking, self.norm_pixels = mask_ratio, masking, norm_pixels
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.grid = check_grid("patches", self.picture_size, self.patch_size)
        D, E = vit.embed_dim, decoder_dim
        P = self.patch_size[0] * self.patch_size[1] * self.spec.channels

        # ------------------------------------------------------------ encoder: timm's, with fixed sine-cosine positions
        if isinstance(backbone, str) and common.get("weights", "random") == "random":  # a module of one's own may be trained
            set_sincos_positions(vit, self.grid)
        self.leave_out(vit.pos_embed)

        # ------------------------------------------------------------ decoder
        self.decoder_embed = nn.Linear(D, E)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("decoder_pos", sincos_positions(E, self.grid, prefix=0, what="method.decoder_dim"), persistent=False)
        self.decoder_blocks = NarrowViT(E, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(E, eps=1e-6)
        self.decoder_pred = nn.Linear(E, P)
        hidden = self.mask(torch.zeros(1, 1, 1, 1)).hidden.shape[1]
        if not hidden:
            raise UserError(
                f"method.mask_ratio: got {mask_ratio:g} of {self.grid[0]}x{self.grid[1]} patches, which hides none; "
                "take a larger picture (data.image_size), smaller patches or a higher ratio"
            )
        self.notes.append(f"mask: {hidden} of {math.prod(self.grid)} patches hidden")
        self.leave_out_unreached(lambda images: [self.encode(images, self.mask(images))])
        self.load_rest_of(common.get("weights"))

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> Masking:
        B, device = images.shape[0], images.device
        if self.masking == "block":
            return block_masking(B, self.grid, self.mask_ratio, device=device, generator=generator)
        return random_masking(B, math.prod(self.grid), self.mask_ratio, device=device, generator=generator)

    def encode(self, images: Tensor, masking: Masking) -> Tensor:
        """`(B, C, H, W)` -> class and register tokens and visible patches after the last norm, `(B, prefix + K, D)`."""
        return forward_visible(self.backbone, images, masking.visible)

    def decode(self, encoded: Tensor, masking: Masking, *, everything: bool = False) -> Tensor:
        """`(B, prefix + K, D)` -> the hidden patches painted, `(B, M, P)`, in the order of `masking.hidden`.

        With `everything` all patches, `(B, N, P)`, in the order of the picture.
        """
        x = self.decoder_embed(encoded)
        P = self.backbone.num_prefix_tokens
        prefix, x = x[:, :P], x[:, P:]
        positions = self.decoder_pos.to(x.dtype).expand(x.shape[0], -1, -1)  # (B, N, E)
        visible = x + take(positions, masking.visible)
        hidden = self.mask_token.to(x.dtype) + take(positions, masking.hidden)
        # Attention does not care for the order of tokens: hidden ones go last, and nothing has to be sorted back.
        asked = hidden.shape[1] + (visible.shape[1] if everything else 0)
        x = self.decoder_blocks(torch.cat([prefix, visible, hidden], dim=1), last=asked)
        x = self.decoder_pred(self.decoder_norm(x))
        if not everything:
            return x
        order = torch.cat([masking.visible, masking.hidden], dim=1).unsqueeze(-1).expand_as(x)
        return torch.empty_like(x).scatter_(1, order, x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        masking = self.mask(images)
        painted = self.decode(self.encode(images, masking), masking)
        target = take(patchify(images, self.patch_size), masking.hidden)
        loss = pixel_loss(painted, target, normalize=self.norm_pixels)
        self.record(loss=loss, baseline=pixel_loss(None, target, normalize=self.norm_pixels))
        return loss

    @torch.no_grad()
    def pictures(self, images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Original, masked, painted and pasted, each `(B, C, H, W)` in [0, 1], for reports."""
        images = self.normalize(images)
        masking = self.mask(images, generator)
        painted = self.decode(self.encode(images, masking), masking, everything=True)
        return paint(images, painted, masking.mask, self.patch_size, normalized=self.norm_pixels, mean=self.mean, std=self.std)

    def release(self) -> nn.Module:
        release_patches(self.backbone)
        return super().release()
