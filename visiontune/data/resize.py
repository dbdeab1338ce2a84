"""Cutting and resizing of `(H, W, C)` uint8 pictures."""

import math
from collections.abc import Callable

import cv2
import numpy as np

# top, left, height, width in pixels, whole or not: a picture decoded at an eighth has its crops at eighths
Place = tuple[float, ...]


def cut(pixels: np.ndarray, place: Place, size: tuple[int, int]) -> np.ndarray:
    """The fast way, for augmented views: halved while at least twice too large (each pixel the mean of four), then bilinear; cubic up.

    Args:
        pixels: the picture.
        place: of the crop.
        size: `(height, width)` that it becomes.
    """
    top, left, h, w = place
    if all(x == int(x) for x in place) and h < 2 * size[0] and w < 2 * size[1]:
        part = pixels[int(top) : int(top + h), int(left) : int(left + w)]
        if part.shape[:2] == size:
            return part
        larger = h < size[0] or w < size[1]
        return _resized(part, size, cv2.INTER_CUBIC if larger else cv2.INTER_LINEAR)
    # one pixel around it, as interpolation asks for
    row, column = max(0, math.floor(top) - 1), max(0, math.floor(left) - 1)
    part = pixels[row : math.ceil(top + h) + 1, column : math.ceil(left + w) + 1]
    top, left = top - row, left - column
    while h >= 2 * size[0] or w >= 2 * size[1]:
        down, across = (2 if h >= 2 * size[0] else 1), (2 if w >= 2 * size[1] else 1)
        part, top, left, h, w = _halved(part, down, across), top / down, left / across, h / down, w / across
    return _at(part, (top, left, h, w), size)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`cut` of a whole picture."""
    return cut(pixels, (0, 0, *pixels.shape[:2]), size)


def cut_by_area(pixels: np.ndarray, place: Place, size: tuple[int, int]) -> np.ndarray:
    """The exact way, for pictures that are judged by: averaging where pixels become fewer (no aliasing), cubic where they become more."""
    top, left, bottom, right = (round(x) for x in (place[0], place[1], place[0] + place[2], place[1] + place[3]))
    part = pixels[top:bottom, left:right]
    if part.shape[:2] == size:
        return part
    fewer = part.shape[0] > size[0] and part.shape[1] > size[1]
    return _resized(part, size, cv2.INTER_AREA if fewer else cv2.INTER_CUBIC)


def _halved(pixels: np.ndarray, down: int, across: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    if h % down or w % across:  # an odd last row or column counts twice, so that places stay what they are
        pixels = by_fours(lambda x: cv2.copyMakeBorder(x, 0, h % down, 0, w % across, cv2.BORDER_REPLICATE), pixels)
    return _resized(pixels, (-(-h // down), -(-w // across)), cv2.INTER_AREA)


def _at(pixels: np.ndarray, place: Place, size: tuple[int, int]) -> np.ndarray:
    """Bilinear at a place between pixels. Pixel i covers [i, i + 1): its middle is at i + 0.5."""
    top, left, h, w = place
    down, across = h / size[0], w / size[1]
    back = np.array([[across, 0, left + across / 2 - 0.5], [0, down, top + down / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return by_fours(lambda x: cv2.warpAffine(x, back, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE), pixels)


def _resized(pixels: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return by_fours(lambda x: cv2.resize(x, size[::-1], interpolation=interpolation), pixels)


def by_fours(function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """A function of OpenCV on `(H, W, C)` pictures: of more than four channels at a time it takes none, of one it drops the axis."""
    channels = pixels.shape[2]
    if channels <= 4:
        found = function(pixels)
        return found if found.ndim == 3 else found[..., None]
    parts = [by_fours(function, np.ascontiguousarray(pixels[..., i : i + 4])) for i in range(0, channels, 4)]
    return np.concatenate(parts, axis=2)
