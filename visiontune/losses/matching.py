"""Which query stands for which box of the truth: one to one by the Hungarian method, or fixed for queries that are noised truth.

S predictions of one network (its layers), B pictures, Q queries, K classes, M boxes of the picture that has most. Boxes are
`(x, y, width, height)`, the centre first, as shares of the picture. An assignment `(..., Q)` is the index of a query's box, -1 for none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visiontune.losses.precision import full_precision


@dataclass(frozen=True)
class Truth:
    """The boxes of a batch, filled up to the most that one picture has.

    Attributes:
        boxes: `(B, M, 4)`; zeros where there is none.
        labels: `(B, M)`; -1 where there is none.
        counts: boxes of each picture.
    """

    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]

    @staticmethod
    def of(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> "Truth":
        """`(M_i, 4)` and `(M_i,)` of each picture."""
        counts = tuple(len(b) for b in boxes)
        padded = pad_sequence(list(boxes), batch_first=True), pad_sequence(list(labels), batch_first=True, padding_value=-1)
        return Truth(*padded, counts)


@torch.no_grad()
@full_precision
def match(logits: Tensor, boxes: Tensor, truth: Truth, *, alpha: float = 0.25, gamma: float = 2.0) -> np.ndarray:
    """The assignment `(S, B, Q)` of least cost for each prediction and picture, on the CPU: the one transfer of a step, for all layers.

    Source: DETR (arXiv 2005.12872), section 3.1, with the focal cost of Deformable DETR (arXiv 2010.04159); weights of 2 for
    the class, 5 for L1 and 2 for GIoU as there. What is not finite is matched last.

    Args:
        logits: `(S, B, Q, K)`.
        boxes: `(S, B, Q, 4)`.
        truth: of the B pictures.
        alpha, gamma: of the focal cost.
    """
    S, B, Q, _ = logits.shape
    assigned = np.full((S, B, Q), -1, dtype=np.int64)
    if not any(truth.counts):
        return assigned
    M = truth.labels.shape[1]
    p = logits.sigmoid().gather(-1, truth.labels.clamp(min=0)[None, :, None].expand(S, B, Q, M))
    classes = alpha * (1 - p) ** gamma * -(p + 1e-8).log() - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    l1 = torch.cdist(boxes, truth.boxes.expand(S, B, M, 4), p=1)
    _, giou = overlaps(corners(boxes)[..., None, :], corners(truth.boxes)[None, :, None])
    cost = (2 * classes + 5 * l1 - 2 * giou).nan_to_num(1e9, 1e9, 1e9).cpu().numpy()  # (S, B, Q, M)
    for s in range(S):
        for b, count in enumerate(truth.counts):
            rows, columns = linear_sum_assignment(cost[s, b, :, :count])
            assigned[s, b, rows] = columns
    return assigned


def union(assigned: np.ndarray, boxes: int) -> np.ndarray:
    """`(S, B, Q)` of up to M `boxes` a picture -> `(B, Q)`: whatever any layer matched, and of several boxes the one of most layers.

    Source: D-FINE (arXiv 2410.13842), section 4.2, "union set".

    >>> union(np.array([[[0, -1, -1]], [[-1, 0, 1]], [[-1, 0, 0]], [[-1, -1, 1]]]), 2).tolist()
    [[0, 0, 1]]
    """
    votes = (assigned[..., None] == np.arange(boxes)).sum(axis=0)  # (B, Q, M)
    return np.where(votes.any(axis=-1), votes.argmax(axis=-1), -1) if boxes else assigned[0]


def noised_assignment(truth: Truth, groups: int) -> Tensor:
    """`(B, groups * 2 * M)`: of each group of noised boxes the first M stand for theirs, the others, noised more, for none.

    Source: contrastive denoising, DINO (arXiv 2203.03605), section 3.3.
    """
    M = truth.labels.shape[1]
    index = torch.arange(M, device=truth.labels.device)
    near = torch.where(truth.labels >= 0, index, -1)  # (B, M)
    return torch.cat([near, torch.full_like(near, -1)], dim=1).repeat(1, groups)


def corners(boxes: Tensor) -> Tensor:
    """`(x, y, width, height)` -> `(x1, y1, x2, y2)`, any leading sizes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centres(boxes: Tensor) -> Tensor:
    """The way back.

    >>> centres(corners(torch.tensor([0.5, 0.25, 0.125, 0.5])))
    tensor([0.5000, 0.2500, 0.1250, 0.5000])
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of corners `(..., 4)`, element by element; nothing is checked, so nothing waits."""
    least = torch.finfo(a.dtype).eps ** 2  # an area that is none
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    joint = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[..., 2:] - b[..., :2]).prod(dim=-1) - inner
    iou = inner / joint.clamp(min=least)
    return iou, iou - (outer - joint) / outer.clamp(min=least)
