"""Embeddings of a whole folder through a module's `represent`. N pictures, D width."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def embed_all(module: Any, batches: Iterable[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Clean pictures -> `(N, D)` float32 and labels `(N,)`, on the CPU.

    The module is in evaluation mode meanwhile and afterwards as it was, weights and statistics bit-identical.

    Args:
        module: with `represent` and `device`.
        batches: `{"images": [(B, 3, H, W)], "labels": (B,)}`; broken pictures are left out by the loader.
    """
    modes = {m: m.training for m in module.modules()}
    module.eval()
    embeddings, labels = [], []
    try:
        for batch in batches:
            if not batch["images"]:
                continue
            images = batch["images"][0].to(module.device, non_blocking=True)
            embeddings.append(module.represent(images).float().cpu())
            labels.append(batch["labels"])
    finally:
        for part, mode in modes.items():  # one by one: a frozen part inside a training module stays in evaluation mode
            part.training = mode
    return torch.cat(embeddings), torch.cat(labels)
