"""The one base over LightningModule: pictures in, an embedding out, an optimiser from flat arguments, metrics without host waits.

B pictures, V views, C channels, D width.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from visiontune import backbones, optim
from visiontune.backbones.visible import is_prepared
from visiontune.errors import UserError
from visiontune.metrics import Agreed
from visiontune.ranges import check_options
from visiontune.teacher import Teacher


class Module(L.LightningModule):
    """Base of every method and of the fine-tuning modules. Subclasses write `training_step`.

    Args:
        backbone: timm's name, or a timm module of your own.
        weights: `"random"`, `"timm"` (fetched), a weights file or an exported folder; loaded whole or not at all.
        image_size: pixels of a side, or `(height, width)`.
        channels: channels of the pictures.
        backbone_args: more arguments for `timm.create_model`.
        stem: `small` gives a convnet by name a first convolution of stride 1 and no pool behind it, for pictures of 32 to 64 pixels.
        mean: of each channel in [0, 1], for uint8 pictures; None takes timm's of this backbone.
        std: likewise.
        optimizer: `adamw`, `adam`, `sgd` or `lars`; None takes the method's own, as for the next three.
        lr: learning rate as it is applied, not scaled by the batch.
        weight_decay: of weights with more than one dimension.
        weight_decay_end: what it comes to at the end, along half a cosine; None: the method's, where optimiser and weight decay are the
            method's own, else it stays as it is.
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
    KEEPS: ClassVar[Literal["student", "teacher"]] = "student"  # whose backbone the method is after
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
        stem: backbones.Stem = "timm",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        optimizer: str | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        weight_decay_end: float | None = None,
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice to ignore modules, which the next lines do
            self.save_hyperparameters(ignore=["weights"] + ([] if isinstance(backbone, str) else ["backbone"]))
        for kept in (self._hparams, self._hparams_initial):
            for name in [k for k, v in kept.items() if isinstance(v, nn.Module)]:
                del kept[name]
        if problem := check_options(type(self).__init__, self.hparams):
            raise UserError(f"{type(self).__name__}: {problem}")
        size = tuple(image_size) if isinstance(image_size, Sequence) else image_size
        own = not isinstance(backbone, str)
        if isinstance(backbone, str):
            backbone = backbones.create(
                backbone,
                image_size=size,
                channels=channels,
                num_classes=num_classes,
                pretrained=weights == "timm",
                args=backbone_args,
                stem=stem,
            )
        elif stem != "timm":
            raise UserError(
                "backbone.stem: a module of your own is taken as it is; make it by `visiontune.backbones.create(name, stem='small')`"
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
            backbones.to_channels_last(self.backbone)

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
        if weight_decay_end is None and (self.optimizer_name, self.weight_decay) == (defaults["name"], defaults["weight_decay"]):
            weight_decay_end = defaults.get("weight_decay_end")  # a method's schedule belongs to its own optimiser and weight decay
        self.weight_decay_end: float | None = weight_decay_end
        self.betas = tuple(betas or defaults["betas"])
        self.momentum: float = defaults["momentum"] if momentum is None else momentum
        self.warmup_steps, self.total_steps, self.min_lr_factor = warmup_steps, total_steps, min_lr_factor
        self.layer_decay, self.clip = layer_decay, clip
        self.backbone_lr_factor = 1.0  # learning rate of the backbone, as a share of the other parts'
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._left_out: list[nn.Parameter] = []
        self._released = False
        self.teacher: Teacher | None = None
        self.scheduled_steps = 1
        self.skipped = optim.SkippedSteps()
        self.taken: Tensor | None = None  # whether the last step was made, 1. or 0. on the device; None: without fp16 every one is
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
        self.check_unreleased()
        if isinstance(batch, Tensor):
            return [self.normalize(batch)]
        if all(isinstance(x, Tensor) and x.ndim == 4 for x in batch):
            return [self.normalize(x) for x in batch]
        first = batch[0]
        return [self.normalize(first)] if isinstance(first, Tensor) else [self.normalize(x) for x in first]

    def check_unreleased(self) -> None:
        """What a method needs in the backbone is gone after `release`."""
        if self._released:
            raise UserError(f"{type(self).__name__}: release() has given its backbone back; make a new one to train on")

    @property
    def kept(self) -> nn.Module:
        """The backbone that the method is after."""
        if self.KEEPS == "student" or self.teacher is None:
            return self.backbone
        return self.teacher.get_submodule("backbone")

    def represent(self, images: Tensor) -> Tensor:
        """Clean pictures `(B, C, H, W)`, uint8 or normalised -> the embedding, `(B, D)`. The only definition of it."""
        return backbones.embed(self.kept, self.normalize(images))

    forward = represent

    def embed_views(self, views: Sequence[Tensor], backbone: nn.Module | None = None) -> Tensor:
        """V views `(B, C, H, W)` -> their embeddings one after another, `(V * B, D)`; neighbours of one size go in one forward."""
        groups = [torch.cat(list(group)) for _, group in itertools.groupby(views, key=lambda x: x.shape[-2:])]
        return torch.cat([backbones.embed(backbone or self.backbone, group) for group in groups])

    def check_views(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Try views of other sizes than the backbone was made for.

        Raises:
            UserError: if it cannot take them.
        """
        for size in dict.fromkeys(sizes):
            try:
                backbones.describe(self.backbone, size, self.spec.channels)
            except UserError as error:
                raise UserError(
                    f"data.augment.local: {self.spec.name} made for pictures of {self.picture_size[0]}x{self.picture_size[1]} cannot take "
                    f"views of {size[0]}x{size[1]} ({error.__cause__}); set data.augment.local.image_size to another size, or "
                    "data.augment.local.views=0"
                ) from error

    @property
    def encoders(self) -> list[nn.Module]:
        """Backbones of timm that run at every step, for compiling block by block."""
        return [self.backbone] if self.teacher is None else [self.backbone, self.teacher.get_submodule("backbone")]

    def configure_model(self) -> None:
        """Under Lightning's `ModelParallelStrategy` every process holds a share of each parameter, gathered block by block while it is
        computed with: FSDP2, Zhao et al. 2023 (arXiv 2304.11277) without its flat parameters, so that weight decay still knows a norm."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if isinstance(self, FSDPModule):  # validated after it was trained
            return
        mesh = self.device_mesh["data_parallel"]
        for encoder in self.encoders:
            for block in backbones.repeated_blocks(encoder):
                fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for name in ("training_step", "validation_step", "represent", "pictures"):  # what Lightning and callbacks call instead of forward
            if hasattr(self, name):
                register_fsdp_forward_method(self, name)

    def release(self) -> nn.Module:
        """The backbone to keep, as timm makes it: without what a method changed in it for its training. Its `pretrained_cfg` says which
        mean and standard deviation it was trained with."""
        for parameter in self._left_out:
            parameter.requires_grad_(True)
        self._left_out, self._released = [], True
        if self.kept is not self.backbone:
            for kept, trained in zip(self.kept.parameters(), self.backbone.parameters(), strict=True):
                kept.requires_grad_(trained.requires_grad)
        if isinstance(cfg := getattr(self.kept, "pretrained_cfg", None), dict):
            statistics = {name: tuple(getattr(self, name).flatten().tolist()) for name in ("mean", "std")}
            self.kept.pretrained_cfg = cfg | statistics  # type: ignore[assignment]
        return self.kept

    def sync_batch_norms(self) -> None:
        """Statistics of batch norms over all processes, by timm's function: torch's drops the activation inside BatchNormAct2d."""
        convert_sync_batchnorm(self)

    def load_backbone(self, path: str, *, partial: bool = False) -> backbones.LoadReport:
        """Weights from a file or folder, whole or not at all; what matched and what did not."""
        return backbones.load_weights(self.backbone, path, partial=partial)

    def load_rest(self, path: str) -> list[str]:
        """Load what else of this method a weights file holds (a decoder, say); in words what came of it."""
        notes = backbones.load_beside(self, path)
        if self.teacher is not None:
            self.teacher.restart()
        return notes

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
        late, start = self.late_parameters()
        groups = optim.parameter_groups(
            self,
            weight_decay=self.weight_decay,
            lr=self.lr,
            backbone=self.backbone,
            layer_decay=self.layer_decay,
            backbone_factor=self.backbone_lr_factor,
            steady=self.steady_parameters(),
            late=late,
        )
        # A fused optimiser unscales fp16 gradients itself, after clipping: there it would clip the scaled ones.
        fp16_clipped = self.clip is not None and str(self.trainer.precision).startswith("16")
        # Lightning's own clipping refuses fused optimisers in mixed precision.
        lightning_clips = self.trainer.gradient_clip_val is not None
        optimizer = optim.make_optimizer(
            self.optimizer_name, groups, lr=self.lr, betas=self.betas, momentum=self.momentum, fused=not (fp16_clipped or lightning_clips)
        )
        falling, steady = (optim.cosine_with_warmup(total, warmup, end) for end in (self.min_lr_factor, 1.0))
        joining = optim.cosine_with_warmup(total, warmup, self.min_lr_factor, start=start)
        factors = [steady if g["steady"] else joining if g["late"] else falling for g in groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def steady_parameters(self) -> Iterable[nn.Parameter]:
        """Those whose learning rate does not fall."""
        return ()

    def late_parameters(self) -> tuple[Iterable[nn.Parameter], int]:
        """Those that are trained only from a step on, and that step: their warm-up begins there."""
        return (), 0

    @property
    def step(self) -> int:
        """Optimiser steps done, without those that fp16 left out; 0 without a Trainer."""
        return self._trainer.global_step - self.skipped.count if self._trainer is not None else 0

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.global_step == 0:  # what a checkpoint tells comes later
            self.skipped, self.taken = optim.SkippedSteps(), None

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.check_averaging(f"the teacher of {type(self).__name__}")

    def check_averaging(self, what: str) -> None:
        """Raises UserError for a precision or strategy in which an average of weights cannot follow them."""
        if self.trainer.precision in ("bf16-true", "16-true") or is_sharded(self.trainer):
            raise UserError(
                f"trainer: {what} follows the trained weights by less than half precision can add up, and as whole "
                f"tensors; got precision {self.trainer.precision} and {type(self.trainer.strategy).__name__}; take bf16-mixed or 32-true, "
                "and ddp"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.weight_decay_end is not None:
            decay = optim.cosine(self.step, self.scheduled_steps, self.weight_decay, self.weight_decay_end)
            for group in self.trainer.optimizers[0].param_groups:
                group["weight_decay"] = decay if group["adapt"] else 0.0
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        before = None if scaler is None else self.skipped.scale(scaler)
        super().optimizer_step(*args, **kwargs)
        if scaler is None:
            self.skipped.latest, self.taken = False, None
        else:
            self.taken = (self.skipped.scale(scaler) >= before).float()  # type: ignore[union-attr]
            self.skipped.tell(self.taken)
        if self.teacher is not None:
            self.teacher.follow(self.step, self.scheduled_steps, self.taken)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not self.skipped.latest:
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        if self.clip is not None:  # Lightning's own refuses fused optimisers under bf16
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip, foreach=True)
        elif gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ---------------------------------------------------------------- metrics

    def record(self, **values: Tensor) -> None:
        """Add to training metrics; their means since the last report are logged every `log_every_n_steps`, in one transfer.

        They are means over all processes. A loss that is not finite ends the run at the next report, in all of them alike: training on
        would only spend time.
        """
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1
        trainer: Any = self._trainer
        if trainer is None or (trainer.global_step + 1) % trainer.log_every_n_steps or self._summed % trainer.accumulate_grad_batches:
            return
        means = trainer.strategy.reduce(torch.stack(list(self._sums.values())) / self._summed, reduce_op="mean")
        report = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._summed = {}, 0
        if not all(abs(v) < float("inf") for v in report.values()):
            raise UserError(
                f"training: {report} at step {trainer.global_step} is not finite; lower optim.lr (now {self.lr:g}), set optim.clip, "
                "or take trainer.precision=32-true"
            )
        self.log_dict({f"train/{k}": v for k, v in report.items()}, prog_bar=True)

    def log_agreed(self, values: Mapping[str, Tensor]) -> None:
        """Log what `compute` of a metric gave at an epoch's end: the same in every process, so nothing is reduced again."""
        for name, value in values.items():
            self.log(name, Agreed(value), prog_bar=True, metric_attribute=name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = {"sums": self._sums, "summed": self._summed}
        checkpoint["skipped"] = self.skipped.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = checkpoint.get("record", {"sums": {}, "summed": 0})
        self._sums, self._summed = {k: v.to(self.device) for k, v in record["sums"].items()}, record["summed"]
        if "skipped" in checkpoint and self._trainer is not None:  # weights alone begin anew
            self.skipped.load_state_dict(checkpoint["skipped"])


def is_sharded(trainer: Any) -> bool:
    """Whether each process holds a part of the weights alone."""
    return any(word in type(trainer.strategy).__name__ for word in ("FSDP", "ModelParallel"))
