"""VICReg. Bardes et al. 2021, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (arXiv 2105.04906).

Deviation: both views go through in one pass, as in SimCLR, so batch norms see them together; the authors' code takes one after the other.

B pictures, D width of the embedding, E width of the projection.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import spread, vicreg_parts
from visiontune.module import Module
from visiontune.pretrain._parts import two_views, unset
from visiontune.ranges import NonNegativeFloat, PositiveInt

# Appendix C.1: BYOL's views, but both the same.
VIEWS = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 0.5, "solarize": 0.1,
}  # fmt: skip
# Section 4.2: LARS, learning rate 0.2 for a batch of 256, weight decay 1e-6.
OPTIM = {"name": "lars", "lr": 0.2, "weight_decay": 1e-6, "momentum": 0.9}
# Covariances of 8192 dimensions are estimated from one batch: few pictures have small batches.
BY_PICTURES = {"projector_out": ((50_000, 1024), (500_000, 4096), (None, 8192))}


class VICReg(Module):
    """Two views near each other, every dimension alive, no two dimensions alike. No negatives. For any timm backbone.

    Args:
        invariance: weight of the distance between views.
        variance: weight of what dimensions lack to a standard deviation of 1.
        covariance: weight of the covariances between dimensions.
        projector_hidden: width of the hidden layers; None: that of the projection.
        projector_out: width of the projection; None: 8192, in a recipe by the number of pictures.
        projector_layers: linear layers of the projector.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        invariance: NonNegativeFloat = 25.0,
        variance: NonNegativeFloat = 25.0,
        covariance: NonNegativeFloat = 1.0,
        projector_hidden: PositiveInt | None = None,
        projector_out: PositiveInt | None = None,
        projector_layers: PositiveInt = 3,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.weights = invariance, variance, covariance
        E = unset(projector_out, BY_PICTURES["projector_out"])
        self.projector = projector(self.face.width, projector_hidden or E, E, layers=projector_layers, last="plain")
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = self.projector(self.embed_views(two_views(self, batch))).chunk(2)  # (B, E) each
        parts = vicreg_parts(z0, z1)
        loss = sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
        assert isinstance(loss, Tensor)
        self.record(loss=loss, invariance=parts[0], variance=parts[1], covariance=parts[2], spread=spread(z0))
        return loss
