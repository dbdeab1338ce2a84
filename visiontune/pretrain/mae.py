"""Masked autoencoder. He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377).

Deviations from the authors' code: the embedding is the mean of the patch tokens after the last norm (their fine-tuning uses the
mean too; the class token gets no training signal of its own), and layers keep timm's initialisation.

B pictures, N patches, K visible ones, M = N - K hidden ones, D encoder width, E decoder width, P numbers in a patch.
"""

from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from visiontune.backbones import check_name, is_plain_vit
from visiontune.errors import UserError
from visiontune.losses import patchify, pixel_loss, unpatchify
from visiontune.masking import Masking, random_masking, take
from visiontune.module import Module
from visiontune.ranges import OpenFraction, PositiveInt

# Appendix A, table 8: random resized crop and flip, nothing else. lr is for a batch of 256.
VIEWS = {"crop_scale": (0.2, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05, "betas": (0.9, 0.95)}
# The embedding: the mean of the normed patch tokens, also when plain timm loads the weights.
BACKBONE_ARGS = {"global_pool": "avg", "fc_norm": False}
NEEDS_VIT = (
    "backbone.name: got {}; mae needs a plain vision transformer (vit_*, deit_*), since it drops the hidden patches from the encoder's "
    "sequence; for other backbones use method: simclr"
)


class MAE(Module):
    """Hide most patches, encode the rest, paint the hidden ones. For plain vision transformers of timm.

    Args:
        mask_ratio: share of patches that are hidden.
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
        decoder_dim: PositiveInt = 512,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        norm_pixels: bool = True,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str) and check_name(backbone) is None and not is_plain_vit(backbone):
            raise UserError(NEEDS_VIT.format(backbone))
        if isinstance(backbone, str):
            common["backbone_args"] = BACKBONE_ARGS | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        vit: Any = self.backbone
        if not is_plain_vit(vit):
            raise UserError(NEEDS_VIT.format(self.spec.name))
        if decoder_dim % decoder_heads:
            raise UserError(f"method.decoder_heads: got {decoder_heads}; method.decoder_dim ({decoder_dim}) is no multiple of it")
        self.mask_ratio, self.norm_pixels = mask_ratio, norm_pixels
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        size = self.spec.image_size
        H, W = (size, size) if isinstance(size, int) else size
        if (self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1]) != (H, W):
            raise UserError(
                f"data.image_size: got {H}x{W}, which patches of {self.patch_size[0]}x{self.patch_size[1]} pixels do not divide"
            )
        N, D, E = self.grid[0] * self.grid[1], vit.embed_dim, decoder_dim
        P = self.patch_size[0] * self.patch_size[1] * self.spec.channels

        # ------------------------------------------------------------ encoder: timm's, with fixed sine-cosine positions
        if vit.pos_embed is not None:
            if isinstance(backbone, str) and common.get("weights", "random") == "random":  # a module of one's own may be trained
                prefix = vit.pos_embed.shape[1] - N
                with torch.no_grad():
                    vit.pos_embed.copy_(sincos_positions(D, self.grid, prefix))
            vit.pos_embed.requires_grad_(False)

        # ------------------------------------------------------------ decoder
        self.decoder_embed = nn.Linear(D, E)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("decoder_pos", sincos_positions(E, self.grid, prefix=0), persistent=False)
        self.decoder_blocks = nn.Sequential(*[Block(E, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(E)
        self.decoder_pred = nn.Linear(E, P)

    def encode(self, images: Tensor, masking: Masking) -> Tensor:
        """`(B, C, H, W)` -> class and register tokens and visible patches after the last norm, `(B, prefix + K, D)`."""
        vit = self.backbone
        x = vit._pos_embed(vit.patch_embed(images))  # (B, prefix + N, D)
        x, prefix = x[:, vit.num_prefix_tokens :], x[:, : vit.num_prefix_tokens]
        x = torch.cat([prefix, take(x, masking.visible)], dim=1)  # (B, prefix + K, D)
        return vit.norm(vit.blocks(vit.norm_pre(x)))

    def decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        """`(B, prefix + K, D)` -> the hidden patches painted, `(B, M, P)`, in the order of `masking.hidden`."""
        x = self.decoder_embed(encoded)
        prefix, x = x[:, : self.backbone.num_prefix_tokens], x[:, self.backbone.num_prefix_tokens :]
        positions = self.decoder_pos.to(x.dtype).expand(x.shape[0], -1, -1)  # (B, N, E)
        visible = x + take(positions, masking.visible)
        hidden = self.mask_token.to(x.dtype) + take(positions, masking.hidden)
        # Attention does not care for the order of tokens: hidden ones go last, and nothing has to be sorted back.
        x = self.decoder_blocks(torch.cat([prefix, visible, hidden], dim=1))
        return self.decoder_pred(self.decoder_norm(x[:, -hidden.shape[1] :]))

    def mask(self, images: Tensor) -> Masking:
        return random_masking(images.shape[0], self.grid[0] * self.grid[1], self.mask_ratio, device=images.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        masking = self.mask(images)
        painted = self.decode(self.encode(images, masking), masking)
        target = take(patchify(images, self.patch_size), masking.hidden)
        loss = pixel_loss(painted, target, normalize=self.norm_pixels)
        self.record(loss=loss)
        return loss

    @torch.no_grad()
    def pictures(self, images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Original, masked and painted, each `(B, C, H, W)` in [0, 1], for reports.

        Painted patches are brought back with the mean and spread of the true patch, since the network paints normalised ones.
        """
        images = self.normalize(images)
        B, N = images.shape[0], self.grid[0] * self.grid[1]
        masking = random_masking(B, N, self.mask_ratio, device=images.device, generator=generator)
        patches = patchify(images, self.patch_size)  # (B, N, P)
        true = take(patches, masking.hidden)
        painted = self.decode(self.encode(images, masking), masking).float()
        if self.norm_pixels:
            painted = painted * (true.var(dim=-1, keepdim=True) + 1e-6) ** 0.5 + true.mean(dim=-1, keepdim=True)
        at = masking.hidden.unsqueeze(-1).expand_as(true)
        masked = unpatchify(patches.scatter(1, at, torch.zeros_like(true)), self.patch_size, self.grid)
        full = unpatchify(patches.scatter(1, at, painted), self.patch_size, self.grid)
        return {k: (v * self.std + self.mean).clamp(0, 1) for k, v in (("original", images), ("masked", masked), ("painted", full))}


def sincos_positions(width: int, grid: tuple[int, int], prefix: int) -> Tensor:
    """Fixed two-dimensional sine-cosine embedding, `(1, prefix + h * w, width)`, zeros for the prefix tokens.

    The first half of the width encodes the column, the second the row, sines before cosines (the layout of the authors' code).

    Raises:
        UserError: if `width` is no multiple of 4.
    """
    if width % 4:
        raise UserError(f"method: sine-cosine positions need a width that is a multiple of 4 but got {width}")
    h, w = grid
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    halves = []
    for place in (columns, rows):
        angle = place.reshape(-1, 1) * frequency
        halves += [angle.sin(), angle.cos()]
    table = torch.cat(halves, dim=1).float()
    return torch.cat([torch.zeros(prefix, width), table]).unsqueeze(0)
