"""visiontune: pretrain any timm backbone on unlabelled pictures, fine-tune it on few labels, and prove what it brought.

The public names are imported when they are first used: `import visiontune` costs no torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiontune.finetune.classify import Classifier
    from visiontune.finetune.detect import Detector
    from visiontune.predict import load
    from visiontune.pretrain.barlow_twins import BarlowTwins
    from visiontune.pretrain.byol import BYOL
    from visiontune.pretrain.dino import DINO
    from visiontune.pretrain.dinov2 import DINOv2
    from visiontune.pretrain.distill import Distill
    from visiontune.pretrain.ibot import IBOT
    from visiontune.pretrain.ijepa import IJEPA
    from visiontune.pretrain.lejepa import LeJEPA
    from visiontune.pretrain.mae import MAE
    from visiontune.pretrain.mocov2 import MoCoV2
    from visiontune.pretrain.mocov3 import MoCoV3
    from visiontune.pretrain.simclr import SimCLR
    from visiontune.pretrain.simmim import SimMIM
    from visiontune.pretrain.simsiam import SimSiam
    from visiontune.pretrain.spark import SparK
    from visiontune.pretrain.swav import SwAV
    from visiontune.pretrain.vicreg import VICReg

try:
    __version__ = version("visiontune")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"

__all__ = [
    "BYOL",
    "DINO",
    "IBOT",
    "IJEPA",
    "MAE",
    "BarlowTwins",
    "Classifier",
    "DINOv2",
    "Detector",
    "Distill",
    "LeJEPA",
    "MoCoV2",
    "MoCoV3",
    "SimCLR",
    "SimMIM",
    "SimSiam",
    "SparK",
    "SwAV",
    "VICReg",
    "load",
]

_HOMES = {
    "BarlowTwins": "visiontune.pretrain.barlow_twins",
    "BYOL": "visiontune.pretrain.byol",
    "DINO": "visiontune.pretrain.dino",
    "DINOv2": "visiontune.pretrain.dinov2",
    "Distill": "visiontune.pretrain.distill",
    "IBOT": "visiontune.pretrain.ibot",
    "IJEPA": "visiontune.pretrain.ijepa",
    "LeJEPA": "visiontune.pretrain.lejepa",
    "MAE": "visiontune.pretrain.mae",
    "MoCoV2": "visiontune.pretrain.mocov2",
    "MoCoV3": "visiontune.pretrain.mocov3",
    "SimCLR": "visiontune.pretrain.simclr",
    "SimMIM": "visiontune.pretrain.simmim",
    "SimSiam": "visiontune.pretrain.simsiam",
    "SparK": "visiontune.pretrain.spark",
    "SwAV": "visiontune.pretrain.swav",
    "VICReg": "visiontune.pretrain.vicreg",
    "Classifier": "visiontune.finetune.classify",
    "Detector": "visiontune.finetune.detect",
    "load": "visiontune.predict",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'visiontune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
