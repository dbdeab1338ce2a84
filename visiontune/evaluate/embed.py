"""Embeddings of a whole folder through a module's `represent`. N pictures, D width."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from visiontune.errors import UserError, some


@torch.no_grad()
def embed_all(
    module: Any, batches: Iterable[dict[str, Any]], on_broken: Callable[[list[tuple[str, str]]], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Clean pictures -> `(N, D)` float32 and labels `(N,)`, on the CPU.

    The module is in evaluation mode meanwhile and afterwards as it was, weights and statistics bit-identical.

    Args:
        module: with `represent` and `device`.
        batches: `{"images": [(B, 3, H, W)], "labels": (B,), "broken": [(path, cause)]}`; broken pictures are left out by the loader.
        on_broken: told of those.

    Raises:
        UserError: if no picture could be read.
    """
    modes = {m: m.training for m in module.modules()}
    module.eval()
    embeddings: list[Tensor] = []
    labels: list[Tensor] = []
    broken: list[tuple[str, str]] = []
    try:
        for batch in batches:
            if batch.get("broken"):
                broken += batch["broken"]
            if not batch["images"]:
                continue
            images = batch["images"][0].to(module.device, non_blocking=True)
            embeddings.append(module.represent(images).float().cpu())
            labels.append(batch["labels"])
    finally:
        for part, mode in modes.items():  # one by one: a frozen part inside a training module stays in evaluation mode
            part.training = mode
    if broken and on_broken is not None:
        on_broken(broken)
    if not embeddings:
        raise UserError(f"probe: no picture could be read: {some(f'{p} ({c})' for p, c in broken)}")
    return torch.cat(embeddings), torch.cat(labels)
