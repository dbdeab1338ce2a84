"""Whether two detectors find the same: as sets where NMS chose the boxes, place by place where it did not.

B pictures, D detections, P positions, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from visiontune.export.onnx_file import Differs
from visiontune.heads.dense import Limits

Outputs = Sequence[Tensor]
# Least overlap of a box and its partner, largest difference of their scores, and of their corners, in pixels, where boxes are so small
# that the last digit of a coordinate moves the overlap. The second: at half precision.
EXACT, HALF = (0.99, 1e-3, 0.01), (0.9, 2e-2, 0.5)
# NMS decides by comparing: where two candidates overlap by nearly its limit, or have nearly one score, a difference in the seventh digit
# keeps another one. A box may be without a partner where such a rival stands for it, and no more than this share of all. Where nothing is
# suppressed, queries are chosen likewise, the positions with the highest scores, and any box of the class may stand for another.
FLIPPED = 0.02
NEAR_LIMIT = 0.01
SHAPES = 12


def compare_detections(expected: Outputs, got: Outputs, limits: Limits, *, fp16: bool) -> tuple[float, int]:
    """Whether each box has a partner of its class in the other set, both ways.

    Args:
        expected: boxes `(B, D, 4)`, scores `(B, D)`, labels `(B, D)` of PyTorch.
        got: of the file.
        limits: that both obeyed. Boxes that a limit may have cut off in one of them by its last digit are not asked for.
        fp16: `got` is of half precision.

    Returns:
        the largest difference of partners' scores, and how many boxes were looked for.

    Raises:
        Differs: if not.
    """
    if [x.shape for x in expected] != [x.shape for x in got]:
        raise Differs(
            f"the ONNX file's outputs have shapes {[tuple(x.shape) for x in got]}, PyTorch's {[tuple(x.shape) for x in expected]}"
        )
    worst, asked, alone = 0.0, 0, []
    for b in range(len(expected[0])):
        mine, its = ([x[b] for x in outputs] for outputs in (expected, got))
        for name, ours, theirs in (("PyTorch's", mine, its), ("the ONNX file's", its, mine)):
            lonely, difference, count = _without_partner(ours, theirs, limits, HALF if fp16 else EXACT)
            worst, asked = max(worst, difference), asked + count
            for i, rival in lonely:
                box = [round(x, 1) for x in ours[0][i].tolist()]
                alone.append("" if rival else f"{name} box {box} of class {int(ours[2][i])}, score {float(ours[1][i]):.3f}")
    if certain := [words for words in alone if words]:
        raise Differs(f"{len(certain)} of {asked} boxes of PyTorch and the ONNX file have no partner in the other, such as {certain[0]}")
    if len(alone) > max(1, FLIPPED * asked):
        raise Differs(f"{len(alone)} of {asked} boxes of PyTorch and the ONNX file have no partner in the other, but one that overlaps")
    return worst, asked


def _without_partner(
    ours: Outputs, theirs: Outputs, limits: Limits, tolerance: tuple[float, float, float]
) -> tuple[list[tuple[int, bool]], float, int]:
    """Numbers of our boxes that have none, and whether a rival stands for each; the largest difference of scores; how many were asked."""
    least_iou, most_score, most_corner = tolerance
    # Lists that are full end at a score below which either may have left a box out.
    ends = [float(scores[-1]) for _, scores, _ in (ours, theirs)]
    (asked,) = torch.where(~(ours[1] <= max(limits.score, *ends) + most_score))  # nan is asked for
    there = theirs[1] > 0
    (xyxy, scores, labels), (others, other_scores, other_labels) = ([x[asked] for x in ours], [x[there] for x in theirs])
    same = labels[:, None] == other_labels
    overlap = box_iou(xyxy, others)  # (ours, theirs)
    apart = (scores[:, None] - other_scores).abs()
    near = (overlap >= least_iou) | ((xyxy[:, None] - others).abs().amax(dim=-1) <= most_corner)
    partner = same & near & (apart <= most_score)
    rival = same & (other_scores >= scores[:, None] - most_score)
    if limits.nms is not None:
        rival &= overlap >= limits.nms - NEAR_LIMIT
    differences = apart.where(partner, torch.inf).amin(dim=1) if len(others) else torch.full_like(scores, torch.inf)
    alone = differences.isinf()
    kept = differences[~alone]
    return (
        [(int(asked[i]), bool(rival[i].any())) for i in torch.where(alone)[0]],
        float(kept.max()) if len(kept) else 0.0,
        len(asked),
    )


def compare_everywhere(expected: Outputs, got: Outputs, *, longest: int, fp16: bool) -> float:
    """The largest difference of boxes `(B, P, 4)`, as a share of the picture's longer side, and of scores `(B, P, K)`.

    Raises:
        Differs: if it is too large.
    """
    if [x.shape for x in expected] != [x.shape for x in got]:
        raise Differs(
            f"the ONNX file's outputs have shapes {[tuple(x.shape) for x in got]}, PyTorch's {[tuple(x.shape) for x in expected]}"
        )
    corners, scores = (float((a - b).abs().max()) for a, b in zip(expected, got, strict=True))
    corners /= longest
    most = (HALF if fp16 else EXACT)[1]
    for what, difference in (
        ("boxes differ from PyTorch's by {} of the longer side", corners),
        ("scores differ from PyTorch's by {}", scores),
    ):
        if not difference <= most:  # not a number is no agreement either
            raise Differs(f"the ONNX file's {what.format(f'{difference:.1e}')}, more than {most:.0e}")
    return max(corners, scores)


def scenes(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Pictures of something, `(B, C, H, W)` uint8, the same each time: a shaded ground, and on it boxes and discs of all sizes."""
    generator = torch.Generator().manual_seed(count)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    H, W = size
    pixels = 255 * F.interpolate(random(count, channels, 3, 3), size=size, mode="bicubic", align_corners=True).clamp(0, 1)
    y, x = torch.arange(H)[:, None] / H, torch.arange(W) / W
    for picture in pixels:
        for i in range(SHAPES):
            cy, cx = random(2).tolist()
            h, w = (0.03 + 0.4 * random(2) ** 2).tolist()  # half of its sides
            dy, dx = (y - cy) / h, (x - cx) / w
            inside = dy**2 + dx**2 <= 1 if i % 2 else (dy.abs() <= 1) & (dx.abs() <= 1)
            colour = 255 * random(channels, 1, 1) + 20 * (random(1, H, W) - 0.5)
            picture.copy_(torch.where(inside, colour, picture))
    return pixels.clamp(0, 255).to(torch.uint8)
