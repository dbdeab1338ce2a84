"""A detector in PyTorch with its own preprocessing: pictures in, boxes in their own pixels out."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.finetune.detect import Detector
from visiontune.predict.box_predictor import BoxPredictor


class DetectorModel(nn.Module, BoxPredictor):
    """What `visiontune.load` gives of a run that detects. A plain module: it moves by `to("cuda")`.

    Args:
        detector: with its weights.
        config: as in the `config.json` of exported weights.

    Attributes:
        detector: a `visiontune.Detector`.

    See `BoxPredictor` for the others, and for `predict` and `read`.
    """

    def __init__(self, detector: Detector, config: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        BoxPredictor.__init__(self, config)
        self.detector = detector

    @classmethod
    def read_folder(cls, folder: Path, config: dict[str, Any]) -> "DetectorModel":
        """From what `save_detector_folder` wrote, or the one file that `export` makes of it."""
        spec, cfg = backbones.Spec.of(config), config["pretrained_cfg"]
        detector = Detector(
            spec.name,
            image_size=spec.image_size,
            channels=spec.channels,
            backbone_args=spec.args,
            stem=spec.stem,
            mean=cfg["mean"],
            std=cfg["std"],
            num_classes=config["num_classes"],
            class_names=config["label_names"],
            freeze_batch_norms=False,
            **config["detector"],
        )
        file = folder if folder.is_file() else folder / "model.safetensors"
        try:
            detector.trained.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            cause = " ".join(str(error).split())[:200]
            raise UserError(f"load: {file} does not hold the weights of this detector ({cause}); copy or export it again") from error
        return cls(detector, config).eval()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.detector.mean.device

    def forward(self, images: Tensor) -> list[Boxes]:
        """`(B, C, H, W)`, uint8 or normalised float -> boxes with scores, in pixels of these pictures."""
        return self.detector.predict(images.to(self.device))

    def _ready(self) -> None:
        self.eval()
