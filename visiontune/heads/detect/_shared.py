"""What the heads share: levels of strides 64 and 128, anchors in float32, and the way between `Boxes` and torchvision's dictionaries."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from visiontune.boxes import Boxes
from visiontune.heads import dense

LEVELS = (8, 16, 32, 64, 128)  # pixels; P3 to P7 in the papers' names


class Coarser(nn.Module):
    """Adds strides 64 and 128 to 8, 16, 32. Source: RetinaNet (arXiv 1708.02002), section 4; FCOS (arXiv 1904.01355) takes them from P5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.p6, self.p7 = (nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1) for _ in range(2))
        for convolution in (self.p6, self.p7):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        p6 = self.p6(features[-1])
        return [*features, p6, self.p7(F.relu(p6))]


class Anchors(AnchorGenerator):
    """torchvision's, in float32 whatever the features are, of true strides, and around the centres of positions.

    torchvision's take the features' type, in which bfloat16 counts pixels beyond 256 by twos; strides of the size of the picture over that
    of the map, wrong where a map was rounded up; and the corner of each position as its centre, half a stride off the papers' and of what a
    patch covers.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        anchors = torch.cat(self.by_level(feature_maps))
        return [anchors] * len(image_list.image_sizes)

    def by_level(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """`(h * w * a, 4)` of each level, xyxy in pixels."""
        if self.cell_anchors[0].device != feature_maps[0].device:  # float32 they are
            self.set_cell_anchors(torch.float32, feature_maps[0].device)
        steps: Any = [[stride, stride] for stride in LEVELS]
        grids: Any = [m.shape[-2:] for m in feature_maps]
        return [a + stride / 2 for a, stride in zip(self.grid_anchors(grids, steps), LEVELS, strict=True)]


class Width(nn.Module):
    """Stands for the backbone where torchvision's constructors ask one for its width."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


def covered(features: Sequence[Tensor]) -> tuple[int, int]:
    """Rows and columns of pixels that the features lie over: the picture's, filled up."""
    return features[0].shape[-2] * LEVELS[0], features[0].shape[-1] * LEVELS[0]


def as_dicts(targets: Sequence[Boxes], *, first_label: int = 0) -> list[dict[str, Tensor]]:
    """For torchvision. `first_label` is 1 where it keeps label 0 for the background."""
    return [{"boxes": t.xyxy.float(), "labels": t.labels + first_label} for t in targets]


def as_boxes(found: Sequence[dict[str, Tensor]], image_size: tuple[int, int], *, first_label: int = 0) -> list[Boxes]:
    """From torchvision, cut to the picture; what lies beside it, where the picture was filled up, goes."""
    boxes = [Boxes(f["boxes"].float(), f["labels"] - first_label, f["scores"].float()).clip(*image_size) for f in found]
    return [b.with_area() for b in boxes]


def exact(head: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """Features in the type of the head's weights: with autocast off, predictions are then as exact as they are."""
    dtype = next(head.parameters()).dtype
    return [x.to(dtype) for x in features]


def floats(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() for k, v in outputs.items()}


def full_precision(features: Sequence[Tensor]) -> torch.autocast:
    """No autocast inside: boxes of bfloat16 are off by pixels."""
    return torch.autocast(features[0].device.type, enabled=False)


def predict_densely(net: Any, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Boxes]:
    """Boxes of a head that predicts at every position of every level, or for every query: in fp32 throughout. See `Head.dense` of FCOS."""
    with full_precision(features):
        return dense.as_boxes(*dense.best(net.dense(features, image_size), net.limits))
