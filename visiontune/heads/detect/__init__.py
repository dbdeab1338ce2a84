"""Detection heads, one a file: a class named `Head` in `NAME.py` is what `head="NAME"` makes. See `find_head` for what it must do."""

import importlib
import pkgutil

from torch import nn

from visiontune.errors import UserError, near


def head_names() -> tuple[str, ...]:
    """The files beside this one that hold a head."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def find_head(name: str) -> type[nn.Module]:
    """The class behind a name: `Head` of a file here, or a class of one's own as `package.module.Class`.

    A head is a module `Head(width, num_classes, *, score_threshold, max_detections, nms, ...)` with

    - `loss(features, targets, image_size) -> dict[str, Tensor]`: parts that are added up;
    - `predict(features, image_size) -> list[Boxes]`: highest score first, in the pixels of the network's input, cut to `image_size`;
    - `CLIP`, the largest norm of the gradient where the user gives none (None: any), and `NMS`, the same for `nms`;
    - `PYRAMID`, if it is False: the head mixes strides itself. `width` is then three, of the backbone's own maps where it has all strides.

    Features are maps `(B, width, H / s, W / s)` of strides s of 8, 16 and 32, H and W filled up to multiples of 32; targets one `Boxes` a
    picture, whose labels count from 0; `image_size` rows and columns of pixels.

    Raises:
        UserError: if there is none.
    """
    if name in head_names():
        try:
            return importlib.import_module(f"{__name__}.{name}").Head
        except ImportError as error:
            raise UserError(
                f"head.name: {name} is built on transformers, which is missing or too old ({error}); pip install 'visiontune[detr]', or "
                "take fcos, retinanet or faster_rcnn"
            ) from error
    module, dot, attribute = name.rpartition(".")
    if dot:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"head.name: got {name!r}, but {error}; give the full path of a class that can be imported") from error
    names = head_names()
    raise UserError(f"head.name: got {name!r}; allowed: {', '.join(names)}, or package.module.Class of your own{near(name, names)}")
