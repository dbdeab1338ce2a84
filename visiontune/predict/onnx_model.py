"""An exported ONNX file, run by onnxruntime, with the same face as a model in PyTorch."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.export.onnx_detector import DETECTIONS
from visiontune.export.onnx_file import CONFIG_KEY, INPUT_KEY, OUTPUT_KEY
from visiontune.export.onnx_session import open_session
from visiontune.heads import dense
from visiontune.predict.box_predictor import BoxPredictor
from visiontune.predict.predictor import Predictor


class OnnxFile:
    """A file in onnxruntime that says what it is.

    Args:
        path: what `python -m visiontune export` wrote.
        device: `cpu`, or `cuda` where onnxruntime has it.

    Attributes:
        facts: what it says, by name: words, or JSON.
        config: as in the `config.json` of exported weights.

    Raises:
        UserError: if onnxruntime is missing, or the file is not such a one.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.path = str(path)
        self.session = open_session(Path(path), device)
        self.facts: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if CONFIG_KEY not in self.facts:
            raise UserError(f"load: {path} does not tell its classes and preprocessing; write it by `python -m visiontune export RUN onnx`")
        self.config: dict[str, Any] = json.loads(self.facts[CONFIG_KEY])
        self.input = self.facts[INPUT_KEY]
        cfg = self.config["pretrained_cfg"]
        self.mean, self.std = (torch.tensor(cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def __call__(self, images: Tensor) -> list[Tensor]:
        """`(B, C, H, W)`, uint8 or normalised float -> all outputs.

        Raises:
            UserError: for floats, where the file normalises uint8 itself.
        """
        if self.input != "float" and images.dtype != torch.uint8:
            raise UserError(f"{self.path}: normalises pictures itself, and takes uint8; got {images.dtype}")
        images = images.cpu()
        if self.input == "nhwc":
            images = images.permute(0, 2, 3, 1)
        elif self.input == "float" and images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        return [torch.from_numpy(out) for out in self.session.run(None, {"pictures": images.contiguous().numpy()})]


class OnnxModel(Predictor):
    """What `visiontune.load("model.onnx")` gives: `predict`, `scores` and calls as of `Model`; embeddings of a backbone's file.

    Args:
        file: that classifies, or of a backbone.
    """

    def __init__(self, file: OnnxFile) -> None:
        super().__init__(file.config)
        self.file = file

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> logits `(B, K)`, or embeddings `(B, D)` of a backbone without a head.

        Raises:
            UserError: for floats, where the file normalises uint8 itself.
        """
        (out,) = self.file(images)
        return out

    def embed(self, images: Tensor) -> Tensor:
        if self.file.facts[OUTPUT_KEY] != "embedding":
            raise UserError(
                f"embed: {self.file.path} ends in a classifier; load the run itself, or export its backbone (RUN/weights/backbone)"
            )
        return self(images)

    embed.__doc__ = Predictor.embed.__doc__


class OnnxDetector(BoxPredictor):
    """What `visiontune.load("model.onnx")` gives of a detector: `predict` and calls as of `DetectorModel`.

    Where the file leaves NMS to others it is done here, with the limits that the file tells.

    Args:
        file: that detects.
    """

    def __init__(self, file: OnnxFile) -> None:
        super().__init__(file.config)
        self.file = file
        score, nms, self.max_detections = (json.loads(file.facts[k]) for k in ("score_threshold", "nms_iou", "max_detections"))
        # All levels come as one here: as many candidates as of five.
        self.limits = dense.Limits(len(self.class_names), score, nms, 5000, self.max_detections)

    def __call__(self, images: Tensor) -> list[Boxes]:
        """`(B, C, H, W)`, uint8 or normalised float -> boxes with scores, in pixels of these pictures.

        Raises:
            UserError: for floats, where the file normalises uint8 itself.
        """
        outputs = self.file(images)
        if self.file.facts[OUTPUT_KEY] == DETECTIONS:
            boxes, scores, labels = outputs
        else:
            boxes, scores, labels = dense.best([(outputs[0], outputs[1])], self.limits)
        return dense.as_boxes(boxes, scores, labels)


def load_onnx(path: str | Path, *, device: str = "cpu") -> OnnxModel | OnnxDetector:
    """A file that `python -m visiontune export` wrote. Arguments and errors as of `OnnxFile`."""
    file = OnnxFile(path, device=device)
    return OnnxDetector(file) if "detector" in file.config else OnnxModel(file)
