"""Colour augmentations fused into few passes over a picture, and blur. All on `(H, W, 3)` uint8 RGB.

Brightness, contrast, saturation and grey are affine maps of a pixel's colour, so any run of them is one matrix and one pass. Hue is
not; it stands between two such runs. Values between 0 and 255 come out as torchvision's ColorJitter gives them, in whatever order the
four are drawn. Deviation: within a run nothing is clipped in between, so a colour that brightness drives above white comes back when
contrast lowers it, where torchvision would have lost it.
"""

import cv2
import numpy as np

from visiontune.data.resize import by_fours

# ITU-R 601, as in Pillow, torchvision and OpenCV.
LUMA = np.array([0.299, 0.587, 0.114])
SAME, GREY, NOTHING = np.eye(3), np.tile(LUMA, (3, 1)), np.eye(3, 4)


class Affine:
    """A map of colours that waits to be applied.

    Attributes:
        matrix: `(3, 4)`: out = matrix[:, :3] @ rgb + matrix[:, 3].
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.matrix = pixels, NOTHING
        self._mean: np.ndarray | None = None

    def then(self, matrix: np.ndarray, offset: np.ndarray | float = 0.0) -> None:
        self.matrix = matrix @ self.matrix
        self.matrix[:, 3] += offset

    def mean_luma(self) -> float:
        """Of the mapped picture."""
        if self._mean is None:
            self._mean = np.array([*cv2.mean(self.pixels)[:3], 1.0])
        return float(LUMA @ self.matrix @ self._mean)

    def apply(self) -> np.ndarray:
        """The mapped picture, rounded and clipped once; from here on the map is the identity."""
        if self.matrix is not NOTHING:
            self.pixels, self.matrix, self._mean = cv2.transform(self.pixels, self.matrix), NOTHING, None
        return self.pixels


def adjust(pixels: np.ndarray, steps: list[tuple[str, float]], *, grey: bool = False) -> np.ndarray:
    """Colour changes one after another.

    Args:
        pixels: `(H, W, 3)` uint8, contiguous.
        steps: name and factor: brightness, contrast and saturation with 1 for no change, hue in turns with 0 for none.
        grey: take the colour out at the end.
    """
    affine = Affine(pixels)
    for name, factor in steps:
        if name == "brightness":
            affine.then(factor * SAME)
        elif name == "contrast":
            affine.then(factor * SAME, (1 - factor) * affine.mean_luma())
        elif name == "saturation":
            affine.then(factor * SAME + (1 - factor) * GREY)
        elif turned := round(factor * 256) % 256:
            affine.pixels = turn_hue(affine.apply(), turned)
    if grey:
        affine.then(GREY)
    return affine.apply()


def turn_hue(pixels: np.ndarray, by: int) -> np.ndarray:
    """Hue turned by `by` 256ths of the circle, value and saturation kept."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(by)  # wraps round, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def adjust_any(pixels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Brightness and contrast of pictures with any number of channels: `(H, W, C)` uint8."""
    scaled = pixels.astype(np.float32) * (brightness * contrast)
    return (scaled + (1 - contrast) * brightness * pixels.mean()).clip(0, 255).round().astype(np.uint8)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels, the kernel three sigma to each side."""
    return by_fours(lambda x: cv2.GaussianBlur(x, (0, 0), sigma), pixels)


def solarize(pixels: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts what is at least as bright as `threshold` (0 to 255)."""
    table = np.arange(256, dtype=np.uint8)
    table[threshold:] = 255 - table[threshold:]
    return table[pixels] if pixels.shape[2] > 4 else by_fours(lambda x: cv2.LUT(x, table), pixels)
