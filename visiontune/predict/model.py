"""A timm network with its own preprocessing."""

from typing import Any

import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.predict.predictor import Predictor


class Model(nn.Module, Predictor):
    """A timm network with its own preprocessing: what `visiontune.load` gives.

    Args:
        network: a timm module, with a classifier or without.
        config: as in the `config.json` of exported weights.

    Attributes:
        network: timm's module itself.

    See `Predictor` for the others, and for `predict`, `embeddings`, `scores` and `read`. It is a plain module: it moves by `to("cuda")`,
    and takes pictures from anywhere.

    >>> import timm
    >>> from visiontune.predict import Model
    >>> network = timm.create_model("test_vit", num_classes=2)
    >>> facts = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    >>> model = Model(network, {"num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": facts}).eval()
    >>> pictures = torch.zeros(4, 3, 160, 160, dtype=torch.uint8)
    >>> model(pictures).shape, model.scores(pictures).sum(dim=1).shape, model.embed(pictures).shape
    (torch.Size([4, 2]), torch.Size([4]), torch.Size([4, 64]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        Predictor.__init__(self, config)
        cfg = config["pretrained_cfg"]
        self.network = network
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, -1, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 `(B, C, H, W)` -> float, normalised; float passes through. Moved to the network's device."""
        images = images.to(self.device)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std if images.dtype == torch.uint8 else images

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> logits `(B, K)`, or embeddings `(B, D)` of a backbone without a head."""
        return self.network(self.normalize(images)) if self.class_names else self.embed(images)

    def embed(self, images: Tensor) -> Tensor:
        return backbones.embed(self.network, self.normalize(images))

    embed.__doc__ = Predictor.embed.__doc__

    def _ready(self) -> None:
        self.eval()
