"""Weights as one safetensors file that says what they are, or as a folder that plain timm loads."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from visiontune.backbones.files import CONFIG_KEY
from visiontune.errors import UserError


def export_weights_file(network: nn.Module, config: dict[str, Any], out: Path, *, fp16: bool = False) -> Path:
    """Write a network's tensors with its `config.json`: in one file where `out` ends in `.safetensors`, else as a folder.

    Args:
        network: a timm module, or a detector's backbone, pyramid and head.
        config: as in the `config.json` of exported weights.
        out: not there yet.
        fp16: floats as half precision, half the bytes; they load into a network of fp32 as they are.

    Raises:
        UserError: if `out` is there already, or a weight is too large for half precision.
    """
    if out.exists():
        raise UserError(f"export: {out} is there already; give another name with --out, or remove it")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if fp16:
        tensors = {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}
        if unfit := [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]:
            raise UserError(f"export: {unfit[0]} has weights above 65,504, which half precision cannot hold; leave --fp16 out")
    one = out.suffix == ".safetensors"
    if one and not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it, or name a file in one that is there")
    if one:  # one entry: several would be written in an order of their own each time
        part = out.with_name(f"{out.name}.part")  # half a file would be taken for a whole one
        safetensors.torch.save_file(tensors, part, metadata={CONFIG_KEY: json.dumps(config)})
        part.replace(out)
        return out
    out.mkdir(parents=True)
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return out
