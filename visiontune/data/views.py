"""A method's VIEWS (plain numbers) turned into pixels: crops are drawn first, the picture is decoded once as small as they allow, then
each crop is flipped, coloured and blurred as uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

from visiontune.data import color, policy
from visiontune.data.decode import Box, Picture
from visiontune.data.resize import by_fours
from visiontune.data.user_transforms import Spec, UserTransforms
from visiontune.errors import UserError, near


@dataclass(frozen=True)
class View:
    """What happens to a picture on its way to one view. Each is a key of the recipe's `data.augment`.

    Attributes:
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
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest sigma of the blur, in pixels of a view of 224.
        solarize: probability of inverting bright pixels.
        solarize_threshold: from which brightness on, 0 to 255.
        policy: `randaugment` (two) or `trivialaugment` (one of any strength): operations drawn from fourteen on colour and place; `none`.
        magnitude: strength of `randaugment`, 0 to 30.
    """

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
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: int = 128
    policy: str = "none"
    magnitude: float = 9.0


@dataclass(frozen=True)
class Views:
    """All views of a picture.

    Attributes:
        each: one entry a view.
        sizes: `(height, width)` of each, None for the run's own.
        albumentations: the user's own, after all else.
    """

    each: tuple[View, ...] = (View(),)
    sizes: tuple[tuple[int, int] | None, ...] = (None,)
    albumentations: Spec | None = None

    @classmethod
    def of(cls, *parts: dict[str, Any]) -> "Views":
        """From keys of `View`, and `views` (how many), `second` (keys that differ in the second), `local` (small crops besides: their
        `views`, `image_size` and keys) and `albumentations`. Later parts replace keys of earlier ones.

        Raises:
            UserError: for a key that is none of these, or for a second view where there is one.
        """
        merged: dict[str, Any] = {}
        for part in parts:
            merged = merge(merged, part)
        count, second, local = merged.pop("views", 1), merged.pop("second", None) or {}, dict(merged.pop("local", None) or {})
        own = merged.pop("albumentations", None)
        first = _view(merged)
        each = [first] * count
        if second:
            if count < 2:
                raise UserError("data.augment.second: there is one view; set data.augment.views=2, or leave it out")
            each[1] = _view(second, first, "second.")
        sizes: list[tuple[int, int] | None] = [None] * count
        if more := local.pop("views", 0):
            size = local.pop("image_size", 96)
            each += [_view(local, first, "local.")] * more
            sizes += [(size, size) if isinstance(size, int) else tuple(size)] * more
        return cls(tuple(each), tuple(sizes), own)

    @property
    def small(self) -> int:
        """How many have a size of their own."""
        return sum(size is not None for size in self.sizes)

    @property
    def large(self) -> int:
        return len(self.each) - self.small

    def of_channels(self, channels: int) -> tuple["Views", list[str]]:
        """Without what needs RGB, where pictures are something else; and what that was."""
        if channels == 3:
            return self, []
        dropped = [n for n in ("saturation", "hue", "grey") if any(getattr(v, n) for v in self.each)]
        return replace(self, each=tuple(replace(v, saturation=0.0, hue=0.0, grey=0.0) for v in self.each)), dropped


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Keys of `over` on top; nested dictionaries likewise."""
    nested = {k: merge(base[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | over | nested


def _view(keys: dict[str, Any], base: View = View(), where: str = "") -> View:
    names = [f.name for f in fields(View)]
    if unknown := [k for k in keys if k not in names]:
        known = names if where else [*names, "views", "second", "local", "albumentations"]
        raise UserError(f"data.augment: unknown {where}{unknown[0]!r}; allowed: {', '.join(known)}{near(unknown[0], known)}")
    if (chosen := keys.get("policy", "none")) not in policy.POLICIES:
        allowed = policy.POLICIES
        raise UserError(f"data.augment.{where}policy: got {chosen!r}; allowed: {', '.join(allowed)}{near(str(chosen), allowed)}")
    return replace(base, **{k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()})


class Augment:
    """Random views of a picture, uint8.

    Args:
        views: what each is like.
        image_size: `(height, width)` in pixels, where a view does not say its own.
    """

    def __init__(self, views: Views, image_size: tuple[int, int]) -> None:
        self.views, self.size = views, image_size
        self.sizes = [size or image_size for size in views.sizes]
        self.own = None if views.albumentations is None else UserTransforms(views.albumentations)

    def __call__(self, picture: Picture | np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """One `(height, width, C)` a view. What comes out depends on the picture and the generator alone.

        Raises:
            BrokenPicture: if it cannot be decoded.
        """
        return self.several(picture, [rng])[0]

    def several(self, picture: Picture | np.ndarray, generators: Sequence[np.random.Generator]) -> list[list[np.ndarray]]:
        """The views for each of several generators; the picture is decoded once for all of them."""
        if isinstance(picture, np.ndarray):
            picture = Picture(picture)
        views = self.views.each
        boxes = [random_box(view, picture.height, picture.width, rng) for rng in generators for view in views]
        cuts = iter(picture.cut(boxes, self.sizes * len(generators)))
        return [[self._finish(next(cuts), view, rng) for view in views] for rng in generators]

    def _finish(self, x: np.ndarray, v: View, rng: np.random.Generator) -> np.ndarray:
        height, width = x.shape[:2]
        if v.flip and rng.random() < v.flip:
            x = by_fours(lambda y: cv2.flip(y, 1), x)  # numpy's view with negative strides would take ten times as long to copy later
        if v.vertical_flip and rng.random() < v.vertical_flip:
            x = by_fours(lambda y: cv2.flip(y, 0), x)
        if v.rotate:
            turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), rng.uniform(-v.rotate, v.rotate), 1.0)
            x = by_fours(lambda y: cv2.warpAffine(y, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101), np.ascontiguousarray(x))
        if v.policy != "none":
            x = policy.apply(x, v.policy, v.magnitude, rng)
        x = _colour(x, v, rng)
        if v.blur and rng.random() < v.blur:
            x = color.blur(np.ascontiguousarray(x), rng.uniform(*v.blur_sigma) * max(height, width) / 224)
        if v.solarize and rng.random() < v.solarize:
            x = color.solarize(np.ascontiguousarray(x), v.solarize_threshold)
        return x if self.own is None else self.own(x, rng)


def random_box(v: View, H: int, W: int, rng: np.random.Generator) -> Box:
    """Random resized crop: ten tries at an area and a shape, then the largest allowed crop in the middle (Inception's way)."""
    if v.crop_scale == (1.0, 1.0):
        return 0, 0, H, W
    low, high = map(math.log, v.crop_ratio)
    for _ in range(10):
        area = H * W * rng.uniform(*v.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= W and 0 < h <= H:
            return int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1)), h, w
    w, h = min(W, max(1, round(H * v.crop_ratio[1]))), min(H, max(1, round(W / v.crop_ratio[0])))
    return (H - h) // 2, (W - w) // 2, h, w


def _colour(x: np.ndarray, v: View, rng: np.random.Generator) -> np.ndarray:
    """Jitter in a random order, then grey: torchvision's ColorJitter and RandomGrayscale."""
    steps: list[tuple[str, float]] = []
    if v.jitter and rng.random() < v.jitter:
        factors = {n: rng.uniform(max(0.0, 1 - s), 1 + s) for n in ("brightness", "contrast", "saturation") if (s := getattr(v, n))}
        if v.hue:
            factors["hue"] = rng.uniform(-v.hue, v.hue)
        names = list(factors)
        steps = [(names[i], factors[names[i]]) for i in rng.permutation(len(names))]
    grey = bool(v.grey) and rng.random() < v.grey
    if not steps and not grey:
        return x
    if x.shape[2] != 3:
        strengths = dict(steps)
        return color.adjust_any(x, strengths.get("brightness", 1.0), strengths.get("contrast", 1.0))
    return color.adjust(np.ascontiguousarray(x), steps, grey=grey)


class CenterCrop:
    """The one clean view of evaluation: the short side to `image_size / crop_share`, then the middle.

    The share defaults to 1: nothing of a picture is cut off but what is not square.
    """

    def __init__(self, image_size: tuple[int, int], crop_share: float = 1.0) -> None:
        self.size, self.share = image_size, crop_share

    def __call__(self, picture: Picture | np.ndarray, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        if isinstance(picture, np.ndarray):
            picture = Picture(picture)
        (H, W), (height, width) = (picture.height, picture.width), self.size
        scale = min(H / height, W / width) * self.share
        h, w = max(1, min(H, round(height * scale))), max(1, min(W, round(width * scale)))
        return picture.cut([((H - h) // 2, (W - w) // 2, h, w)], [self.size], exact=True)
