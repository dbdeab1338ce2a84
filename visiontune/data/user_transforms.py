"""A user's own albumentations, from a recipe: a list of names and settings, or a file that albumentations saved.

    augment:
      albumentations:
        - RandomBrightnessContrast: {p: 0.3}
        - OneOf: {transforms: [MotionBlur, {GaussNoise: {p: 1}}], p: 0.5}

albumentations is imported with its update check off: it would ask a package index.
"""

import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.errors import UserError, near

KEY = "data.augment.albumentations"
Spec = str | Sequence[Any]


class UserTransforms:
    """albumentations on one picture, with a random state for each picture: its own seeding gives every transform the same numbers."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._compose: Any = None

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self._compose is None:  # made in each worker
            self._compose = compose(self.spec)
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self._compose(image=np.ascontiguousarray(pixels))["image"]
        if changed.shape != pixels.shape or changed.dtype != np.uint8:
            raise UserError(
                f"{KEY}: gave {changed.shape} {changed.dtype} of a view of {pixels.shape} uint8; transforms here keep size and type: "
                "crop with data.augment.crop_scale, resize with data.image_size, normalise with data.mean and data.std"
            )
        return changed

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "_compose": None}


def compose(spec: Spec, **more: Any) -> Any:
    """An `albumentations.Compose`.

    Args:
        spec: what the recipe says.
        more: of the Compose, such as `bbox_params`; of a saved pipeline they replace its own.

    Raises:
        UserError: for a name or a setting that albumentations does not know.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    if isinstance(spec, str):
        file = Path(spec)
        if not file.is_file():
            raise UserError(f"{KEY}: no file {spec}; give a list of transforms, or a YAML or JSON file (albumentations.save writes them)")
        import yaml

        found = yaml.safe_load(file.read_text())
        if isinstance(found, dict) and "transform" in found:
            try:
                loaded = A.from_dict(found)
            except Exception as error:
                raise UserError(f"{KEY}: {spec} is not a pipeline that albumentations {A.__version__} can load: {error}") from error
            if isinstance(loaded, A.Compose) and not more:
                return loaded
            return A.Compose(list(loaded.transforms) if isinstance(loaded, A.Compose) else [loaded], **more)
        if not isinstance(found, list):
            raise UserError(f"{KEY}: {spec} holds neither a list of transforms nor a pipeline saved by albumentations")
        spec = found
    return A.Compose([_transform(A, item) for item in spec], **more)


def _transform(A: Any, item: Any) -> Any:
    if isinstance(item, str):
        name: str = item
        settings: dict[str, Any] = {}
    elif isinstance(item, dict) and len(item) == 1:
        name, settings = next(iter(item.items()))
        settings = dict(settings or {})
    else:
        raise UserError(f"{KEY}: got {item!r}; expected a name, or a name with its settings: {{RandomGamma: {{p: 0.5}}}}")
    known = [k for k, v in vars(A).items() if isinstance(v, type) and issubclass(v, A.BasicTransform | A.BaseCompose)]
    if name not in known:
        raise UserError(f"{KEY}: albumentations has no transform {name!r}{near(str(name), known)}")
    if "transforms" in settings:
        settings["transforms"] = [_transform(A, inner) for inner in settings["transforms"]]
    settings = {k: tuple(v) if isinstance(v, list) and k != "transforms" else v for k, v in settings.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # it only warns of a setting that it does not know
            return getattr(A, name)(**settings)
    except Exception as error:
        listed = getattr(error, "errors", None)  # pydantic's
        said = ", ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in listed()) if callable(listed) else str(error)
        reason = " ".join(said.split())[:200]
        raise UserError(f"{KEY}: {name} does not take {settings}: {reason}") from error
