"""Random operations on a picture: RandAugment and TrivialAugment, on `(H, W, C)` uint8 with the picture's own generator.

Operations and ranges are torchvision's; pixels that come from outside the picture are mid-grey, about what normalisation takes to 0.
"""

import math

import cv2
import numpy as np

from visiontune.data import color
from visiontune.data.resize import by_fours

POLICIES = ("none", "randaugment", "trivialaugment")
GREY = (128, 128, 128, 128)

Pixels = np.ndarray
# How strong each is at the most, in RandAugment (Cubuk et al. 2019, arXiv 1909.13719) and in TrivialAugment's wide space (Müller and Hutter
# 2021, arXiv 2103.10158, table 8): shears as slopes, translations as shares of a side and in pixels, angles in degrees, factors from 1.
RANGES = {
    "shear_x": (0.3, 0.99), "shear_y": (0.3, 0.99), "translate_x": (150 / 331, 32), "translate_y": (150 / 331, 32), "rotate": (30, 135),
    "brightness": (0.9, 0.99), "saturation": (0.9, 0.99), "contrast": (0.9, 0.99), "sharpness": (0.9, 0.99),
}  # fmt: skip
BITS = (4, 6)  # that posterising takes away at the most


def apply(x: Pixels, policy: str, magnitude: float, rng: np.random.Generator) -> Pixels:
    """A policy's operations on one picture.

    Args:
        x: the picture.
        policy: of `POLICIES`.
        magnitude: strength of RandAugment's, 0 to 30.
        rng: the picture's.
    """
    if policy == "none":
        return x
    wide = policy == "trivialaugment"
    for _ in range(1 if wide else 2):
        name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        share = int(rng.integers(31)) / 30 if wide else magnitude / 30
        x = operate(np.ascontiguousarray(x), name, share, sign=1 if rng.random() < 0.5 else -1, wide=wide)
    return x


def operate(x: Pixels, name: str, share: float, *, sign: int, wide: bool) -> Pixels:
    """One operation.

    Args:
        x: the picture, contiguous.
        name: of `OPERATIONS`.
        share: of the strongest, 0 to 1.
        sign: which way, 1 or -1, for those that have two.
        wide: in TrivialAugment's range instead of RandAugment's.
    """
    H, W, C = x.shape
    if name in RANGES:
        strength = sign * share * RANGES[name][wide]
        if name.startswith("translate"):
            side = W if name.endswith("x") else H
            # TrivialAugment's 32 pixels would be all of a small picture
            strength = float(int(sign * min(share * 32, side / 2) if wide else strength * side))
        return _colour(x, name, 1 + strength, C) if name in COLOURS else _moved(x, name, strength)
    if name == "posterize":
        return _looked_up(x, np.arange(256) & (0xFF << round(share * BITS[wide])))
    if name == "solarize":
        return color.solarize(x, math.ceil(255 * (1 - share) - 1e-6))
    if name in ("autocontrast", "equalize"):
        table = _stretched if name == "autocontrast" else _equalised
        return np.stack([cv2.LUT(np.ascontiguousarray(x[..., c]), table(x[..., c])) for c in range(C)], axis=2)
    return x


COLOURS = ("brightness", "saturation", "contrast", "sharpness")
OPERATIONS = ("identity", *RANGES, "posterize", "solarize", "autocontrast", "equalize")


def _moved(x: Pixels, name: str, by: float) -> Pixels:
    """Shears keep the upper left corner, turns the middle."""
    H, W = x.shape[:2]
    back: np.ndarray = np.eye(2, 3)  # where each pixel comes from
    if name == "rotate":
        back = cv2.getRotationMatrix2D((W / 2 - 0.5, H / 2 - 0.5), -by, 1.0)
    else:
        row = 0 if name.endswith("x") else 1
        if name.startswith("shear"):
            back[row, 1 - row] = by
            back[row, 2] = by / 2  # from the corner, not from the middle of its pixel
        else:
            back[row, 2] = -by
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return by_fours(lambda y: cv2.warpAffine(y, back, (W, H), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=GREY), x)


def _colour(x: Pixels, name: str, factor: float, channels: int) -> Pixels:
    if name == "sharpness":
        return _sharpened(x, factor)
    if channels == 3:
        return color.adjust(x, [(name, factor)])
    if name == "saturation":  # there is none
        return x
    return color.adjust_any(x, factor if name == "brightness" else 1.0, factor if name == "contrast" else 1.0)


SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's ImageFilter.SMOOTH


def _sharpened(x: Pixels, factor: float) -> Pixels:
    """Away from a smoothed copy; the outermost pixels, which have too few neighbours, stay."""
    if min(x.shape[:2]) < 3:
        return x
    out = by_fours(lambda y: cv2.addWeighted(y, factor, cv2.filter2D(y, -1, SMOOTH), 1 - factor, 0), x)
    out[[0, -1]], out[:, [0, -1]] = x[[0, -1]], x[:, [0, -1]]
    return out


def _looked_up(x: Pixels, table: np.ndarray) -> Pixels:
    return table.astype(np.uint8)[x]


def _stretched(channel: Pixels) -> np.ndarray:
    """A table that takes the darkest value to 0 and the brightest to 255."""
    low, high = int(channel.min()), int(channel.max())
    values = np.arange(256)
    if high <= low:
        return values.astype(np.uint8)
    scale = 255 / (high - low)
    return np.clip((values * scale - low * scale).astype(int), 0, 255).astype(np.uint8)


def _equalised(channel: Pixels) -> np.ndarray:
    """A table after which all values are about equally frequent, as in Pillow's ImageOps.equalize."""
    counts = np.bincount(channel.ravel(), minlength=256)
    present = counts[counts > 0]
    step = int(present[:-1].sum()) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((before + step // 2) // step, 0, 255).astype(np.uint8)
