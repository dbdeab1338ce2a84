"""I-JEPA. Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture" (arXiv 2301.08243).

Deviations from the authors' code: target blocks all have the middle of their range of sizes and the context has a constant number of
patches (see `multi_block_masking`), so that no step waits for the device or compiles anew; weight decay is constant; the encoder keeps
timm's initialisation and the predictor torch's; class and register tokens, where the backbone has them, see the picture but neither
predict nor are predicted.

B pictures, N patches, K of the context, T targets of A patches, D width of the encoder, E of the predictor.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune import optim
from visiontune.backbones import mean_of_patches
from visiontune.backbones.positions import set_sincos_positions, sincos_positions
from visiontune.backbones.visible import check_grid, forward_visible, let_patches_out, release_patches
from visiontune.errors import UserError
from visiontune.heads.narrow_vit import NarrowViT
from visiontune.masking import MultiBlock, multi_block_masking, take
from visiontune.module import Module
from visiontune.ranges import OpenFraction, PositiveInt
from visiontune.teacher import Teacher

# Appendix A: crops only. The authors' configurations: AdamW, learning rate 1e-3 for a batch of 2048, weight decay 0.04 to 0.4.
VIEWS = {"crop_scale": (0.3, 1.0), "flip": 0.0}
OPTIM = {"name": "adamw", "lr": 1.25e-4, "weight_decay": 0.05, "betas": (0.9, 0.999)}


class IJEPA(Module):
    """Predict, from a context, what an average of the encoder makes of blocks of the picture. For plain vision transformers of timm.

    Args:
        targets: blocks to predict in each picture.
        target_scale: area of a block, as a share of the picture.
        predictor_dim: width of the predictor.
        predictor_depth: blocks of the predictor.
        predictor_heads: attention heads of the predictor; its width must be a multiple of them.
        momentum_start: share of the old weights in the target encoder at the first step; rises to 1.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM
    KEEPS = "teacher"  # section 5 evaluates the target encoder

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        targets: PositiveInt = 4,
        target_scale: OpenFraction = 0.175,
        predictor_dim: PositiveInt = 384,
        predictor_depth: PositiveInt = 12,
        predictor_heads: PositiveInt = 12,
        momentum_start: OpenFraction = 0.996,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = mean_of_patches(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        vit: Any = self.backbone
        let_patches_out(vit, self.spec.name, "ijepa")
        if predictor_dim % predictor_heads:
            raise UserError(f"method.predictor_heads: got {predictor_heads}; method.predictor_dim ({predictor_dim}) is no multiple of it")
        if getattr(vit, "global_pool", "avg") != "avg":
            release_patches(vit)
            raise UserError(
                f"backbone: {self.spec.name} pools its {vit.global_pool!r} for an embedding, and ijepa trains patch tokens alone; make it "
                "with global_pool='avg' (and fc_norm=False, or use_fc_norm=False for eva), or give its name"
            )
        self.targets, self.target_scale = targets, target_scale
        self.grid = check_grid("patches", self.picture_size, tuple(vit.patch_embed.patch_size))
        D, E = vit.embed_dim, predictor_dim
        try:
            masks = self.mask(torch.zeros(1, 1, 1, 1))
        except ValueError as error:
            raise UserError(
                f"method.targets, method.target_scale: got {targets} of {target_scale:g} of the picture, which could cover all of its "
                f"{self.grid[0]}x{self.grid[1]} patches and leave nothing to predict from; take fewer or smaller ones"
            ) from error

        N = math.prod(self.grid)
        self.notes.append(f"mask: {targets} targets of {masks.targets.shape[2]} of {N} patches, a context of {masks.context.shape[1]}")

        # ------------------------------------------------------------ context encoder, and its average, which makes the targets
        if isinstance(backbone, str) and common.get("weights", "random") == "random":  # a module of one's own may be trained
            set_sincos_positions(vit, self.grid)
        self.leave_out(vit.pos_embed)
        self.leave_out_unreached(lambda images: [self.encode(images, self.mask(images))])
        self.teacher = Teacher(momentum=(momentum_start, 1.0), schedule=optim.linear, backbone=vit)

        # ------------------------------------------------------------ predictor
        self.predictor_embed = nn.Linear(D, E)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("predictor_pos", sincos_positions(E, self.grid, prefix=0, what="method.predictor_dim"), persistent=False)
        self.predictor_blocks = NarrowViT(E, predictor_depth, predictor_heads)
        self.predictor_norm = nn.LayerNorm(E, eps=1e-6)
        self.predictor_out = nn.Linear(E, D)
        self.load_rest_of(common.get("weights"))

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> MultiBlock:
        sizes = {"targets": self.targets, "target_scale": self.target_scale}
        return multi_block_masking(images.shape[0], self.grid, **sizes, device=images.device, generator=generator)  # type: ignore[arg-type]

    def encode(self, images: Tensor, masks: MultiBlock) -> Tensor:
        """`(B, C, H, W)` -> the patches of the context, `(B, K, D)`."""
        return forward_visible(self.backbone, images, masks.context)[:, self.backbone.num_prefix_tokens :]

    @torch.no_grad()
    def make_targets(self, images: Tensor, masks: MultiBlock) -> Tensor:
        """`(B, C, H, W)` -> what the average of the encoder makes of the target blocks, seeing all, `(B, T, A, D)`."""
        target: Any = self.kept
        x = target.forward_features(images)[:, target.num_prefix_tokens :]  # (B, N, D)
        x = F.layer_norm(x.float(), x.shape[-1:])  # fp32: compared across steps
        return take(x, masks.targets.flatten(1)).unflatten(1, masks.targets.shape[1:])

    def predict(self, context: Tensor, masks: MultiBlock) -> Tensor:
        """`(B, K, D)` -> the targets as predicted, each block on its own, `(B, T, A, D)`."""
        B, T, A = masks.targets.shape
        x = self.predictor_embed(context)
        positions = self.predictor_pos.to(x.dtype).expand(B, -1, -1)  # (B, N, E)
        x = x + take(positions, masks.context)
        wanted = self.mask_token.to(x.dtype) + take(positions, masks.targets.flatten(1))  # (B, T * A, E)
        x = torch.cat([x.repeat_interleave(T, dim=0), wanted.view(B * T, A, -1)], dim=1)  # (B * T, K + A, E)
        x = self.predictor_norm(self.predictor_blocks(x, last=A))
        return self.predictor_out(x).view(B, T, A, -1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        masks = self.mask(images)
        target = self.make_targets(images, masks)
        predicted = self.predict(self.encode(images, masks), masks).float()
        loss = F.smooth_l1_loss(predicted, target)
        # the trivial predictor says zero, the mean of layer-normed features; `spread` near 0 would be a collapse
        self.record(
            loss=loss,
            baseline=F.smooth_l1_loss(torch.zeros_like(target), target),
            spread=target.flatten(0, 2).std(dim=0).mean(),
        )
        return loss

    def release(self) -> nn.Module:
        release_patches(self.backbone)
        release_patches(self.kept)
        return super().release()

    @torch.no_grad()
    def pictures(self, images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Original, context, and the targets on grey; nothing is painted, for nothing predicts pixels."""
        images = self.normalize(images)
        masks = self.mask(images, generator)
        B, N = images.shape[0], math.prod(self.grid)
        rows = {"original": images.float()}
        for name, indices in (("context", masks.context), ("targets", masks.targets.flatten(1))):
            seen = torch.zeros(B, N, device=images.device).scatter_(1, indices, 1.0).view(B, 1, *self.grid)
            rows[name] = images * F.interpolate(seen, size=images.shape[-2:], mode="nearest")
        return {name: (x * self.std + self.mean).clamp(0, 1) for name, x in rows.items()}
