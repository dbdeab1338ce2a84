"""Faster R-CNN: proposals from anchors, then each is classified and shifted by what is pooled from it. Ren et al. 2015 (arXiv 1506.01497).

The networks, the matching and the losses are torchvision's, on a pyramid (arXiv 1612.03144); B pictures, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from visiontune.boxes import Boxes
from visiontune.heads.detect._shared import LEVELS, Anchors, as_boxes, as_dicts, covered, exact, full_precision

BACKGROUND = 1  # torchvision keeps label 0 for it here: labels are one higher inside
POOLED = 7  # positions of a side
POOLS = ("8", "16", "32")  # levels that boxes are pooled from


class Head(nn.Module):
    """Proposals and their classifier.

    Args:
        width: of the features.
        num_classes: K.
        score_threshold: lowest score of a prediction; torchvision's is 0.05.
        max_detections: of a picture.
        nms: largest IoU of two predictions of one class; None: 0.5.
        hidden: width of the classifier's two layers.
        anchor_size: side of a level's anchors, in strides: less for smaller things.
    """

    NMS: ClassVar[float] = 0.5  # torchvision's and Detectron2's
    CLIP: ClassVar[float | None] = 10.0  # ours: a bound on rare batches; the paper clips nothing

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        score_threshold: float = 0.01,
        max_detections: int = 100,
        nms: float | None = None,
        hidden: int = 1024,
        anchor_size: float = 4.0,
    ) -> None:
        super().__init__()
        # One scale a level: 32 to 512 pixels, as in the pyramid's paper, section 4.1
        anchors = Anchors(tuple((s * anchor_size,) for s in LEVELS), ((0.5, 1.0, 2.0),) * len(LEVELS))
        # All numbers below are torchvision's, which are the paper's where that has them.
        self.rpn = RegionProposalNetwork(
            anchors,
            FloatRPNHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            FloatRoIAlign(list(POOLS), POOLED, sampling_ratio=2),
            TwoMLPHead(width * POOLED**2, hidden),
            FloatPredictor(hidden, num_classes + BACKGROUND),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=self.NMS if nms is None else nms,
            detections_per_img=max_detections,
        )

    def loss(self, features: Sequence[Tensor], targets: Sequence[Boxes], image_size: tuple[int, int]) -> dict[str, Tensor]:
        _, losses = self._run(features, as_dicts(targets, first_label=BACKGROUND))
        return {
            "proposals": losses["loss_objectness"],
            "proposal_boxes": losses["loss_rpn_box_reg"],
            "classes": losses["loss_classifier"],
            "boxes": losses["loss_box_reg"],
        }

    def predict(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Boxes]:
        with full_precision(features):
            found, _ = self._run(exact(self, features), None)
        return as_boxes(found, image_size, first_label=BACKGROUND)

    def _run(
        self, features: Sequence[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        for part in (self.rpn, self.roi_heads):  # torchvision's ask the mode whether to give losses or boxes; nothing else hangs on it
            part.training = targets is not None
        B, size = len(features[0]), covered(features)
        # "P6 is simply a stride two subsampling of P5" (FPN, footnote 1); likewise the one behind it
        p6 = F.max_pool2d(features[-1], kernel_size=1, stride=2)
        maps = dict(zip(map(str, LEVELS), [*features, p6, F.max_pool2d(p6, kernel_size=1, stride=2)], strict=True))
        images = ImageList(features[0].new_empty(B, 1, 1, 1), [size] * B)
        proposals, proposal_losses = self.rpn(images, maps, targets)
        found, losses = self.roi_heads(maps, proposals, [size] * B, targets)
        return found, losses | proposal_losses


class FloatRPNHead(RPNHead):
    """torchvision decodes boxes in the type of what comes out here."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, sides = super().forward(x)
        return [v.float() for v in logits], [v.float() for v in sides]


class FloatRoIAlign(MultiScaleRoIAlign):
    """torchvision asks that features and boxes have one type, which for boxes is float32."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        dtype = next(iter(x.values())).dtype
        return super().forward({name: x[name].float() for name in POOLS}, boxes, image_shapes).to(dtype)


class FloatPredictor(FastRCNNPredictor):
    """Likewise."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, sides = super().forward(x)
        return scores.float(), sides.float()
