"""DINO. Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (arXiv 2104.14294).

B pictures, V views, K prototypes.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune import optim
from visiontune.backbones import any_size
from visiontune.heads.prototypes import Centring, PrototypeHead
from visiontune.losses import cross_entropy_between_views, spread
from visiontune.module import Module
from visiontune.pretrain._parts import global_and_local, unset
from visiontune.ranges import Fraction, OpenFraction, PositiveFloat, PositiveInt, SeveralInt
from visiontune.teacher import Teacher, entropies

# Section 3.2 and the authors' code: BYOL's colours; two crops of 224 and eight of 96 pixels.
VIEWS = {
    "views": 2, "crop_scale": (0.4, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
    "local": {"views": 8, "image_size": 96, "crop_scale": (0.05, 0.4), "blur": 0.5, "solarize": 0.0},
}  # fmt: skip
# Section 3.2: AdamW, learning rate 5e-4 for a batch of 256, weight decay from 0.04 to 0.4.
OPTIM = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4}
# A prototype needs pictures of its own; with few steps the teacher must follow faster.
BY_PICTURES = {
    "prototypes": ((20_000, 1024), (200_000, 4096), (1_000_000, 16_384), (None, 65_536)),
    "teacher_temperature": ((20_000, 0.02), (200_000, 0.04), (None, 0.07)),
    "momentum_start": ((50_000, 0.99), (None, 0.996)),
}  # fmt: skip


class DINO(Module):
    """Tell, from small crops, which prototypes an average of the network sees in large ones. For any timm backbone.

    Args:
        prototypes: outputs of the head; None: 65,536, in a recipe by the number of pictures.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's, after its warm-up; lower is sharper. None: 0.07, in a recipe by the number of pictures.
        teacher_temperature_start: of the teacher's at the first step; None: 0.04, or `teacher_temperature` where that is lower.
        teacher_warmup: share of the run until `teacher_temperature` is reached.
        momentum_start: share of the old weights in the teacher at the first step; rises to 1. None: 0.996, in a recipe by the number of
            pictures.
        center_momentum: share of the old mean in the running mean of the teacher's logits.
        freeze_prototypes: share of the run in which the student's prototypes stay as they are; the authors freeze them for an epoch.
        projector_hidden: width of the head's hidden layers.
        projector_out: width of the head's narrow end.
        projector_layers: linear layers of the head.
        projector_norm: batch norms in the head.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM
    KEEPS = "teacher"  # section 3.1: it performs better than the student throughout the training

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        prototypes: SeveralInt | None = None,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat | None = None,
        teacher_temperature_start: PositiveFloat | None = None,
        teacher_warmup: Fraction = 0.1,
        momentum_start: OpenFraction | None = None,
        center_momentum: Fraction = 0.9,
        freeze_prototypes: Fraction = 0.01,
        projector_hidden: PositiveInt = 2048,
        projector_out: PositiveInt = 256,
        projector_layers: PositiveInt = 3,
        projector_norm: bool = False,
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = any_size(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        self.student_temperature, self.freeze_prototypes = student_temperature, freeze_prototypes
        end = unset(teacher_temperature, BY_PICTURES["teacher_temperature"])
        start = min(0.04, end) if teacher_temperature_start is None else teacher_temperature_start
        self.teacher_temperatures, self.teacher_warmup = (start, end), teacher_warmup
        K = unset(prototypes, BY_PICTURES["prototypes"])
        self.head = PrototypeHead(
            self.face.width,
            hidden_dim=projector_hidden,
            bottleneck=projector_out,
            prototypes=K,
            layers=projector_layers,
            norm=projector_norm,
        )
        momentum = (unset(momentum_start, BY_PICTURES["momentum_start"]), 1.0)
        self.teacher = Teacher(momentum=momentum, backbone=self.backbone, head=self.head)
        self.centring = Centring(K, center_momentum)
        self.load_rest_of(common.get("weights"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = global_and_local(self, batch)
        student = self.head(self.embed_views(views)).unflatten(0, (len(views), -1))  # (V, B, K)
        with torch.no_grad():
            z = self.embed_views(views[:2], self.teacher.backbone)
            warmup = round(self.teacher_warmup * self.scheduled_steps)
            shares = self.centring(self.teacher.head(z), optim.linear(self.step, warmup, *self.teacher_temperatures)).unflatten(0, (2, -1))
        loss = cross_entropy_between_views(student / self.student_temperature, shares)
        one, mean = entropies(shares[0])
        self.record(loss=loss, teacher_entropy=one, teacher_marginal=mean, spread=spread(z[: len(z) // 2]))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.step < self.freeze_prototypes * self.scheduled_steps:
            self.head.prototypes.weight.grad = None
