"""Losses of detectors whose queries are matched one to one with the truth: classes that know how well the box fits, boxes, and the
distributions of D-FINE.

S predictions of one network (its layers), B pictures, Q queries, K classes, N + 1 positions of a distribution. Boxes, assignments and
`Truth` are those of `visiontune.losses.matching`. All losses are sums; the caller divides by the number of boxes. No shape hangs on what is
matched: nothing here waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.losses.matching import Truth, corners, overlaps
from visiontune.losses.precision import full_precision


def matched(truth: Truth, assigned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of an assignment `(..., B, Q)`: the boxes `(..., B, Q, 4)` and labels, those of the first where there is none, and which are."""
    if not truth.labels.shape[1]:
        nothing = torch.zeros_like(assigned)
        return nothing.unsqueeze(-1).expand(*assigned.shape, 4).to(truth.boxes), nothing, assigned >= 0
    picture = torch.arange(assigned.shape[-2], device=assigned.device)[:, None]
    index = assigned.clamp(min=0)
    return truth.boxes[picture, index], truth.labels[picture, index], assigned >= 0


@full_precision
def box_losses(boxes: Tensor, truth: Truth, assigned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of L1 and of 1 - GIoU over the matched of `boxes` `(..., B, Q, 4)`, and the IoU of all, `(..., B, Q)`, 0 without a match.

    Source: DETR (arXiv 2005.12872), section 3.1.
    """
    wanted, _, there = matched(truth, assigned)
    iou, giou = overlaps(corners(boxes), corners(wanted))
    l1 = (boxes - wanted).abs().sum(dim=-1)
    return torch.where(there, l1, 0).sum(), torch.where(there, 1 - giou, 0).sum(), torch.where(there, iou, 0).detach()


@full_precision
def varifocal(logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy with the IoU as target and weight of what is matched, the focal weight on the rest.

    Source: VarifocalNet (arXiv 2008.13367), "varifocal loss"; numbers of RT-DETR (arXiv 2304.08069).

    Args:
        logits: `(..., Q, K)`.
        iou, labels, there: `(..., Q)`, of each query's own match.
        alpha, gamma: of the focal weight.
    """
    hit = _hits(logits, labels, there)
    target = hit * iou.unsqueeze(-1)
    weight = alpha * logits.detach().sigmoid() ** gamma * (1 - hit) + target
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")


@full_precision
def matchability_aware(logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor, *, gamma: float = 1.5) -> Tensor:
    """Binary cross-entropy with the IoU to the power of `gamma` as target: also a match that fits badly weighs fully.

    Source: DEIM (arXiv 2412.04234), "matchability-aware loss". Arguments are those of `varifocal`.
    """
    hit = _hits(logits, labels, there)
    target = hit * iou.unsqueeze(-1) ** gamma
    weight = logits.detach().sigmoid() ** gamma * (1 - hit) + hit
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")


def _hits(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    return ((labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)) & there.unsqueeze(-1)).to(logits.dtype)


def positions(count: int, *, up: float = 0.5, scale: float = 4.0, device: torch.device | str = "cpu") -> Tensor:
    """The weighting function W(n) of N = `count`, `(N + 1,)`: fine about 0, coarse far off, in shares of a side over `scale`.

    Source: D-FINE (arXiv 2410.13842), section 4.1; `up` is its a, 1 / `scale` its c.

    >>> [round(x, 2) for x in positions(8).tolist()]
    [-4.0, -2.0, -1.08, -0.44, 0.0, 0.44, 1.08, 2.0, 4.0]
    """
    end = up * scale
    steps = torch.arange(1, count // 2, device=device, dtype=torch.float32)
    sides = torch.cat([(end + 1) ** (steps * 2 / (count - 2)) - 1, torch.full_like(steps[:1], 2 * end)])
    return torch.cat([-sides.flip(0), torch.zeros_like(steps[:1]), sides])


@full_precision
def fine_grained_localization(
    logits: Tensor, start: Tensor, truth: Truth, assigned: Tensor, iou: Tensor, *, up: float = 0.5, scale: float = 4.0
) -> Tensor:
    """Sum over the matched of the cross-entropy of each side's distribution with the two positions about the true one, times the IoU.

    Source: D-FINE (arXiv 2410.13842), section 4.1, "FGL loss".

    Args:
        logits: of the distributions, `(S, B, Q, 4, N + 1)`: left, top, right, bottom.
        start: boxes that they refine, `(B, Q, 4)`.
        truth, assigned: of the B pictures, `(B, Q)`.
        iou: of each layer's boxes, `(S, B, Q)`.
        up, scale: of `positions`.
    """
    wanted, _, there = matched(truth, assigned)
    N = logits.shape[-1] - 1
    W = positions(N, up=up, scale=scale, device=logits.device).to(start)
    away = torch.cat([start[..., :2] - corners(wanted)[..., :2], corners(wanted)[..., 2:] - start[..., :2]], dim=-1)  # centre to side
    offset = away / (start[..., 2:].repeat(1, 1, 2) / scale).clamp(min=1e-16) - scale / 2  # (B, Q, 4); 0: the start fits
    left = (torch.searchsorted(W, offset.detach().contiguous(), right=True) - 1).clamp(0, N - 1)
    right_share = ((offset - W[left]) / (W[left + 1] - W[left])).clamp(0, 1).detach()
    log_p = logits.log_softmax(dim=-1)
    of_left, of_right = (log_p.gather(-1, (left + i).expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1) for i in (0, 1))
    entropy = -(of_left * (1 - right_share) + of_right * right_share).sum(dim=-1)  # (S, B, Q)
    return (torch.where(there, entropy, 0) * iou).sum()


@full_precision
def self_distillation(logits: Tensor, scores: Tensor, assigned: Tensor, iou: Tensor, *, temperature: float = 5.0) -> Tensor:
    """How far the distributions of earlier layers are from the last one's, a sum of these layers.

    Source: D-FINE (arXiv 2410.13842), section 4.2, "DDF loss": matched queries weighted by their IoU, the others by the last layer's
    certainty, each of the two means by the root of how many there are.

    Args:
        logits: `(S, B, Q, 4, N + 1)`, the last layer last.
        scores: of the last layer, as logits, `(B, Q, K)`.
        assigned: `(B, Q)`.
        iou: `(S, B, Q)`.
        temperature: of both sides.
    """
    student = (logits[:-1] / temperature).log_softmax(dim=-1)
    teacher = (logits[-1:].detach() / temperature).log_softmax(dim=-1).expand_as(student)
    apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2  # (S - 1, B, Q, 4)
    there = assigned >= 0
    certain = scores.detach().sigmoid().amax(dim=-1)
    apart = apart.mean(dim=-1) * torch.where(there, iou[:-1], certain)  # the same number of sides for every query
    of_matched, of_others = there.sum(), (~there).sum()
    near = torch.where(there, apart, 0).sum(dim=(1, 2)) / of_matched.clamp(min=1)
    far = torch.where(there, 0, apart).sum(dim=(1, 2)) / of_others.clamp(min=1)
    a, b = of_matched.sqrt(), of_others.sqrt()
    return ((near * a + far * b) / (a + b)).sum()
