"""The two steps that are timed: pictures to scores, and one optimiser step. Pictures lie on the device already: no file is read.

B pictures, K classes.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune import backbones
from visiontune.build import compile_blocks

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
TRUE = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


class Steps:
    """Of one network on one device.

    Args:
        network: `(B, channels, H, W)` -> `(B, K)`; moved, and trained with a learning rate of 0: its statistics change, its weights do not.
        size: height and width in pixels.
        channels: of the pictures.
        device: where.
        precision: one of `PRECISIONS`, as a recipe's `trainer.precision`.
        compiled: block by block by torch.compile, as a recipe's `compile`.
    """

    def __init__(
        self, network: nn.Module, *, size: tuple[int, int], channels: int, device: torch.device, precision: str, compiled: bool = False
    ) -> None:
        self.size, self.channels, self.device, self.precision, self.compiled = size, channels, device, precision, compiled
        self.dtype = TRUE.get(precision, torch.float32)
        self.network = network.to(device=device, dtype=self.dtype)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        if compiled:
            compile_blocks(network)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def inference(self, batch: int, channels_last: bool) -> Callable[[], Tensor]:
        """As `torch.utils.benchmark` would be given it: `network(images)` in inference mode, and nothing beside it."""
        images = self._prepare(batch, channels_last)
        network = self.network.eval()

        def step() -> Tensor:
            with torch.inference_mode(), self._autocast():
                return network(images)

        return step

    def training(self, batch: int, channels_last: bool) -> Callable[[], None]:
        """Forward, cross entropy, backward and AdamW over all parameters."""
        images = self._prepare(batch, channels_last)
        network = self.network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "16-mixed")
        labels = torch.zeros(batch, dtype=torch.long, device=self.device)

        def step() -> None:
            with self._autocast():
                loss = F.cross_entropy(network(images).float(), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _prepare(self, batch: int, channels_last: bool) -> Tensor:
        if self.compiled:
            torch.compiler.reset()  # every batch is a program of its own; beyond eight of them torch would go on without compiling
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            backbones.to_channels_last(self.network)
        else:
            self.network.to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.randn(batch, self.channels, *self.size, device=self.device, dtype=self.dtype)
        return images.to(memory_format=layout)

    def _autocast(self) -> Any:
        if self.precision not in MIXED:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=MIXED[self.precision])
