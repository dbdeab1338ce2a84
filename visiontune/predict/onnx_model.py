"""An exported ONNX file, run by onnxruntime, with the same face as a model in PyTorch."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiontune.errors import UserError
from visiontune.export.onnx_graph import CONFIG_KEY, INPUT_KEY, OUTPUT_KEY, open_session
from visiontune.predict.predictor import Predictor


class OnnxModel(Predictor):
    """What `visiontune.load("model.onnx")` gives: `predict`, `scores` and calls as of `Model`; embeddings of a backbone's file.

    Args:
        path: a file that `python -m visiontune export` wrote.
        device: `cpu`, or `cuda` where onnxruntime has it.

    Raises:
        UserError: if onnxruntime is missing, or the file is not such a one.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.path = str(path)
        self.session = open_session(Path(path), device)
        facts = self.session.get_modelmeta().custom_metadata_map
        if CONFIG_KEY not in facts:
            raise UserError(f"load: {path} does not tell its classes and preprocessing; write it by `python -m visiontune export RUN onnx`")
        super().__init__(json.loads(facts[CONFIG_KEY]))
        self.input, self.output = facts[INPUT_KEY], facts[OUTPUT_KEY]
        cfg: dict[str, Any] = self.config["pretrained_cfg"]
        self.mean, self.std = (torch.tensor(cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised float -> logits `(B, K)`, or embeddings `(B, D)` of a backbone without a head.

        Raises:
            UserError: for floats, where the file normalises uint8 itself.
        """
        if self.input != "float" and images.dtype != torch.uint8:
            raise UserError(f"{self.path}: normalises pictures itself, and takes uint8; got {images.dtype}")
        if self.input == "nhwc":
            images = images.permute(0, 2, 3, 1)
        elif self.input == "float" and images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        (out,) = self.session.run(None, {"pictures": images.cpu().contiguous().numpy()})
        return torch.from_numpy(out)

    def embed(self, images: Tensor) -> Tensor:
        if self.output != "embedding":
            raise UserError(f"embed: {self.path} ends in a classifier; load the run itself, or export its backbone (RUN/weights/backbone)")
        return self(images)

    embed.__doc__ = Predictor.embed.__doc__
