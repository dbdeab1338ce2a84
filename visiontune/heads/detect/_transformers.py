"""How a model of transformers comes to stand on maps of our backbones: without a backbone of its own, and with its encoder apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedConfig

from visiontune.errors import UserError


class MapsConfig(PreTrainedConfig):
    """Says how wide the maps are, where transformers wants the configuration of a backbone: nothing is looked up, nothing downloaded."""

    model_type = "visiontune_maps"
    channels: tuple[int, ...] = ()


class Maps(nn.Module):
    """Stands for the backbone while transformers' constructors ask one for its widths. It never sees timm's modules, whose batch norms
    transformers would replace by others that do not activate."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)

    @classmethod
    def _from_config(cls, config: Any, **_: Any) -> "Maps":
        return cls(config.channels)


AutoBackbone.register(MapsConfig, Maps, exist_ok=True)


class Encoded(list):
    """Maps that are encoded, for a model's forward that asks its input, a tensor elsewhere, for its shape and device."""

    device = torch.device("cpu")  # of the table of shapes: checking one on the GPU would wait for it

    @property
    def shape(self) -> torch.Size:
        return self[0].shape


class Passed(nn.Module):
    """In the encoder's place in the model: the encoder has run before, under autocast."""

    def __init__(self, output: type, field: str) -> None:
        super().__init__()
        self.output, self.field = output, field

    def forward(self, maps: Encoded, **_: Any) -> Any:
        return self.output(**{self.field: list(maps)})


def sized(sizes: Mapping[str, Mapping[str, Any]], size: str, hidden: int | None, decoder_layers: int | None) -> dict[str, Any]:
    """A row of the table, with what is given besides."""
    given = {"hidden": hidden, "decoder_layers": decoder_layers}
    return dict(sizes[size]) | {k: v for k, v in given.items() if v is not None}


def common_config(
    widths: Sequence[int], num_classes: int, *, hidden: int, ffn: int, decoder_layers: int, denoising: int, decoder_ffn: int | None = None
) -> dict[str, Any]:
    """Keywords of all three configurations.

    Raises:
        UserError: if attention cannot share the width among its heads.
    """
    if hidden % 32:
        raise UserError(f"head.hidden: got {hidden}; attention of 8 heads and positions of 4 parts need a multiple of 32")
    return {
        "backbone_config": MapsConfig(channels=tuple(widths)),
        "freeze_backbone_batch_norms": False,
        "num_labels": num_classes,
        "encoder_in_channels": list(widths),
        "encoder_hidden_dim": hidden,
        "encoder_ffn_dim": ffn,
        "d_model": hidden,
        "decoder_in_channels": [hidden] * 3,
        "decoder_ffn_dim": decoder_ffn or ffn,
        "decoder_layers": decoder_layers,
        "num_denoising": denoising,
        "tie_word_embeddings": False,  # each layer has classifiers and sides of its own, as in the papers
        "initializer_bias_prior_prob": 0.01,  # the authors'; transformers' 1 / (K + 1) lets few classes start with many boxes
        # torch's own for a layer of this width, which the authors take; transformers' 0.01 is for weights that are loaded afterwards
        "initializer_range": (3 * hidden) ** -0.5,
    }
