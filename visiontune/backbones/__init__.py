"""timm behind one face: create a backbone, load weights into it from anywhere, ask it for embeddings, tokens and levels."""

from visiontune.backbones.create import Spec, check_name, create, spec_of
from visiontune.backbones.face import Face, describe, embed, features, is_plain_vit, layer_order, tokens
from visiontune.backbones.files import read_config, read_weights
from visiontune.backbones.weights import LoadReport, load_weights

__all__ = [
    "Face", "LoadReport", "Spec", "check_name", "create", "describe", "embed", "features", "is_plain_vit", "layer_order",
    "load_weights", "read_config", "read_weights", "spec_of", "tokens",
]  # fmt: skip
