"""A picture with boxes as training sees it: placed, perhaps with others beside or over it, flipped, coloured. Boxes follow the pixels.

Sizes and places are drawn before anything is decoded, and only what is seen is. A user's own transforms are albumentations.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from visiontune.boxes import Boxes, Letterbox
from visiontune.data import color
from visiontune.data.detection.place import Source, draw, empty, joined, random_place, seen
from visiontune.data.detection.views import BoxView
from visiontune.data.resize import by_fours
from visiontune.data.user_transforms import KEY, Spec, compose
from visiontune.errors import UserError

Sample = tuple[np.ndarray, Boxes]  # (H, W, C) uint8, and boxes in its pixels
# Where four pictures of a mosaic meet, as shares of its sides.
MIDDLE = (0.25, 0.75)


class BoxAugment:
    """Random training samples.

    Args:
        view: what they are like.
    """

    def __init__(self, view: BoxView) -> None:
        self.view = view
        self.own = None if view.albumentations is None else UserBoxTransforms(view.albumentations)

    def __call__(
        self,
        source: Source,
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        another: Callable[[np.random.Generator], Source] | None = None,
    ) -> Sample:
        """One sample. What comes out depends on the pictures and the generator alone.

        Args:
            source: the picture.
            size: `(height, width)` of the sample.
            rng: the sample's own.
            another: gives further pictures for mosaic and mixup; None: there are none in this epoch.

        Raises:
            Unreadable: if one of the pictures cannot be decoded.
        """
        v = self.view
        if another is not None and rng.random() < v.mosaic:
            sample = mosaic([source, *(another(rng) for _ in range(3))], size, rng, scale=v.scale, min_visible=v.min_visible)
        else:
            sample = self._alone(source, size, rng)
        sample = flipped(*sample, rng, horizontal=v.flip, vertical=v.vertical_flip)
        if another is not None and rng.random() < v.mixup:
            over = self._alone(another(rng), size, rng)
            sample = mixup(sample, flipped(*over, rng, horizontal=v.flip, vertical=v.vertical_flip))
        pixels, boxes = sample
        pixels = coloured(pixels, v, rng)
        return (pixels, boxes) if self.own is None else self.own(pixels, boxes, rng)

    def _alone(self, source: Source, size: tuple[int, int], rng: np.random.Generator) -> Sample:
        place = random_place(source.picture.height, source.picture.width, size, self.view.scale, rng)
        pixels = empty(size, source.picture.reading.channels)
        place = draw(pixels, source, place, (0, 0, *size))
        return pixels, seen(source.boxes, place, (0, 0, *size), min_visible=self.view.min_visible)


def mosaic(
    sources: Sequence[Source], size: tuple[int, int], rng: np.random.Generator, *, scale: tuple[float, float], min_visible: float = 0.0
) -> Sample:
    """Four pictures around a random point, each with a corner there, all at one random size.

    Bochkovskiy et al. 2020 (arXiv 2004.10934, YOLOv4), section 3.3. There the pictures fill a canvas of twice the side, which is then
    scaled and cropped; here each is drawn where it ends up, so that nothing is decoded that is cut off.

    Args:
        sources: four.
        size: `(height, width)` of the sample.
        rng: the sample's own.
        scale: smallest and largest size of each, 1 being the largest that fits into `size`.
        min_visible: see `BoxView`.
    """
    H, W = size
    factor, y, x = rng.uniform(*scale), round(H * rng.uniform(*MIDDLE)), round(W * rng.uniform(*MIDDLE))
    pixels = empty(size, sources[0].picture.reading.channels)
    parts = []
    for source, (below, beside) in zip(sources, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        h, w = source.picture.height, source.picture.width
        s = factor * min(H / h, W / w)
        place = Letterbox(s, x - (not beside) * w * s, y - (not below) * h * s, h, w)
        region = (y if below else 0, x if beside else 0, H if below else y, W if beside else x)
        place = draw(pixels, source, place, region)
        parts.append(seen(source.boxes, place, region, min_visible=min_visible))
    return pixels, joined(parts)


def mixup(one: Sample, other: Sample) -> Sample:
    """Two samples of one size laid over each other, each at half its strength, the boxes of both kept whole.

    Zhang et al. 2019 (arXiv 1902.04103), section 3.1, mix without changing shapes; at a half, as Ge et al. 2021 (arXiv 2107.08430).
    """
    pixels = ((one[0].astype(np.uint16) + other[0] + 1) >> 1).astype(np.uint8)
    return pixels, joined([one[1], other[1]])


def flipped(pixels: np.ndarray, boxes: Boxes, rng: np.random.Generator, *, horizontal: float, vertical: float) -> Sample:
    """Mirrored with these probabilities."""
    H, W = pixels.shape[:2]
    xyxy = boxes.xyxy
    if rng.random() < horizontal:
        pixels, xyxy = by_fours(lambda x: cv2.flip(x, 1), pixels), _mirrored(xyxy, 0, W)
    if rng.random() < vertical:
        pixels, xyxy = by_fours(lambda x: cv2.flip(x, 0), pixels), _mirrored(xyxy, 1, H)
    return pixels, Boxes(xyxy, boxes.labels)


def _mirrored(xyxy: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    turned = xyxy.clone()
    turned[:, axis], turned[:, axis + 2] = length - xyxy[:, axis + 2], length - xyxy[:, axis]
    return turned


def coloured(pixels: np.ndarray, v: BoxView, rng: np.random.Generator) -> np.ndarray:
    """SSD's photometric distortion: brightness, contrast, saturation and hue in a random order, each with its own chance."""
    steps: list[tuple[str, float]] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        strength, chance, share = getattr(v, name), rng.random(), rng.uniform(-1, 1)
        if strength and chance < v.jitter:
            steps.append((name, share * strength if name == "hue" else max(0.0, 1 + share * strength)))
    if not steps:
        return pixels
    steps = [steps[i] for i in rng.permutation(len(steps))]
    if pixels.shape[2] != 3:
        strengths = dict(steps)
        return color.adjust_any(pixels, strengths.get("brightness", 1.0), strengths.get("contrast", 1.0))
    return color.adjust(np.ascontiguousarray(pixels), steps)


