"""Weights to use elsewhere: a folder that plain timm loads, `timm.create_model("local-dir:FOLDER", pretrained=True)`.

One with a small stem it refuses, for it cannot build that; `visiontune.load(FOLDER).network` does.
The files hold no time, path or name of the run: the same training gives the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from visiontune.backbones import STEM_KEY, Spec

Labels = Literal["single", "multi"]


def save_timm_folder(
    model: nn.Module,
    folder: Path,
    spec: Spec,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int = 0,
    class_names: Sequence[str] = (),
    without: Sequence[str] = (),
    reading: dict[str, Any] | None = None,
    labels: Labels = "single",
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
) -> None:
    """Write `model.safetensors` and `config.json`.

    Args:
        model: a timm module.
        folder: made if missing.
        spec: how the module was made.
        mean: that its pictures are normalised with; likewise `std`.
        num_classes: outputs of its classifier; 0 for a backbone.
        class_names: in the order of the outputs.
        without: prefixes of tensors to leave out (a classifier).
        reading: how pictures become uint8, where that is not the usual way.
        labels: whether a picture has one label, or any number of them.
        temperature: that logits are divided by before they become scores.
        thresholds: of several labels, the score from which each is given; 0.5 without them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if not name.startswith(tuple(without))
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = timm_config(model, spec, mean, std, num_classes, class_names) | ({"reading": reading} if reading else {})
    config |= score_keys(labels, temperature, thresholds)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def timm_config(
    model: nn.Module, spec: Spec, mean: Sequence[float], std: Sequence[float], num_classes: int, class_names: Sequence[str]
) -> dict[str, Any]:
    cfg = getattr(model, "pretrained_cfg", {})
    size = [spec.image_size] * 2 if isinstance(spec.image_size, int) else list(spec.image_size)
    keep = ("interpolation", "first_conv", "classifier", "fixed_input_size", "pool_size")
    config: dict[str, Any] = {
        "architecture": spec.name,
        "num_classes": num_classes,
        "num_features": getattr(model, "num_features", None),
        "global_pool": spec.args.get("global_pool"),
        "model_args": dict(spec.args)
        | ({"in_chans": spec.channels} if spec.channels != 3 else {})
        | ({STEM_KEY: spec.stem} if spec.stem != "timm" else {}),
        "pretrained_cfg": {k: cfg[k] for k in keep if cfg.get(k) is not None}
        | {"input_size": [spec.channels, *size], "crop_pct": 1.0, "crop_mode": "center", "num_classes": num_classes}
        | {"mean": [round(float(m), 6) for m in mean], "std": [round(float(s), 6) for s in std]},
    }
    if class_names:
        config["label_names"] = list(class_names)
    return {k: v for k, v in config.items() if v not in (None, {})}


def score_keys(labels: Labels, temperature: float, thresholds: Sequence[float]) -> dict[str, Any]:
    """How logits become scores and labels, as `config.json` says it; what is usual is left out."""
    keys: dict[str, Any] = {} if labels == "single" else {"labels": labels}
    if temperature != 1.0:
        keys["temperature"] = round(float(temperature), 6)
    return keys | ({"thresholds": [float(t) for t in thresholds]} if len(thresholds) else {})


def image_statistics(module: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation buffers of one of our modules, as lists."""
    return torch.as_tensor(module.mean).flatten().tolist(), torch.as_tensor(module.std).flatten().tolist()
