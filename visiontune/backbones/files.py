"""Weight files as they are found in the world: plain, wrapped, prefixed, exported. Read only as tensors, never as code."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from visiontune.errors import UserError, some

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Where a single file of weights holds what is config.json's in a folder.
CONFIG_KEY = "config"


def read_config(path: Path) -> dict[str, Any] | None:
    """The `config.json` inside a weights file or beside it (timm's format), or None."""
    if path.suffix == ".safetensors" and (inside := _header(path).get(CONFIG_KEY)):
        return json.loads(inside)
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text())
    return found if "architecture" in found else None


def _header(path: Path) -> dict[str, str]:
    """The words in a safetensors file; none in what cannot be read, which is told when its tensors are wanted."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return {}


def read_weights(path: str | Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every set of tensors in a weights file or an exported folder.

    Returns:
        Pairs of the place inside the file (`""`, `"state_dict"`, `"teacher"`, ...) and its tensors by name, in the file's order.

    Raises:
        UserError: if the path is missing, is no weights file, or holds Python objects besides tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = _inside(path)
    if not path.exists():
        parent = path.parent
        beside = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
        there = f"; in {parent} there is {some(beside)}" if beside else f"; there is no folder {parent} either"
        raise UserError(f"backbone.weights: no file {path}{there}")
    try:
        if path.suffix == ".safetensors":
            return [("", safetensors.torch.load_file(path))]
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _looks_like_torch(path):
            raise UserError(
                f"backbone.weights: {path} holds Python objects besides tensors, which could run code when loaded; save its state dict "
                f"alone with torch.save(model.state_dict(), ...) and give that file ({str(error).splitlines()[0][:150]})"
            ) from error
        raise UserError(_not_weights(path)) from error
    except Exception as error:  # on bytes that are no pickle, torch's reader fails in any way: IndexError, KeyError, EOFError, ...
        raise UserError(_not_weights(path)) from error
    found = list(_tensor_dicts(loaded, ""))
    if not found:
        raise UserError(f"backbone.weights: {path} was read but holds no named tensors (found {type(loaded).__name__})")
    return found


def tensors_with(path: str | Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file beside one of this name, without the prefix that all of them have; empty if there is none."""
    for _, tensors in read_weights(path):
        for key in tensors:
            if key == name or key.endswith("." + name):
                prefix = key.removesuffix(name)
                return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {}


def _inside(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    listed = sorted(p.name for p in folder.iterdir())
    raise UserError(
        f"backbone.weights: the folder {folder} holds neither model.safetensors nor weights/backbone of a finished run; "
        f"there is {some(listed) if listed else 'nothing in it'}"
    )


def _looks_like_torch(path: Path) -> bool:
    head = path.read_bytes()[:2] if path.is_file() else b""
    return head == b"PK" or head[:1] == b"\x80"


def _not_weights(path: Path) -> str:
    head = path.read_bytes()[:60] if path.is_file() else b""
    begins = f"it begins with {head[:24]!r}" if head else "it is empty"
    return f"backbone.weights: {path} is not a weights file ({begins}); allowed: {', '.join(SUFFIXES)} with tensors, or a run folder"


def _tensor_dicts(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(value, dict) or depth > 3:
        return
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield place, tensors
    for key, inner in value.items():
        if isinstance(key, str):
            yield from _tensor_dicts(inner, f"{place}.{key}" if place else key, depth + 1)