class UserBoxTransforms:
    """A user's albumentations on a sample, with a random state for each: its own seeding gives every transform the same numbers."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._compose: Any = None

    def __call__(self, pixels: np.ndarray, boxes: Boxes, rng: np.random.Generator) -> Sample:
        if self._compose is None:  # made in each worker
            self._compose = compose_boxes(self.spec)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        found = self._compose(image=np.ascontiguousarray(pixels), bboxes=boxes.xyxy.numpy(), labels=boxes.labels.numpy())
        changed = found["image"]
        if changed.shape != pixels.shape or changed.dtype != np.uint8:
            raise UserError(
                f"{KEY}: gave {changed.shape} {changed.dtype} of a picture of {pixels.shape} uint8; transforms here keep size and type: "
                "crop and scale with data.augment.scale, resize with data.image_size, normalise with data.mean and data.std"
            )
        xyxy = torch.tensor(np.asarray(found["bboxes"], dtype=np.float32).reshape(-1, 4))
        return changed, Boxes(xyxy, torch.tensor(np.asarray(found["labels"], dtype=np.int64).reshape(-1)))

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "_compose": None}


def compose_boxes(spec: Spec) -> Any:
    """An `albumentations.Compose` that takes `image`, `bboxes` (xyxy in pixels) and `labels`.

    Raises:
        UserError: for a name or a setting that albumentations does not know.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got processor for bboxes")  # transforms of colours alone have nothing to do with boxes
        return compose(
            spec, bbox_params={"format": "pascal_voc", "label_fields": ["labels"], "clip": True, "min_width": 1, "min_height": 1}
        )
