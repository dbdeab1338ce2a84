"""View pipelines of published methods, by name, for any method: `data.augment.pipeline`.

Those of visiontune's own methods stand beside the method, and are found under its name too.
"""

from typing import Any

# Grill et al. 2020 (arXiv 2006.07733), appendix B; Chen et al. 2021 (arXiv 2104.02057, MoCo v3) take the same. The views differ: the first
# is always blurred, the second hardly ever, but solarised.
_BYOL = {
    "views": 2, "crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
    "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
}  # fmt: skip

PIPELINES: dict[str, dict[str, Any]] = {
    # the whole picture, resized
    "none": {},
    # Szegedy et al. 2015 (arXiv 1409.4842): the crop and flip of supervised training
    "crop": {"crop_scale": (0.08, 1.0), "flip": 0.5},
    "byol": _BYOL,
    "moco_v3": _BYOL,
    # Caron et al. 2021 (arXiv 2104.14294) and the authors' code: two large crops, eight small ones of 96 pixels
    "dino": {
        "views": 2, "crop_scale": (0.4, 1.0), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
        "hue": 0.1, "grey": 0.2, "blur": 1.0, "second": {"blur": 0.1, "solarize": 0.2},
        "local": {"views": 8, "image_size": 96, "crop_scale": (0.05, 0.4), "blur": 0.5},
    },
}  # fmt: skip
