"""Distillation without labels: a student learns to give a teacher's embedding and patch features.

The losses are those of AM-RADIO (Ranzinger et al. 2024, "AM-RADIO: Agglomerative Vision Foundation Model", arXiv 2312.06709), section
3.4; that teacher and student must see the same crop, and be patient, is Beyer et al. 2022, "Knowledge distillation: A good teacher is
patient and consistent" (arXiv 2106.05237). Deviation: one teacher, and adaptors of one linear layer for patches.

B pictures, N cells of the teacher's grid, D width of the student, E width of the teacher.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune import backbones
from visiontune.errors import UserError
from visiontune.heads.projector import projector
from visiontune.losses import feature_distance, negative_cosine, spread
from visiontune.module import Module
from visiontune.ranges import NonNegativeFloat, PositiveInt

# Beyer et al., section 3.1.1: random crops, which both networks see alike; how small they may be, and the colours, are ours.
VIEWS = {"crop_scale": (0.14, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
# Ours: a usual AdamW.
OPTIM = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05}


class Distill(Module):
    """Give what a teacher gives, of any timm backbone for any timm backbone: a small network from a large one, without labels.

    Args:
        teacher: timm's name, a run folder, or an exported folder; in Python also a timm module.
        teacher_weights: of a teacher given by name: `timm` (fetched), or a weights file.
        teacher_image_size: pixels of a side that pictures are resized to for the teacher; None: as they are for the student.
        embedding_weight: weight of the distance between embeddings.
        patch_weight: weight of the distance between patch features; 0 where one of the two has no grid of them.
        projector_hidden: width of the layer between the student's embedding and the teacher's.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        teacher: str,
        teacher_weights: str = "timm",
        teacher_image_size: PositiveInt | None = None,
        embedding_weight: NonNegativeFloat = 1.0,
        patch_weight: NonNegativeFloat = 1.0,
        projector_hidden: PositiveInt = 2048,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        if isinstance(teacher, nn.Module):
            noted: Any = (self._hparams, self._hparams_initial)
            for hyperparameters in noted:
                hyperparameters["teacher"] = ""  # a module is no hyperparameter: it is asked for again
        self.guide_size = (teacher_image_size, teacher_image_size) if teacher_image_size else self.picture_size
        guide, mean, std = load_teacher(teacher, teacher_weights, self.guide_size, self.spec.channels)
        # In a tuple it is in no checkpoint, optimiser or gradient bucket; `_apply` moves it along.
        self._guide = (guide.requires_grad_(False).eval(),)
        self.register_buffer("guide_mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("guide_std", std.view(1, -1, 1, 1), persistent=False)
        face = backbones.describe(guide, self.guide_size, self.spec.channels)
        size = sum(p.numel() for p in guide.parameters())
        name, (rows, columns) = teacher if isinstance(teacher, str) else type(guide).__name__, self.guide_size
        self.notes.append(f"teacher {name}: {size / 1e6:.2f} M parameters, embedding of {face.width}, pictures of {rows}x{columns}")
        self.embedding_weight, self.patch_weight = embedding_weight, patch_weight
        if self.face.token_width is None or face.token_width is None:
            self.patch_weight = 0.0
            self.notes.append("patch features: left out, for one of the two networks has no grid of them")

        # ------------------------------------------------------------ what brings the student's widths to the teacher's
        self.projector = projector(self.face.width, projector_hidden, face.width, last="bias")
        self.patch_projector = nn.Conv2d(self.face.token_width, face.token_width, kernel_size=1) if self.patch_weight else None  # type: ignore[arg-type]
        self.load_rest_of(common.get("weights"))

    @property
    def guide(self) -> nn.Module:
        """The network that teaches, frozen."""
        return self._guide[0]

    def _apply(self, fn: Any, recurse: bool = True) -> "Distill":
        self._guide[0]._apply(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def ask(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures normalised for the student -> the teacher's embedding `(B, E)` and patch features `(B, E', h, w)`."""
        images = (images * self.std + (self.mean - self.guide_mean)) / self.guide_std
        if self.guide_size != self.picture_size:
            images = F.interpolate(images, size=self.guide_size, mode="bicubic", align_corners=False, antialias=True)
        if not self.patch_weight:
            return backbones.embed(self.guide, images), None
        return backbones.embed_and_tokens(self.guide, images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = self.views(batch)[0]
        wanted, wanted_patches = self.ask(images)
        if self.patch_projector is None or wanted_patches is None:
            told = self.projector(self.embed_views([images]))
            patches = torch.zeros((), device=images.device)
        else:
            embedding, maps = backbones.embed_and_tokens(self.backbone, images)
            told = self.projector(embedding)
            maps = F.interpolate(self.patch_projector(maps), size=wanted_patches.shape[-2:], mode="bilinear", align_corners=False)
            patches = feature_distance(maps.flatten(2).mT, wanted_patches.flatten(2).mT)  # (B, N, E) each
        pictures = 1 + negative_cosine(told, wanted)
        loss = self.embedding_weight * pictures + self.patch_weight * patches
        self.record(loss=loss, picture=pictures, patch=patches, spread=spread(told))
        return loss

    @property
    def encoders(self) -> list[nn.Module]:
        return [self.backbone, self.guide]


def own_weights(teacher: str, weights: str, side: Any, channels: int) -> nn.Module:
    """A teacher by its timm name, with weights that know something."""
    if weights == "random":
        raise UserError(f"of random weights, {teacher} knows nothing; set method.teacher_weights to `timm` or to a weights file")
    try:
        guide = backbones.create(teacher, image_size=side, channels=channels, pretrained=weights == "timm")
        if weights != "timm":
            backbones.load_weights(guide, weights)
    except UserError as error:
        told = str(error).removesuffix(", or random")
        raise UserError(told.replace("backbone.weights", "method.teacher_weights")) from error
    return guide


def load_teacher(teacher: str | nn.Module, weights: str, size: tuple[int, int], channels: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, and the mean and standard deviation that its pictures are normalised with.

    Raises:
        UserError: if there is no such network, or it cannot take these pictures.
    """
    side: Any = size[0] if size[0] == size[1] else size
    config: dict[str, Any] | None = None
    try:
        if isinstance(teacher, nn.Module):
            guide = teacher
        elif not teacher:
            raise UserError(
                "is empty; give a name or a folder; for a checkpoint that was made with a module of your own, that module again: "
                "load_from_checkpoint(path, teacher=...)"
            )
        elif Path(teacher).exists():
            config = backbones.read_config(Path(teacher))
            if config is None:
                raise UserError(
                    f"{teacher} does not say which backbone it is; give a run folder, or an exported folder with its config.json"
                )
            args = {k: v for k, v in config.get("model_args", {}).items() if k not in ("img_size", "in_chans")}
            guide = backbones.create(config["architecture"], image_size=side, channels=channels, args=args)
            backbones.load_weights(guide, teacher)
        else:
            if problem := backbones.check_name(teacher):
                raise UserError(f"got {teacher!r}, which is no file or folder, and {problem}")
            guide = own_weights(teacher, weights, side, channels)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error
    kept = (config or {}).get("pretrained_cfg") or getattr(guide, "pretrained_cfg", None) or {}
    values = [kept.get(k, (0.5,) * channels) for k in ("mean", "std")]
    mean, std = (torch.tensor(v if len(v) == channels else [sum(v) / len(v)] * channels, dtype=torch.float32) for v in values)
    return guide, mean, std
