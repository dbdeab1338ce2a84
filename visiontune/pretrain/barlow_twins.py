"""Barlow Twins. Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv 2103.03230).

Deviation: both views go through in one pass, as in SimCLR, so batch norms see them together; the authors' code takes one after the other.

B pictures, D width of the embedding, E width of the projection.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import barlow_twins, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views, unset
from visiontune.ranges import PositiveFloat, PositiveInt

# Section 2.2: BYOL's views.
VIEWS = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
}  # fmt: skip
# Section 2.2: LARS, learning rate 0.2 for a batch of 256, weight decay 1.5e-6.
OPTIM = {"name": "lars", "lr": 0.2, "weight_decay": 1.5e-6, "momentum": 0.9}
# Correlations of 8192 dimensions are estimated from one batch: few pictures have small batches.
BY_PICTURES = {"projector_out": ((50_000, 1024), (500_000, 4096), (None, 8192))}


class BarlowTwins(Module):
    """Make the correlation of two views' projections the identity: no negatives, no second network. For any timm backbone.

    Args:
        redundancy: weight of the terms off the diagonal.
        projector_hidden: width of the hidden layers; None: that of the projection.
        projector_out: width of the projection; None: 8192, in a recipe by the number of pictures.
        projector_layers: linear layers of the projector.
        loss_scale: factor of the loss. LARS feels it in biases and norms alone, whose learning rate in section 2.2 is 0.0048 where that of
            the weights is 0.2; Adam does not feel it.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        redundancy: PositiveFloat = 0.0051,
        projector_hidden: PositiveInt | None = None,
        projector_out: PositiveInt | None = None,
        projector_layers: PositiveInt = 3,
        loss_scale: PositiveFloat = 0.024,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.redundancy, self.loss_scale = redundancy, loss_scale
        E = unset(projector_out, BY_PICTURES["projector_out"])
        self.projector = projector(self.face.width, projector_hidden or E, E, layers=projector_layers, last="plain")
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = self.projector(self.embed_views(two_views(self, batch))).chunk(2)  # (B, E) each
        loss = self.loss_scale * barlow_twins(z0, z1, self.redundancy)
        self.record(loss=loss, spread=spread(z0))
        return loss
