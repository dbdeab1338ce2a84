"""iBOT. Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer" (arXiv 2111.07832).

Deviations: half of the global views are masked, each by `mask_ratio` of its patches, where the authors draw whether and how much for
each; no step waits for the device so. Networks whose patches overlap or are pooled (convolutional ones too) hide squares of the last
grid, by the mean colour where there is no token to replace.

B pictures, V views, R masked views of M hidden cells, D width, K prototypes.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune import optim
from visiontune.backbones import any_size, embed_and_tokens
from visiontune.backbones.hiding import Hiding
from visiontune.backbones.install import restore
from visiontune.heads.prototypes import Centring, PrototypeHead
from visiontune.losses import cross_entropy, cross_entropy_between_views, spread
from visiontune.masking import HalfMasked, half_masked
from visiontune.module import Module
from visiontune.pretrain._parts import global_and_local, grid_of_cells, unset
from visiontune.ranges import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt, SeveralInt
from visiontune.teacher import Teacher, entropies

# Appendix B: DINO's, with ten small crops, and 0.32 of the area between small and large ones.
VIEWS = {
    "views": 2, "crop_scale": (0.32, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
    "local": {"views": 10, "image_size": 96, "crop_scale": (0.05, 0.32), "blur": 0.5, "solarize": 0.0},
}  # fmt: skip
# Section 3.2: AdamW, learning rate 5e-4 for a batch of 256; the authors' code: weight decay from 0.04 to 0.4.
OPTIM = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4}
BY_PICTURES = {
    "prototypes": ((20_000, 1024), (200_000, 2048), (1_000_000, 4096), (None, 8192)),
    "teacher_temperature": ((20_000, 0.02), (200_000, 0.04), (None, 0.07)),
    "momentum_start": ((50_000, 0.99), (None, 0.996)),
}  # fmt: skip


class IBOT(Module):
    """DINO, and besides tell from the rest of a view which prototypes the teacher sees in its hidden patches. For any timm backbone.

    Args:
        prototypes: outputs of the head that pictures and patches share; None: 8192, in a recipe by the number of pictures.
        mask_ratio: share of patches hidden in a masked view.
        patch_weight: weight of the patches' loss; the picture's is 1.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's, after its warm-up; lower is sharper. None: 0.07, in a recipe by the number of pictures.
        teacher_temperature_start: of the teacher's at the first step; None: 0.04, or `teacher_temperature` where that is lower.
        teacher_warmup: share of the run until `teacher_temperature` is reached.
        momentum_start: share of the old weights in the teacher at the first step; rises to 1. None: 0.996, in a recipe by the number of
            pictures.
        center_momentum: share of the old mean in the running means of the teacher's logits (of patches: of the hidden ones alone).
        freeze_prototypes: share of the run in which the student's prototypes stay as they are.
        projector_hidden: width of the head's hidden layers.
        projector_out: width of the head's narrow end.
        projector_layers: linear layers of the head.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM
    KEEPS = "teacher"

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        prototypes: SeveralInt | None = None,
        mask_ratio: OpenFraction = 0.3,
        patch_weight: NonNegativeFloat = 1.0,
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
        **common: Any,
    ) -> None:
        if isinstance(backbone, str):
            common["backbone_args"] = any_size(backbone) | (common.get("backbone_args") or {})
        super().__init__(backbone, **common)
        self.grid, D = grid_of_cells(self, "ibot")
        self.mask_ratio, self.patch_weight = mask_ratio, patch_weight
        self.student_temperature, self.freeze_prototypes = student_temperature, freeze_prototypes
        end = unset(teacher_temperature, BY_PICTURES["teacher_temperature"])
        start = min(0.04, end) if teacher_temperature_start is None else teacher_temperature_start
        self.teacher_temperatures, self.teacher_warmup = (start, end), teacher_warmup
        K = unset(prototypes, BY_PICTURES["prototypes"])

        # ------------------------------------------------------------ one head for pictures and patches, and an average of it all
        sizes = {"hidden_dim": projector_hidden, "bottleneck": projector_out, "layers": projector_layers}
        self.head = PrototypeHead(self.face.width, prototypes=K, norm=False, **sizes)
        # where the family's embedding and patches are of different widths
        self.adapt = nn.Identity() if self.face.width == D else nn.Linear(D, self.face.width)
        momentum = (unset(momentum_start, BY_PICTURES["momentum_start"]), 1.0)
        self.teacher = Teacher(momentum=momentum, backbone=self.backbone, head=self.head, adapt=self.adapt)
        self.hiding = Hiding(self.backbone, self.face, self.picture_size, self.spec.channels)
        self.centring, self.patch_centring = Centring(K, center_momentum), Centring(K, center_momentum)
        self.load_rest_of(common.get("weights"))

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> HalfMasked:
        """For two global views one after another, `(2 * B, C, H, W)`."""
        return half_masked(images.shape[0], self.grid, self.mask_ratio, device=images.device, generator=generator)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = global_and_local(self, batch)
        both = torch.cat(views[:2])  # (2 * B, C, H, W)
        masks = self.mask(both)

        # ------------------------------------------------------------ teacher: whole views
        with torch.no_grad():
            z, patches = embed_and_tokens(self.teacher.backbone, both)
            temperature = optim.linear(self.step, round(self.teacher_warmup * self.scheduled_steps), *self.teacher_temperatures)
            shares = self.centring(self.teacher.head(z), temperature).unflatten(0, (2, -1))  # (2, B, K)
            wanted = self.teacher.head(self.teacher.adapt(masks.take_hidden(patches)))  # (R, M, K)
            patch_shares = self.patch_centring(wanted, temperature)

        # ------------------------------------------------------------ student: masked global views, local views
        with self.hiding(both, masks.hidden) as seen:
            embedding, patches = embed_and_tokens(self.backbone, seen)
        if len(views) > 2:
            embedding = torch.cat([embedding, self.embed_views(views[2:])])
        told = self.head(embedding).unflatten(0, (len(views), -1)) / self.student_temperature  # (V, B, K)
        patch_told = self.head(self.adapt(masks.take_hidden(patches))) / self.student_temperature

        picture_loss = cross_entropy_between_views(told, shares)
        patch_loss = cross_entropy(patch_told, patch_shares) * (len(masks.rows) / len(both))  # views without hidden patches count as 0
        loss = picture_loss + self.patch_weight * patch_loss
        one, mean = entropies(shares[0])
        watched = {"teacher_entropy": one, "teacher_marginal": mean, "spread": spread(z[: len(z) // 2])}
        self.record(loss=loss, picture=picture_loss, patch=patch_loss, **watched)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.step < self.freeze_prototypes * self.scheduled_steps:
            self.head.prototypes.weight.grad = None

    def release(self) -> nn.Module:
        restore(self.backbone)
        return super().release()
