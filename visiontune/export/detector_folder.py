"""A detector's weights to use elsewhere: backbone, pyramid and head in one file, and what is needed to build them again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from visiontune.backbones import Spec
from visiontune.export.timm_folder import timm_config

# Keywords of a detector that its weights depend on, or that decide which boxes it gives.
OPTIONS = ("head", "head_args", "pyramid_width", "score_threshold", "max_detections", "nms")


def save_detector_folder(
    network: nn.Module,
    folder: Path,
    spec: Spec,
    *,
    options: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    reading: dict[str, Any] | None = None,
    shown_from: float | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`, which `visiontune.load` takes. timm has no detectors: it loads `weights/backbone`.

    Args:
        network: with the parts `backbone`, `pyramid` and `head`.
        folder: made if missing.
        spec: how the backbone was made.
        options: the detector's keywords; those of `OPTIONS` are kept.
        mean: that its pictures are normalised with; likewise `std`.
        class_names: in the order of the labels.
        reading: how pictures become uint8, where that is not the usual way.
        shown_from: lowest score of a box that is shown to people: the best one on the validation pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = timm_config(network.get_submodule("backbone"), spec, mean, std, len(class_names), class_names)
    config["detector"] = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if reading:
        config["reading"] = reading
    if shown_from is not None:
        config["shown_from"] = round(float(shown_from), 4)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
