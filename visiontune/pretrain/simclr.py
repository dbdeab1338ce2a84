"""SimCLR. Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709).

B pictures, D width of the embedding, E width of the projection.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.losses import nt_xent, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views
from visiontune.ranges import PositiveFloat, PositiveInt

# Appendix A: random resized crop, flip, colour jitter of strength 1 with probability 0.8, grey 0.2, blur 0.5 with sigma 0.1 to 2.
VIEWS = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
    "hue": 0.2, "grey": 0.2, "blur": 0.5,
}  # fmt: skip
# Section 2.2 and appendix B.6: LARS, learning rate 0.3 for a batch of 256, weight decay 1e-6.
OPTIM = {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "momentum": 0.9}


class SimCLR(Module):
    """Pull two views of a picture together, push all other pictures of the batch away. For any timm backbone.

    Args:
        temperature: of the loss; the paper takes 0.1 with batches of 4096 on ImageNet, and finds 0.5 best on CIFAR-10 (appendix B.9).
        projector_hidden: width of the projector's hidden layer.
        projector_out: width of the projection that the loss compares.
        projector_layers: linear layers of the projector.
        projector_shift: whether its last batch norm has a shift beside its scale. The authors' has none. With one, embeddings may move off
            the centre together, and at low temperatures a short run begins with a lower loss.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        temperature: PositiveFloat = 0.1,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 128,
        projector_layers: PositiveInt = 2,
        projector_shift: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature = temperature
        self.projector = projector(
            self.face.width,
            projector_hidden,
            projector_out,
            layers=projector_layers,
            last="shifted_norm" if projector_shift else "scaled_norm",  # the latter as in the authors' code: `center=False`
        )
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # one forward for both views: batch norm sees them together, as in the authors' code
        z0, z1 = self.projector(self.embed_views(two_views(self, batch))).chunk(2)  # (B, E) each
        loss = nt_xent(z0, z1, self.temperature)
        self.record(loss=loss, spread=spread(z0))
        return loss
