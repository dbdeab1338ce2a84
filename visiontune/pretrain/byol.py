"""BYOL. Grill et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning" (arXiv 2006.07733).

Deviation: both views go through in one pass, as in SimCLR, so batch norms see them together; the authors' code takes one after the other.

B pictures, D width of the embedding, E width of the projection.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import negative_cosine, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views, unset
from visiontune.ranges import OpenFraction, PositiveInt
from visiontune.teacher import Teacher

# Appendix B: the first view is always blurred, the second hardly ever, but solarised.
VIEWS = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
}  # fmt: skip
# Section 3.3 (1000 epochs): LARS, learning rate 0.2 for a batch of 256, weight decay 1.5e-6.
OPTIM = {"name": "lars", "lr": 0.2, "weight_decay": 1.5e-6, "momentum": 0.9}
# With few pictures a run has few steps, and the average must follow within them.
BY_PICTURES = {"momentum_start": ((50_000, 0.99), (None, 0.996))}


class BYOL(Module):
    """Predict, from one view, what an average of the network makes of the other. Needs no negatives. For any timm backbone.

    Args:
        projector_hidden: width of the hidden layers of projector and predictor.
        projector_out: width of the projection.
        momentum_start: share of the old weights in the teacher at the first step; rises to 1. None: 0.996, in a recipe by the number of
            pictures.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        projector_hidden: PositiveInt = 4096,
        projector_out: PositiveInt = 256,
        momentum_start: OpenFraction | None = None,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = projector(self.face.width, projector_hidden, projector_out, last="bias")
        self.predictor = projector(projector_out, projector_hidden, projector_out, last="bias")
        momentum = (unset(momentum_start, BY_PICTURES["momentum_start"]), 1.0)
        self.teacher = Teacher(momentum=momentum, backbone=self.backbone, projector=self.projector)
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = two_views(self, batch)
        p0, p1 = self.predictor(self.projector(self.embed_views(views))).chunk(2)  # (B, E) each
        with torch.no_grad():
            z0, z1 = self.teacher.projector(self.embed_views(views, self.teacher.backbone)).chunk(2)
        # equation 2, and its symmetric term of section 3.1
        loss = 4 + 2 * (negative_cosine(p0, z1) + negative_cosine(p1, z0))
        self.record(loss=loss, spread=spread(z0))
        return loss
