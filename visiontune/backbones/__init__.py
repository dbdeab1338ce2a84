"""timm behind one face: create a backbone, load weights into it from anywhere, ask it for embeddings, tokens and levels."""

from visiontune.backbones.create import STEM_KEY, Spec, Stem, check_name, create, spec_of, timm_size
from visiontune.backbones.face import (
    Face,
    any_size,
    describe,
    embed,
    embed_and_tokens,
    features,
    fitting_masked_methods,
    has_attention,
    is_plain_vit,
    layer_order,
    levels,
    mean_of_patches,
    reached,
    repeated_blocks,
    to_channels_last,
    tokens,
    undisturbed,
)
from visiontune.backbones.files import read_config, read_weights
from visiontune.backbones.weights import LoadReport, head_names, load_beside, load_weights, rebuild

__all__ = [
    "STEM_KEY", "Face", "LoadReport", "Spec", "Stem", "any_size", "check_name", "create", "describe", "embed", "embed_and_tokens",
    "features", "fitting_masked_methods", "has_attention", "head_names", "is_plain_vit", "layer_order", "levels", "load_beside",
    "load_weights", "mean_of_patches", "reached", "read_config", "read_weights", "rebuild", "repeated_blocks", "spec_of",
    "timm_size", "to_channels_last", "tokens", "undisturbed",
]  # fmt: skip
