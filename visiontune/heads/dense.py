"""What a head predicts at every position, or for every query, as boxes: the best candidates of each level, of those that overlap the best,
best first.

Tensors of fixed sizes, and no Python that hangs on their values, so that a graph can hold it. B pictures, P positions (of a level, or of
all), K classes, C candidates of all levels, D detections. Boxes are xyxy in pixels of the network's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from visiontune.boxes import Boxes

Level = tuple[Tensor, Tensor]  # boxes (B, P, 4), scores (B, P, K)
# Boxes, scores, labels and the largest overlap -> (B, C), 1 where a candidate is kept, else 0. Those with score 0 are none.
Suppress = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Limits:
    """Which candidates become detections.

    Attributes:
        num_classes: K.
        score: detections have a higher one.
        nms: largest overlap (IoU) of two detections of one class; None: any.
        candidates: at most so many of a level.
        detections: at most so many of a picture.
    """

    num_classes: int
    score: float
    nms: float | None
    candidates: int
    detections: int

    @staticmethod
    def of(net: Any, num_classes: int) -> "Limits":
        """Those of torchvision's `FCOS` and `RetinaNet`, by their names there."""
        return Limits(num_classes, net.score_thresh, net.nms_thresh, net.topk_candidates, net.detections_per_img)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression, each class by itself: `(B, C, 4)`, `(B, C)`, `(B, C)` -> `(B, C)`, 1 where a candidate is kept, else 0."""
    kept = torch.zeros_like(scores)
    for picture, xyxy, score, label in zip(kept, boxes, scores, labels, strict=True):
        (alive,) = torch.where(score > 0)
        picture[alive[batched_nms(xyxy[alive], score[alive], label[alive], iou)]] = 1
    return kept


def best(levels: Sequence[Level], limits: Limits, suppress: Suppress = suppress) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of each picture, the highest score first; where there are fewer than D, the rest has score 0.

    Args:
        levels: a pair of `(B, P, 4)` and `(B, P, K)` each.
        limits: see there.
        suppress: what decides among candidates that overlap; a graph has its own.

    Returns:
        `(B, D, 4)`, `(B, D)`, `(B, D)` int64, D the lower of `limits.detections` and C.
    """
    boxes, scores, labels = candidates(levels, limits)
    if limits.nms is not None:
        scores = scores * suppress(boxes, scores, labels, limits.nms)
    scores, at = scores.topk(min(limits.detections, scores.shape[1]))
    return _rows(boxes, at), scores, labels.gather(1, at)


def candidates(levels: Sequence[Level], limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """Those with the highest scores of each level, `(B, C, 4)`, `(B, C)`, `(B, C)`; what is below the limit or has no area gets score 0."""
    found = [_candidates(*level, limits.candidates) for level in levels]
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    there = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1) & (scores > limits.score)
    return boxes, scores.where(there, 0.0), labels


def _candidates(boxes: Tensor, scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    P, K = scores.shape[1:]
    scores, at = scores.flatten(1).topk(min(most, P * K))  # (B, C) of this level
    return _rows(boxes, at // K), scores, at % K


def _rows(boxes: Tensor, at: Tensor) -> Tensor:
    """`(B, P, 4)` and `(B, C)` -> `(B, C, 4)`."""
    return boxes.gather(1, at[..., None].expand(-1, -1, 4))


def cut(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes `(..., 4)` cut to a picture's rows and columns."""
    H, W = image_size
    return torch.stack([boxes[..., 0::2].clamp(0, W), boxes[..., 1::2].clamp(0, H)], dim=-1).flatten(-2)


def moved(anchors: Tensor, shifts: Tensor, *, largest: float) -> Tensor:
    """Anchors `(P, 4)` moved and stretched by `(B, P, 4)`: to the side in shares of their sides, in size by the logarithm of a factor.

    Args:
        anchors: xyxy.
        shifts: x, y, width, height.
        largest: bound of the last two, before the exponential.

    Source: R-CNN (arXiv 1311.2524), appendix C.
    """
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = shifts[..., :2] * sides + anchors[:, :2] + 0.5 * sides
    half = 0.5 * shifts[..., 2:].clamp(max=largest).exp() * sides
    return torch.cat([centres - half, centres + half], dim=-1)


def by_level(boxes: Tensor, scores: Tensor, counts: Sequence[int]) -> list[Level]:
    """`(B, P, 4)` and `(B, P, K)` of all levels apart again."""
    return list(zip(boxes.split(list(counts), dim=1), scores.split(list(counts), dim=1), strict=True))


def as_boxes(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Boxes]:
    """What `best` gives, a `Boxes` a picture, without what only fills up."""
    return [Boxes(xyxy, label, score).take(score > 0) for xyxy, score, label in zip(boxes, scores, labels, strict=True)]
