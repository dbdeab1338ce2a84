"""MoCo v2. Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning" (arXiv 2003.04297); the method is that of He et al.
2019, "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv 1911.05722).

Deviation: keys are not shuffled over devices before their batch norms. Where a recipe trains on several CUDA devices, norms are
synchronised over them instead, which also leaves no device's statistics to tell a picture by; on one device, and under a Trainer of
one's own, nothing stands in for it.

B pictures, E width of the projection, L keys in the queue.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.heads.projector import projector
from visiontune.heads.queue import Queue
from visiontune.losses import info_nce_queue, spread
from visiontune.module import Module
from visiontune.pretrain._parts import two_views, unset
from visiontune.ranges import OpenFraction, PositiveFloat, PositiveInt
from visiontune.teacher import Teacher

# Section 3 and the authors' code (--aug-plus).
VIEWS = {
    "views": 2, "crop_scale": (0.2, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "grey": 0.2, "blur": 0.5,
}  # fmt: skip
# The authors' code: SGD, learning rate 0.03 for a batch of 256, weight decay 1e-4.
OPTIM = {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9}
# A queue must be shorter than an epoch, or a picture's own older keys are its negatives; with few steps the teacher must follow faster.
BY_PICTURES = {
    "queue": ((1_000, 64), (5_000, 256), (20_000, 1024), (200_000, 8192), (None, 65_536)),
    "teacher_momentum": ((50_000, 0.99), (500_000, 0.996), (None, 0.999)),
}  # fmt: skip


class MoCoV2(Module):
    """Contrast with a queue of keys that an average of the network made: many negatives at any batch size. For any timm backbone.

    Args:
        temperature: of the loss.
        queue: keys to contrast with; None: 65,536, in a recipe by the number of pictures.
        teacher_momentum: share of the old weights in the teacher at every step; None: 0.999, in a recipe by the number of pictures.
        projector_hidden: width of the projector's hidden layer.
        projector_out: width of the projection.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        temperature: PositiveFloat = 0.2,
        queue: PositiveInt | None = None,
        teacher_momentum: OpenFraction | None = None,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 128,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature = temperature
        self.projector = projector(self.face.width, projector_hidden, projector_out, norm=False, last="bias")
        share = unset(teacher_momentum, BY_PICTURES["teacher_momentum"])
        self.teacher = Teacher(momentum=(share, share), backbone=self.backbone, projector=self.projector)
        self.queue = Queue(unset(queue, BY_PICTURES["queue"]), projector_out)
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        view0, view1 = two_views(self, batch)
        q = self.projector(self.embed_views([view0]))  # (B, E)
        with torch.no_grad():
            k = F.normalize(self.teacher.projector(self.embed_views([view1], self.teacher.backbone)).float(), dim=1)
        loss = info_nce_queue(q, k, self.queue.rows.clone(), self.temperature)
        self.queue.add(k)
        self.record(loss=loss, spread=spread(q))
        return loss
