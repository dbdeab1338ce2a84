"""FCOS: every position inside a box, near its centre, predicts its four sides. Tian et al. 2019 (arXiv 1904.01355).

The network, the matching and the losses are torchvision's; B pictures, P positions of all levels, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models import detection

from visiontune.boxes import Boxes
from visiontune.heads import dense
from visiontune.heads.detect._shared import LEVELS, Anchors, Coarser, Width, as_dicts, exact, floats, full_precision, predict_densely
from visiontune.losses.gather import mean_over_processes


class Towers(detection.fcos.FCOSHead):
    """torchvision's, its losses divided by how many positions learn boxes on an average process, not on this one."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        own = torch.stack(matched_idxs).ge(0).sum().float()
        share = own.clamp(min=1) / mean_over_processes(own).clamp(min=1)
        return {name: loss * share for name, loss in losses.items()}


class Head(detection.FCOS):
    """torchvision's detector without its backbone, its resizing and its normalising.

    As there: group norms in the head, GIoU loss, centre sampling, centredness with the sides, sides in strides behind a ReLU (improvements
    of arXiv 2006.09214). Otherwise than there: positions are centres of what they stand for, as in the paper; scores from
    0.01 on count, where torchvision's 0.2 cuts the precision-recall curve.

    Args:
        width: of the features; a multiple of 32, for the group norms, which want 64 or more of a single small picture.
        num_classes: K.
        score_threshold: lowest score of a prediction.
        max_detections: of a picture.
        nms: largest IoU of two predictions of one class; None: 0.6.
        center_radius: how far from a box's centre a position may learn from it, in strides.
        convolutions: before each prediction.
    """

    NMS: ClassVar[float] = 0.6  # the paper's, and torchvision's
    CLIP: ClassVar[float | None] = 10.0  # ours: a bound on rare batches; the paper clips nothing

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        score_threshold: float = 0.01,
        max_detections: int = 100,
        nms: float | None = None,
        center_radius: float = 1.5,
        convolutions: int = 4,
    ) -> None:
        super().__init__(
            Width(width),
            num_classes,
            anchor_generator=Anchors(tuple((s,) for s in LEVELS), ((1.0,),) * len(LEVELS)),
            head=Towers(width, 1, num_classes, convolutions),
            center_sampling_radius=center_radius,
            score_thresh=score_threshold,
            nms_thresh=self.NMS if nms is None else nms,
            detections_per_img=max_detections,
        )
        del self.backbone, self.transform
        self.num_classes = num_classes
        self.coarser = Coarser(width)

    def loss(self, features: Sequence[Tensor], targets: Sequence[Boxes], image_size: tuple[int, int]) -> dict[str, Tensor]:
        maps = self.coarser(features)
        outputs = self.head(maps)  # (B, P, K), (B, P, 4), (B, P, 1); under autocast, where there is one
        anchors = self.anchor_generator.by_level(maps)
        with full_precision(features):
            losses = self.compute_loss(as_dicts(targets), floats(outputs), [torch.cat(anchors)] * len(targets), [len(a) for a in anchors])
        return {"classes": losses["classification"], "boxes": losses["bbox_regression"], "centers": losses["bbox_ctrness"]}

    @property
    def limits(self) -> dense.Limits:
        return dense.Limits.of(self, self.num_classes)

    def dense(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[dense.Level]:
        """Boxes `(B, P, 4)` in pixels, cut to the picture, and scores `(B, P, K)` at all positions of each level."""
        maps = self.coarser(exact(self, features))
        outputs = floats(self.head(maps))
        anchors = self.anchor_generator.by_level(maps)
        boxes = self.box_coder.decode(outputs["bbox_regression"], torch.cat(anchors))
        # the square root of their product (arXiv 2006.09214, section 3.3), so that scores are comparable to others'
        scores = (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
        return dense.by_level(dense.cut(boxes, image_size), scores, [len(a) for a in anchors])

    def predict(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Boxes]:
        return predict_densely(self, features, image_size)
