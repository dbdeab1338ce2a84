"""SimSiam. Chen and He 2020, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566).

Deviation: both views go through in one pass, as in SimCLR, so batch norms see them together; the authors' code takes one after the other.

B pictures, D width of the embedding, E width of the projection.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import negative_cosine, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views
from visiontune.ranges import PositiveInt

# Appendix A: the views of MoCo v2.
VIEWS = {
    "views": 2, "crop_scale": (0.2, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "grey": 0.2, "blur": 0.5,
}  # fmt: skip
# Section 3, "Baseline settings": SGD, learning rate 0.05 for a batch of 256, weight decay 1e-4.
OPTIM = {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4, "momentum": 0.9}


class SimSiam(Module):
    """Predict one view's projection from the other's, whose gradient is stopped: nothing else keeps it from collapsing. Any backbone.

    Args:
        projector_hidden: width of the projector's hidden layers.
        projector_out: width of the projection.
        projector_layers: linear layers of the projector.
        predictor_hidden: width of the predictor's hidden layer, a bottleneck.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 2048,
        projector_layers: PositiveInt = 3,
        predictor_hidden: PositiveInt = 512,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = projector(self.face.width, projector_hidden, projector_out, layers=projector_layers)
        self.predictor = projector(projector_out, predictor_hidden, projector_out, last="bias")
        self.load_rest_of(common.get("weights"))

    def steady_parameters(self) -> Iterable[nn.Parameter]:
        """The predictor's learning rate does not fall: it has to keep up with the encoder (section 4.2, table 1)."""
        return self.predictor.parameters()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.projector(self.embed_views(two_views(self, batch)))
        z0, z1 = z.chunk(2)  # (B, E) each
        p0, p1 = self.predictor(z).chunk(2)
        loss = 0.5 * (negative_cosine(p0, z1.detach()) + negative_cosine(p1, z0.detach()))
        self.record(loss=loss, spread=spread(z0))
        return loss
