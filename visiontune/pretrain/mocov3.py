"""MoCo v3. Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers" (arXiv 2104.02057).

Deviation: both views go through in one pass, as in SimCLR, so batch norms see them together; the authors' code takes one after the other.

B pictures, D width of the embedding, E width of the projection.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune.backbones import is_plain_vit
from visiontune.backbones.positions import set_sincos_positions
from visiontune.heads.projector import projector
from visiontune.losses import info_nce, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views
from visiontune.ranges import OpenFraction, PositiveFloat, PositiveInt
from visiontune.teacher import Teacher

# Appendix A names what BYOL does to views; the numbers are the authors' code's, in which a ResNet-50 crops from a share of 0.2 on.
VIEWS = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
}  # fmt: skip
# Transformers: AdamW (section 5); the authors' code: learning rate 1.5e-4 for a batch of 256, weight decay 0.1.
OPTIM = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.1}


class MoCoV3(Module):
    """Contrast each view with the other view of all pictures of the batch, as an average of the network sees it. For any timm backbone.

    Args:
        temperature: of the loss.
        projector_hidden: width of the hidden layers of projector and predictor.
        projector_out: width of the projection.
        projector_layers: linear layers of the projector; the paper takes 3 for transformers, 2 for ResNets.
        momentum_start: share of the old weights in the teacher at the first step; rises to 1.
        freeze_patches: keep the patch embedding of a plain vision transformer as it was initialised (or loaded): trained, its gradients
            jump and accuracy dips (section 4.2).
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        temperature: PositiveFloat = 0.2,
        projector_hidden: PositiveInt = 4096,
        projector_out: PositiveInt = 256,
        projector_layers: PositiveInt = 3,
        momentum_start: OpenFraction = 0.99,
        freeze_patches: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature = temperature
        if freeze_patches and is_plain_vit(self.backbone):
            self.freeze_patches(fresh=isinstance(backbone, str) and common.get("weights", "random") == "random")
        self.projector = projector(self.face.width, projector_hidden, projector_out, layers=projector_layers)
        self.predictor = projector(projector_out, projector_hidden, projector_out)
        self.teacher = Teacher(momentum=(momentum_start, 1.0), backbone=self.backbone, projector=self.projector)
        self.load_rest_of(common.get("weights"))

    def freeze_patches(self, *, fresh: bool) -> None:
        """Sine-cosine positions and a random projection of patches, neither trained: sections 4.2 and 5, the authors' `vits.py`."""
        vit: Any = self.backbone
        proj = vit.patch_embed.proj
        if fresh:
            grid: Any = vit.patch_embed.grid_size
            set_sincos_positions(vit, grid)
            bound = math.sqrt(6 / (proj.weight[0].numel() + vit.embed_dim))  # Glorot's, over all pixels of a patch
            nn.init.uniform_(proj.weight, -bound, bound)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        self.leave_out(vit.pos_embed, *proj.parameters())
        self.notes.append("patch embedding and positions are frozen, for stability (method.freeze_patches)")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = two_views(self, batch)
        q0, q1 = self.predictor(self.projector(self.embed_views(views))).chunk(2)  # (B, E) each
        with torch.no_grad():
            k0, k1 = self.teacher.projector(self.embed_views(views, self.teacher.backbone)).chunk(2)
        loss = info_nce(q0, k1, self.temperature) + info_nce(q1, k0, self.temperature)
        self.record(loss=loss, spread=spread(k0))
        return loss
