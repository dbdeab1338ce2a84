"""Pictures mixed with each other and with noise, on the device and after normalisation: mixup, cutmix, random erasing.

Everything is drawn by torch's generators, one choice a batch on the CPU or one a picture on the device, so nothing waits for the device.
Any batch size will do. B pictures, K classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels; bottom and right are outside


@dataclass(frozen=True)
class Mixing:
    """Mixup or cutmix of a whole batch.

    Attributes:
        mixup: alpha of the Beta distribution that the share is drawn from; 0: no mixup. Zhang et al. 2017 (arXiv 1710.09412).
        cutmix: likewise. Yun et al. 2019 (arXiv 1905.04899). With both, each has half of the batches, as in timm's training.
        probability: of mixing a batch at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __bool__(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, C, H, W)` float and `(B, K)` -> likewise; every picture gets a share of another one."""
        B = len(images)
        if B < 2 or torch.rand(()).item() >= self.probability:
            return images, targets
        cut = self.cutmix > 0 and (self.mixup == 0 or torch.rand(()).item() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        shift = int(torch.randint(1, B, ()))  # nobody is mixed with itself, and odd batches are no special case
        others, their_targets = images.roll(shift, 0), targets.roll(shift, 0)
        if not cut:
            return torch.lerp(others, images, share), torch.lerp(their_targets, targets, share)
        H, W = images.shape[-2:]
        box = box_around((int(torch.randint(H, ())), int(torch.randint(W, ()))), share, (H, W))
        return paste(images, others, box), torch.lerp(their_targets, targets, share_left(box, (H, W)))


def box_around(middle: tuple[int, int], share: float, size: tuple[int, int]) -> Box:
    """A box of the picture's shape with `1 - share` of its area, cut off at its borders.

    >>> box_around((50, 90), 0.75, (100, 100))
    (25, 75, 65, 100)
    """
    sides = [int(side * math.sqrt(1 - share)) for side in size]
    (top, bottom), (left, right) = (
        (max(0, m - side // 2), min(whole, m + (side + 1) // 2)) for m, side, whole in zip(middle, sides, size, strict=True)
    )
    return top, bottom, left, right


def share_left(box: Box, size: tuple[int, int]) -> float:
    """What is left of a picture with a hole."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def paste(images: Tensor, others: Tensor, box: Box) -> Tensor:
    """The others' box in the pictures."""
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed


AREA, ASPECT, TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # timm's: Zhong et al. 2017 (arXiv 1708.04896), section 5.1, less area


def erase(images: Tensor, probability: float) -> Tensor:
    """Random erasing: with this probability a box of a picture becomes noise of mean 0 and variance 1, as its pixels have normalised.

    A box of 2 to 33 % of the area; timm's class does the same, one picture after another.
    """
    boxes = erasing_boxes(len(images), tuple(images.shape[-2:]), probability, images.device)
    hidden = inside(boxes, tuple(images.shape[-2:]))[:, None]
    return torch.where(hidden, torch.randn_like(images), images)


def erasing_boxes(count: int, size: tuple[int, int], probability: float, device: torch.device | str = "cpu") -> Tensor:
    """`(B, 4)`: top, bottom, left, right of a random box in each of `count` pictures; all 0 where nothing is to be erased."""
    H, W = size
    draw = torch.rand(5, count, TRIES, device=device)
    area = H * W * (AREA[0] + (AREA[1] - AREA[0]) * draw[0])
    aspect = torch.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * draw[1])  # height over width
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < H) & (widths < W)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first try that fits
    height, width, down, across, fit = (x.gather(1, first)[:, 0] for x in (heights, widths, draw[2], draw[3], fits))
    top, left = (down * (H - height + 1)).floor(), (across * (W - width + 1)).floor()
    wanted = fit & (draw[4, :, 0] < probability)
    return torch.stack([top, top + height, left, left + width], dim=1).long() * wanted[:, None]


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, 4)` -> `(B, H, W)`: True inside."""
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    return down[:, :, None] & across[:, None]
