"""visiontune: pretrain any timm backbone on unlabelled pictures, fine-tune it on few labels, and prove what it brought.

The public names are imported when they are first used: `import visiontune` costs no torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiontune.finetune.classify import Classifier
    from visiontune.predict import load
    from visiontune.pretrain.ijepa import IJEPA
    from visiontune.pretrain.mae import MAE
    from visiontune.pretrain.simclr import SimCLR
    from visiontune.pretrain.simmim import SimMIM
    from visiontune.pretrain.spark import SparK

try:
    __version__ = version("visiontune")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"

__all__ = ["IJEPA", "MAE", "Classifier", "SimCLR", "SimMIM", "SparK", "load"]

_HOMES = {
    "IJEPA": "visiontune.pretrain.ijepa",
    "MAE": "visiontune.pretrain.mae",
    "SimCLR": "visiontune.pretrain.simclr",
    "SimMIM": "visiontune.pretrain.simmim",
    "SparK": "visiontune.pretrain.spark",
    "Classifier": "visiontune.finetune.classify",
    "load": "visiontune.predict",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'visiontune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
