"""RetinaNet: nine anchors a position, classified under a focal loss and shifted. Lin et al. 2017 (arXiv 1708.02002).

The network, the matching and the losses are torchvision's; B pictures, A anchors of all levels, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models import detection

from visiontune.boxes import Boxes
from visiontune.heads import dense
from visiontune.heads.detect._shared import LEVELS, Anchors, Coarser, Width, as_dicts, exact, floats, full_precision, predict_densely

RATIOS = (0.5, 1.0, 2.0)  # height to width


class Head(detection.RetinaNet):
    """torchvision's detector without its backbone, its resizing and its normalising.

    Anchors are the paper's: of 4 strides and its two thirds of an octave, in three shapes. Its smooth L1 loss of the sides is torchvision's
    plain L1.

    Args:
        width: of the features.
        num_classes: K.
        score_threshold: lowest score of a prediction; the paper's is 0.05.
        max_detections: of a picture.
        nms: largest IoU of two predictions of one class; None: 0.5.
        anchor_size: side of the smallest anchor of a level, in strides: less for smaller things.
    """

    NMS: ClassVar[float] = 0.5  # the paper's, section 4
    CLIP: ClassVar[float | None] = 10.0  # ours: a bound on rare batches; the paper clips nothing

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        score_threshold: float = 0.01,
        max_detections: int = 100,
        nms: float | None = None,
        anchor_size: float = 4.0,
    ) -> None:
        sizes = tuple(tuple(s * anchor_size * 2 ** (third / 3) for third in range(3)) for s in LEVELS)
        super().__init__(
            Width(width),
            num_classes,
            anchor_generator=Anchors(sizes, (RATIOS,) * len(LEVELS)),
            score_thresh=score_threshold,
            nms_thresh=self.NMS if nms is None else nms,
            detections_per_img=max_detections,
        )
        del self.backbone, self.transform
        self.num_classes = num_classes
        self.coarser = Coarser(width)

    def loss(self, features: Sequence[Tensor], targets: Sequence[Boxes], image_size: tuple[int, int]) -> dict[str, Tensor]:
        maps = self.coarser(features)
        outputs = self.head(maps)  # (B, A, K), (B, A, 4); under autocast, where there is one
        anchors = torch.cat(self.anchor_generator.by_level(maps))
        with full_precision(features):
            losses = self.compute_loss(as_dicts(targets), floats(outputs), [anchors] * len(targets))
        return {"classes": losses["classification"], "boxes": losses["bbox_regression"]}

    @property
    def limits(self) -> dense.Limits:
        return dense.Limits.of(self, self.num_classes)

    def dense(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[dense.Level]:
        """Boxes `(B, A, 4)` in pixels, cut to the picture, and scores `(B, A, K)` of all anchors of each level."""
        maps = self.coarser(exact(self, features))
        outputs = floats(self.head(maps))
        anchors = self.anchor_generator.by_level(maps)
        boxes = dense.moved(torch.cat(anchors), outputs["bbox_regression"], largest=self.box_coder.bbox_xform_clip)
        return dense.by_level(dense.cut(boxes, image_size), outputs["cls_logits"].sigmoid(), [len(a) for a in anchors])

    def predict(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Boxes]:
        return predict_densely(self, features, image_size)
