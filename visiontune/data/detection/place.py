"""A picture put into the network's square: all of it for evaluation, at a random size and place for training.

A `Letterbox` is the geometry of both; in training it may be larger than the square, and begin above or left of it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from visiontune.boxes import FILL, Boxes, Letterbox
from visiontune.data.decode import BrokenPicture, Picture

Region = tuple[int, int, int, int]  # top, left, bottom, right in pixels of the result


class Unreadable(BrokenPicture):
    """A broken picture, and its number in the table: several are drawn for one mosaic."""

    def __init__(self, index: int, cause: str) -> None:
        super().__init__(cause)
        self.index = index


@dataclass(frozen=True)
class Source:
    """A picture that waits to be decoded, with its boxes in its own pixels.

    Attributes:
        picture: what was read.
        boxes: of the original.
        index: its number in the table.
    """

    picture: Picture
    boxes: Boxes
    index: int = 0


def empty(size: tuple[int, int], channels: int) -> np.ndarray:
    """A picture of nothing: `(height, width, channels)` uint8."""
    return np.full((*size, channels), FILL, dtype=np.uint8)


def fit(source: Source, size: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """For evaluation: the largest that fits into `(height, width)`, in its upper left corner.

    Raises:
        Unreadable: if it cannot be decoded.
    """
    picture = source.picture
    box = Letterbox.of(picture.height, picture.width, size)
    pixels = empty(size, picture.reading.channels)
    return pixels, draw(pixels, source, box, (0, 0, *size), exact=True)


def draw(pixels: np.ndarray, source: Source, box: Letterbox, region: Region, *, exact: bool = False) -> Letterbox:
    """Draw a picture into a region of another, decoding no more of it than is seen there.

    Args:
        pixels: `(H, W, C)` uint8, changed in place.
        source: what is drawn.
        box: where to.
        region: what may be changed.
        exact: average all pixels on the way down, see `Picture.cut`.

    Returns:
        where it really lies: moved and stretched by less than a pixel, so that pixels meet pixels.

    Raises:
        Unreadable: if it cannot be decoded.
    """
    top, left, bottom, right = region
    s, H, W = box.scale, box.height, box.width
    # the part of the original that is seen, whole pixels outwards
    t, b = max(0, math.floor((top - box.top) / s)), min(H, math.ceil((bottom - box.top) / s))
    l, r = max(0, math.floor((left - box.left) / s)), min(W, math.ceil((right - box.left) / s))  # noqa: E741
    if t >= b or l >= r:
        return box
    y, x = round(box.top + t * s), round(box.left + l * s)  # where its upper left corner comes to lie
    height, width = max(1, round((b - t) * s)), max(1, round((r - l) * s))
    try:
        (cut,) = source.picture.cut([(t, l, b - t, r - l)], [(height, width)], exact=exact)
    except BrokenPicture as error:
        raise Unreadable(source.index, str(error)) from error
    y1, x1, y2, x2 = max(top, y), max(left, x), min(bottom, y + height), min(right, x + width)
    pixels[y1:y2, x1:x2] = cut[y1 - y : y2 - y, x1 - x : x2 - x]
    across, down = width / (r - l), height / (b - t)
    return Letterbox(across, x - l * across, y - t * down, H, W, stretch=down / across)


def random_place(height: int, width: int, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Letterbox:
    """Scale jittering: a size, then a place where as much as possible is seen; without jitter as for evaluation."""
    if scale == (1.0, 1.0):
        return Letterbox.of(height, width, size)
    s = rng.uniform(*scale) * min(size[0] / height, size[1] / width)
    spare = size[0] - height * s, size[1] - width * s
    top, left = (rng.uniform(min(0.0, x), max(0.0, x)) for x in spare)
    return Letterbox(s, left, top, height, width)


def seen(boxes: Boxes, box: Letterbox, region: Region, *, min_visible: float = 0.0, least: float = 1.0) -> Boxes:
    """Boxes of the original as they are seen in a region.

    Args:
        boxes: in pixels of the original.
        box: where the picture lies.
        region: what can be seen.
        min_visible: share of its area that a box must show.
        least: boxes of at most so many pixels in width or height are left out.
    """
    moved = box.inside(boxes)
    top, left, bottom, right = region
    low, high = moved.xyxy.new_tensor([left, top, left, top]), moved.xyxy.new_tensor([right, bottom, right, bottom])
    xyxy = moved.xyxy.maximum(low).minimum(high)
    before, after = (x[:, 2:] - x[:, :2] for x in (moved.xyxy, xyxy))
    keep = (after > least).all(dim=1) & (after.prod(dim=1) >= min_visible * before.prod(dim=1))
    return Boxes(xyxy, moved.labels).take(keep)


def joined(boxes: list[Boxes]) -> Boxes:
    """Of several pictures that became one."""
    return Boxes(torch.cat([b.xyxy for b in boxes]), torch.cat([b.labels for b in boxes]))
