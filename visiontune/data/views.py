"""A method's VIEWS (plain numbers) turned into pixels: our crop and flip, albumentations for colour and blur.

albumentations is imported with its update check off (it would ask a package index) and driven with one random state a picture: its
own seeding gives every transform the same numbers.
"""

import os
import random
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from visiontune.errors import UserError, near


@dataclass(frozen=True)
class Views:
    """What happens to a picture on its way into a batch. Each is a key of the recipe's `data.augment`.

    Attributes:
        views: how many views of each picture.
        crop_scale: smallest and largest share of the picture's area in a crop.
        crop_ratio: narrowest and widest crop, width over height.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        rotate: largest rotation, degrees.
        jitter: probability of colour jitter.
        brightness: strength of the jitter's factor for brightness.
        contrast: likewise.
        saturation: likewise.
        hue: largest shift of the hue, in turns.
        grey: probability of a grey picture.
        blur: probability of a Gaussian blur of sigma 0.1 to 2 at 224 pixels.
        solarize: probability of inverting bright pixels.
    """

    views: int = 1
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    vertical_flip: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    @classmethod
    def of(cls, *parts: dict[str, Any]) -> "Views":
        """Later parts replace keys of earlier ones."""
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part
        names = [f.name for f in fields(cls)]
        if unknown := [k for k in merged if k not in names]:
            raise UserError(f"data.augment: unknown {unknown[0]!r}; allowed: {', '.join(names)}{near(unknown[0], names)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()})


class Augment:
    """Random views of a decoded picture, uint8 in and out."""

    def __init__(self, views: Views, image_size: tuple[int, int]) -> None:
        self.views, self.size = views, image_size
        self._after: Any = None

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """`(H, W, 3)` -> `views` pictures of `image_size`."""
        return [self._view(picture, rng) for _ in range(self.views.views)]

    def _view(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        v, (height, width) = self.views, self.size
        x = self._crop(picture, rng)
        x = cv2.resize(x, (width, height), interpolation=_interpolation(x.shape, self.size))
        if v.flip and rng.random() < v.flip:
            x = x[:, ::-1]
        if v.vertical_flip and rng.random() < v.vertical_flip:
            x = x[::-1]
        if v.rotate:
            turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-v.rotate, v.rotate), 1.0)
            x = cv2.warpAffine(np.ascontiguousarray(x), turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        after = self._pipeline()
        if after is not None:
            after.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            x = after(image=np.ascontiguousarray(x))["image"]
        return x

    def _crop(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Random resized crop: ten tries at an area and a shape, then the largest allowed crop in the middle (Inception's way)."""
        (H, W), v = picture.shape[:2], self.views
        if v.crop_scale == (1.0, 1.0):
            return picture
        low, high = np.log(v.crop_ratio)
        for _ in range(10):
            area = H * W * rng.uniform(*v.crop_scale)
            ratio = np.exp(rng.uniform(low, high))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= W and 0 < h <= H:
                top, left = int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1))
                return picture[top : top + h, left : left + w]
        w, h = min(W, round(H * v.crop_ratio[1])), min(H, round(W / v.crop_ratio[0]))
        top, left = (H - h) // 2, (W - w) // 2
        return picture[top : top + h, left : left + w]

    def _pipeline(self) -> Any:
        """The albumentations part, made on first use in each worker; None where the views ask for nothing of it."""
        if self._after is None:
            v = self.views
            if not (v.jitter or v.grey or v.blur or v.solarize):
                return None
            os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
            import albumentations as A

            steps: list[Any] = []
            if v.jitter:
                factors = {k: (max(0.0, 1 - s), 1 + s) for k in ("brightness", "contrast", "saturation") for s in (getattr(v, k),)}
                steps.append(A.ColorJitter(**factors, hue=(-v.hue, v.hue), p=v.jitter))
            if v.grey:
                steps.append(A.ToGray(p=v.grey))
            if v.blur:
                scale = max(self.size) / 224
                steps.append(A.GaussianBlur(sigma_limit=(0.1 * scale, 2.0 * scale), blur_limit=0, p=v.blur))
            if v.solarize:
                steps.append(A.Solarize(p=v.solarize))
            self._after = A.Compose(steps)
        return self._after

    def __getstate__(self) -> dict[str, Any]:
        return {"views": self.views, "size": self.size, "_after": None}


class CenterCrop:
    """The one clean view of evaluation: the short side to `image_size / crop_share`, then the middle.

    The share defaults to 1: nothing of a picture is cut off but what is not square.
    """

    def __init__(self, image_size: tuple[int, int], crop_share: float = 1.0) -> None:
        self.size, self.share = image_size, crop_share

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        (H, W), (height, width) = picture.shape[:2], self.size
        scale = min(H / height, W / width) * self.share
        h, w = max(1, min(H, round(height * scale))), max(1, min(W, round(width * scale)))
        top, left = (H - h) // 2, (W - w) // 2
        cut = picture[top : top + h, left : left + w]
        return [cv2.resize(cut, (width, height), interpolation=_interpolation(cut.shape, self.size))]


def _interpolation(shape: tuple[int, ...], size: tuple[int, int]) -> int:
    """Averaging where pixels become fewer (no aliasing), cubic where they become more."""
    return cv2.INTER_AREA if shape[0] > size[0] and shape[1] > size[1] else cv2.INTER_CUBIC
