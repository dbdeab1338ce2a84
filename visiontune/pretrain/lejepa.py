"""LeJEPA. Balestriero and LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"
(arXiv 2511.08544).

B pictures, V views, E width of the projection.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune.backbones import any_size
from visiontune.heads.projector import projector
from visiontune.losses import sigreg, spread
from visiontune.module import Module
from visiontune.pretrain._parts import global_and_local
from visiontune.ranges import OpenFraction, PositiveInt

# Section 6.1: two global and eight local views are recommended (its experiments take six). The authors' README: DINO's colours, crops
# from a share of 0.3 and of 0.05 on; local ones of 98 pixels there, for patches of 14.
VIEWS = {
    "views": 2, "crop_scale": (0.3, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
    "grey": 0.2, "blur": 0.5, "solarize": 0.2, "local": {"views": 8, "image_size": 96, "crop_scale": (0.05, 0.3)},
}  # fmt: skip
# The authors' README: AdamW, learning rate 5e-4 whatever the batch, weight decay 5e-2 for transformers (5e-4 for ResNets).
OPTIM = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05}


class LeJEPA(Module):
    """All views near the mean of the global ones, and each view's cloud a standard normal one. No teacher, no negatives. Any backbone.

    Args:
        regularization: weight of the cloud's distance from a normal one, the paper's lambda; that of the prediction is the rest of 1.
        directions: random directions in which the cloud is tested, drawn anew at each step.
        projector_hidden: width of the projector's hidden layers.
        projector_out: width of the projection.
        projector_layers: linear layers of the projector.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        regularization: OpenFraction = 0.05,
        directions: PositiveInt = 1024,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 64,
        projector_layers: PositiveInt = 3,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = any_size(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        self.regularization, self.directions = regularization, directions
        self.projector = projector(self.face.width, projector_hidden, projector_out, layers=projector_layers, last="bias")
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = global_and_local(self, batch)
        z = self.projector(self.embed_views(views)).unflatten(0, (len(views), -1)).float()  # (V, B, E)
        prediction = (z - z[:2].mean(dim=0)).square().mean()
        generator = torch.Generator(z.device).manual_seed(self.step)  # the same directions on every process
        cloud = sigreg(z, directions=self.directions, generator=generator)
        loss = (1 - self.regularization) * prediction + self.regularization * cloud
        self.record(loss=loss, prediction=prediction, sigreg=cloud, spread=spread(z[0]))
        return loss
