"""The one base over LightningModule: pictures in, an embedding out, an optimiser from flat arguments, metrics without host waits.

B pictures, V views, C channels, D width.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import lightning as L
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from visiontune import backbones, optim
from visiontune.backbones.visible import is_prepared
from visiontune.errors import UserError
from visiontune.ranges import check_options


class Module(L.LightningModule):
    """Base of every method and of the fine-tuning modules. Subclasses write `training_step`.

    Args:
        backbone: timm's name, or a timm module of your own.
        weights: `"random"`, `"timm"` (fetched), a weights file or an exported folder; loaded whole or not at all.
        image_size: pixels of a side, or `(height, width)`.
        channels: channels of the pictures.
        backbone_args: more arguments for `timm.create_model`.
        mean: of each channel in [0, 1], for uint8 pictures; None takes timm's of this backbone.
        std: likewise.
        optimizer: `adamw`, `adam`, `sgd` or `lars`; None takes the method's own, as for the next three.
        lr: learning rate as it is applied, not scaled by the batch.
        weight_decay: of weights with more than one dimension.
        betas: of Adam.
        momentum: of SGD and LARS.
        warmup_steps: optimiser steps of linear warm-up; None takes a tenth of all steps.
        total_steps: optimiser steps of the whole run; None asks the Trainer.
        min_lr_factor: what the cosine ends at, as a share of `lr`.
        layer_decay: factor of the learning rate from each layer to the one below it.
        clip: largest norm of the gradient; None leaves it alone.

    Batches: uint8 is divided by 255 and normalised with `mean` and `std`; float is taken as normalised. `(B, C, H, W)`, or a list:
    one whose tensors are all 4-D is a list of views, otherwise its first element is the pictures and its second the labels.
    """

    OPTIM: ClassVar[dict[str, Any]] = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        weights: str = "random",
        image_size: int | Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 0,
        backbone_args: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        optimizer: str | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        betas: Sequence[float] | None = None,
        momentum: float | None = None,
        warmup_steps: int | None = None,
        total_steps: int | None = None,
        min_lr_factor: float = 0.0,
        layer_decay: float | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if backbone is None:
            raise UserError(
                "backbone: this checkpoint was made with a module of your own; give it again: load_from_checkpoint(path, backbone=...)"
            )
        # A module cannot be a hyperparameter: it is left out and asked for again. Weights are in the checkpoint by then.
        self.save_hyperparameters(ignore=["weights"] + ([] if isinstance(backbone, str) else ["backbone"]))
        if problem := check_options(type(self).__init__, self.hparams):
            raise UserError(f"{type(self).__name__}: {problem}")
        size = tuple(image_size) if isinstance(image_size, Sequence) else image_size
        own = not isinstance(backbone, str)
        if isinstance(backbone, str):
            backbone = backbones.create(
                backbone, image_size=size, channels=channels, num_classes=num_classes, pretrained=weights == "timm", args=backbone_args
            )
        elif is_prepared(backbone):
            raise UserError(
                f"backbone: this {type(backbone).__name__} is still prepared by another method; call that method's release() first"
            )
        self.backbone = backbone
        self.spec = backbones.spec_of(backbone)
        if own and size is not None:
            self.spec = replace(self.spec, image_size=size)  # a module of one's own may note the size of its weights
        if weights not in ("random", "timm"):
            backbones.load_weights(backbone, weights)
        face = self.face = backbones.describe(backbone, size or self.spec.image_size, self.spec.channels)
        if len(face.strides) > 1:  # convolutions are faster so, on CPU and GPU
            self.backbone.to(memory_format=torch.channels_last)

        cfg = getattr(backbone, "pretrained_cfg", None) or {}
        for name, given in (("mean", mean), ("std", std)):
            values = given if given is not None else cfg.get(name, (0.5,) * channels)
            if len(values) != channels:
                values = [sum(values) / len(values)] * channels
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, channels, 1, 1))

        defaults = dict(Module.OPTIM, betas=(0.9, 0.999), momentum=0.9) | self.OPTIM
        self.optimizer_name: str = optimizer or defaults["name"]
        self.lr: float = defaults["lr"] if lr is None else lr
        self.weight_decay: float = defaults["weight_decay"] if weight_decay is None else weight_decay
        self.betas = tuple(betas or defaults["betas"])
        self.momentum: float = defaults["momentum"] if momentum is None else momentum
        self.warmup_steps, self.total_steps, self.min_lr_factor = warmup_steps, total_steps, min_lr_factor
        self.layer_decay, self.clip = layer_decay, clip
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._left_out: list[nn.Parameter] = []
        self._released = False
        self.scheduled_steps = 1
        self.notes: list[str] = []  # decisions of the method, in words

    # ---------------------------------------------------------------- pictures in

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 `(B, C, H, W)` -> float, normalised; float passes through."""
        if images.dtype != torch.uint8:
            return images
        floats = images.to(self.mean.dtype)
        mean, std = self.mean * 255, self.std * 255
        if floats.is_contiguous(memory_format=torch.channels_last) and floats.device.type == "cpu":
            # The same numbers, row by row: three channels at a time take a CPU half as long again.
            B, C, H, W = floats.shape
            rows = floats.permute(0, 2, 3, 1).view(B * H, W * C)
            rows.sub_(mean.flatten().repeat(W)).div_(std.flatten().repeat(W))
            return floats
        return floats.sub_(mean).div_(std)

    def views(self, batch: Any) -> list[Tensor]:
        """The pictures of a batch as a list of normalised views; one view for batches of single pictures.

        Raises:
            UserError: after `release`, when what a method needs in the backbone is gone.
        """
        if self._released:
            raise UserError(f"{type(self).__name__}: release() has given its backbone back; make a new one to train on")
        if isinstance(batch, Tensor):
            return [self.normalize(batch)]
        if all(isinstance(x, Tensor) and x.ndim == 4 for x in batch):
            return [self.normalize(x) for x in batch]
        first = batch[0]
        return [self.normalize(first)] if isinstance(first, Tensor) else [self.normalize(x) for x in first]

    def represent(self, images: Tensor) -> Tensor:
        """Clean pictures `(B, C, H, W)`, uint8 or normalised -> the embedding, `(B, D)`. The only definition of it."""
        return backbones.embed(self.backbone, self.normalize(images))

    forward = represent

    @property
    def encoders(self) -> list[nn.Module]:
        """Backbones of timm that run at every step, for compiling block by block."""
        return [self.backbone]

    def release(self) -> nn.Module:
        """The backbone to keep, as timm makes it: without what a method changed in it for its training."""
        for parameter in self._left_out:
            parameter.requires_grad_(True)
        self._left_out, self._released = [], True
        return self.backbone

    def sync_batch_norms(self) -> None:
        """Statistics of batch norms over all processes, by timm's function: torch's drops the activation inside BatchNormAct2d."""
        convert_sync_batchnorm(self)

    def load_rest(self, path: str) -> list[str]:
        """Load what else of this method a weights file holds (a decoder, say); in words what came of it."""
        return backbones.load_beside(self, path)

    def load_rest_of(self, weights: str | None) -> None:
        """What a method's constructor does at its end: `load_rest` where weights are a file, with a warning of what did not fit."""
        if weights not in (None, "random", "timm"):
            for note in self.load_rest(weights):
                if "NOT loaded" in note:
                    warnings.warn(note, stacklevel=3)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the backbone was made for."""
        size = self.spec.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def leave_out(self, *parameters: nn.Parameter | None) -> None:
        """Do not train these parameters of the backbone (None: it has no such), until it is released."""
        for parameter in parameters:
            if parameter is not None and parameter.requires_grad:
                parameter.requires_grad_(False)
                self._left_out.append(parameter)

    def leave_out_unreached(self, forward: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Do not train what no output of `forward(images)` reaches (a head's pooling, say).

        Optimisers would decay it, and DDP would wait for its gradient. Tried on two blank pictures.
        """
        weight = next(self.backbone.parameters())
        blank = torch.zeros(2, self.spec.channels, *self.picture_size, device=weight.device, dtype=weight.dtype)
        with torch.enable_grad(), backbones.undisturbed(self):
            found = backbones.reached(forward(blank))
        self.leave_out(*(p for p in self.backbone.parameters() if id(p) not in found))

    # ---------------------------------------------------------------- optimiser

    def configure_optimizers(self) -> Any:
        total = self.scheduled_steps = self.total_steps or int(self.trainer.estimated_stepping_batches)
        warmup = total // 10 if self.warmup_steps is None else self.warmup_steps
        groups = optim.parameter_groups(
            self, weight_decay=self.weight_decay, lr=self.lr, backbone=self.backbone, layer_decay=self.layer_decay
        )
        # A fused optimiser unscales fp16 gradients itself, after clipping: there it would clip the scaled ones.
        fp16_clipped = self.clip is not None and str(self.trainer.precision).startswith("16")
        # Lightning's own clipping refuses fused optimisers in mixed precision.
        lightning_clips = self.trainer.gradient_clip_val is not None
        optimizer = optim.make_optimizer(
            self.optimizer_name, groups, lr=self.lr, betas=self.betas, momentum=self.momentum, fused=not (fp16_clipped or lightning_clips)
        )
        factor = optim.cosine_with_warmup(total, warmup, self.min_lr_factor)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        if self.clip is not None:  # Lightning's own refuses fused optimisers under bf16
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip, foreach=True)
        elif gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ---------------------------------------------------------------- metrics

    def record(self, **values: Tensor) -> None:
        """Add to training metrics; their means since the last report are logged every `log_every_n_steps`, in one transfer.

        A loss that is not finite ends the run at the next report: training on would only spend time.
        """
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1
        trainer: Any = self._trainer
        if trainer is None or (trainer.global_step + 1) % trainer.log_every_n_steps or self._summed % trainer.accumulate_grad_batches:
            return
        means = (torch.stack(list(self._sums.values())) / self._summed).tolist()
        report = dict(zip(self._sums, means, strict=True))
        self._sums, self._summed = {}, 0
        if not all(abs(v) < float("inf") for v in report.values()):
            raise UserError(
                f"training: {report} at step {trainer.global_step} is not finite; lower optim.lr (now {self.lr:g}), set optim.clip, "
                "or take trainer.precision=32-true"
            )
        self.log_dict({f"train/{k}": v for k, v in report.items()}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = {"sums": self._sums, "summed": self._summed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = checkpoint.get("record", {"sums": {}, "summed": 0})
        self._sums, self._summed = {k: v.to(self.device) for k, v in record["sums"].items()}, record["summed"]
