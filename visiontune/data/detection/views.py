"""What training does to a picture with boxes: plain numbers, and published sets of them by name."""

from dataclasses import dataclass, fields
from typing import Any

from visiontune.data.user_transforms import Spec
from visiontune.errors import UserError, near


@dataclass(frozen=True)
class BoxView:
    """What happens to a picture and its boxes on their way to the network. Each is a key of the recipe's `data.augment`.

    Attributes:
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        scale: smallest and largest size of the picture, 1 being the largest that fits. A larger one is cropped at a random place, a
            smaller one is put there.
        min_visible: share of its area that a box must still show after cropping; else it is left out.
        jitter: probability of each of the four changes of colour.
        brightness: strength of the factor for brightness.
        contrast: likewise.
        saturation: likewise.
        hue: largest shift of the hue, in turns.
        mosaic: probability of four pictures around a point instead of one.
        mixup: probability of another picture laid over it, each at half its strength, with the boxes of both.
        plain_end: share of the epochs, the last ones, without mosaic and mixup.
        sizes: smallest and largest side of a batch, as factors of the run's; in steps of 32 pixels, drawn for each batch.
        albumentations: the user's own, after all else; boxes follow.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    min_visible: float = 0.1
    jitter: float = 0.5
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05
    mosaic: float = 0.0
    mixup: float = 0.0
    plain_end: float = 0.1
    sizes: tuple[float, float] = (1.0, 1.0)
    albumentations: Spec | None = None

    @classmethod
    def of(cls, *parts: dict[str, Any]) -> "BoxView":
        """From dictionaries of these keys; later ones replace those of earlier ones.

        Raises:
            UserError: for a key that is none of these.
        """
        names = [f.name for f in fields(cls)]
        merged: dict[str, Any] = {k: v for part in parts for k, v in part.items()}
        if unknown := [k for k in merged if k not in names]:
            raise UserError(f"data.augment: unknown {unknown[0]!r}; allowed: {', '.join(names)}{near(unknown[0], names)}")
        return cls(**{k: tuple(v) if isinstance(v, list) and k != "albumentations" else v for k, v in merged.items()})

    def mixed_epochs(self, epochs: int) -> int:
        """How many epochs, the first ones, have mosaic and mixup; with a `plain_end` above 0 the last one never has."""
        if not (self.mosaic or self.mixup) or not self.plain_end:
            return epochs
        return max(0, min(epochs - 1, round(epochs * (1 - self.plain_end))))


# Colours in all of them as Liu et al. 2016 (arXiv 1512.02325, SSD) distort them: brightness by 32 of 255, hue by 18 of 360 degrees.
BOX_PIPELINES: dict[str, dict[str, Any]] = {
    # the whole picture, as it is validated
    "none": {"flip": 0.0, "scale": (1.0, 1.0), "jitter": 0.0},
    # Ghiasi et al. 2021 (arXiv 2012.07177), section 3: standard scale jittering, for schedules of some dozen epochs
    "standard": {"scale": (0.8, 1.25)},
    # ibid.: large scale jittering, for long schedules and training from scratch
    "large_scale": {"scale": (0.1, 2.0)},
    # Ge et al. 2021 (arXiv 2107.08430), section 2: mosaic and mixup in all but the last 15 of 300 epochs; scales and the sides of
    # batches as in the authors' code (mosaic_scale 0.1 to 2, mixup_scale 0.5 to 1.5: one range here; 448 to 832 of 640 pixels)
    "yolox": {"mosaic": 1.0, "mixup": 1.0, "scale": (0.5, 1.5), "plain_end": 0.05, "sizes": (0.7, 1.3)},
}
