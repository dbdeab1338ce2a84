"""Classification: timm's own classifier on a backbone, trained whole, alone, or with a part of the backbone.

B pictures, C channels, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.backbones import LoadReport
from visiontune.errors import UserError
from visiontune.finetune import average, lora, parts
from visiontune.finetune.mix import Mixing, erase
from visiontune.finetune.ways import Way
from visiontune.losses.labels import balanced_positive_weights, balanced_weights, label_loss, log_priors, multi_label_loss
from visiontune.metrics import Mean, classification_metrics
from visiontune.module import Module
from visiontune.ranges import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt

# Crop and flip; as timm's training script, without its stronger policies.
VIEWS = {"crop_scale": (0.35, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}


class Classifier(Module):
    """Cross entropy on labelled pictures, `[images, labels]` batches.

    Args:
        num_classes: K.
        labels: `single`: `(B,)` class indices; `multi`: `(B, K)` of 0 and 1, any number of classes a picture.
        tune: `full` trains everything; `head` the classifier on a frozen backbone, whose batch norms keep their statistics;
            `head_then_full` one after the other; `last:N` the last N blocks; `lora` low-rank adapters, with the classifier.
        head_share: of `head_then_full`: the share of all steps that trains the classifier alone.
        lora_rank: of `lora`: rank of the adapters.
        lora_alpha: of `lora`: they are scaled by this over the rank.
        freeze_batch_norms: keep scale, shift and running statistics of the backbone's batch norms: for small batches.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution that mixes pictures; 0: no mixup.
        cutmix: likewise of that which pastes a box of one into another; with both, each has half of the batches.
        mix_probability: share of batches that are mixed.
        erase: probability that a box of a picture becomes noise.
        class_weights: `balanced`: every class counts the same in the loss, however many pictures it has.
        logit_adjustment: times the logarithm of the classes' shares is added to the logits in training; 1 is the paper's, 0 is off.
        ema: largest share of the old in an average of the weights over the training, which is then what is validated and kept; None: off.
        class_counts: K numbers of training pictures, for `class_weights` and `logit_adjustment`: each makes up for all of their unevenness,
            if pictures come as often as they are there.
        pictures: all of them, for `class_weights` with `multi` labels.
        class_names: K names, saved with the weights.
        common: see `visiontune.module.Module`.

    Sources: head_then_full: Kumar et al. 2022 (arXiv 2202.10054); lora: Hu et al. 2021 (arXiv 2106.09685); logit_adjustment: Menon et al.
    2020 (arXiv 2007.07314).
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM
    class_weights: Tensor | None
    adjustment: Tensor | None

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        num_classes: PositiveInt,
        labels: Literal["single", "multi"] = "single",
        tune: str = "full",
        head_share: OpenFraction = 0.2,
        lora_rank: PositiveInt = 8,
        lora_alpha: PositiveFloat = 16.0,
        freeze_batch_norms: bool = False,
        label_smoothing: Fraction = 0.0,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        mix_probability: Fraction = 1.0,
        erase: Fraction = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        logit_adjustment: NonNegativeFloat = 0.0,
        ema: OpenFraction | None = None,
        class_counts: Sequence[int] | None = None,
        pictures: int | None = None,
        class_names: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        try:
            way = Way.of(tune)
        except ValueError as error:
            raise UserError(f"tune: got {tune!r}; allowed: {error}") from error
        super().__init__(backbone, num_classes=num_classes, **common)
        self.way, self.labels, self.num_classes = way, labels, num_classes
        self.class_names = tuple(class_names or map(str, range(num_classes)))

        # the network, and what of it is trained
        fits = self.backbone.num_classes == num_classes
        if not fits:
            self.backbone.reset_classifier(num_classes)
        fetched = isinstance(backbone, str) and common.get("weights") == "timm"
        if fetched and self.backbone.pretrained_cfg.get("num_classes") == num_classes:
            self.notes.append(f"classifier: new; timm's has {num_classes:,} classes, too, but nothing says that they are these")
        if isinstance(backbone, str) or not fits:  # a classifier that came with a module of one's own stays as it is
            # Small weights start from about equal scores, whatever the backbone's scale.
            for parameter in self.classifier_parameters():
                nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.trunc_normal_(parameter, std=0.01)
        self.head_share, self.frozen_batch_norms = head_share, freeze_batch_norms
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        self.ema = ema
        self.average: nn.Module | None = None
        self._choose_parts()

        # the loss, and what pictures and targets go through before
        self.mixing, self.erase, self.label_smoothing = Mixing(mixup, cutmix, mix_probability), erase, label_smoothing
        weights, adjustment = self._of_counts(class_weights, logit_adjustment, class_counts, pictures)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("adjustment", adjustment, persistent=False)
        self.metrics = classification_metrics(num_classes, labels, prefix="val/")
        self.val_loss = Mean()

    # ---------------------------------------------------------------- what is trained

    def _choose_parts(self) -> None:
        head = list(self.classifier_parameters())
        if self.way.name == "head":
            parts.train_only(self.backbone, head)
        elif self.way.name == "last":
            parts.train_only(self.backbone, parts.last_blocks(self.backbone, self.way.blocks))
        elif self.way.name == "lora":
            parts.train_only(self.backbone, [*lora.add_adapters(self.backbone, rank=self.lora_rank, alpha=self.lora_alpha), *head])
        if self.frozen_batch_norms:
            parts.freeze_batch_norms(self.backbone)
        if self.ema is not None:
            self.average = average.average_of(self.backbone)
        self.train(self.training)  # what is frozen is in evaluation from the first step: Lightning leaves modes as it finds them

    def classifier_parameters(self) -> Iterator[nn.Parameter]:
        return parts.classifier_parameters(self.backbone)

    def load_backbone(self, path: str, *, partial: bool = False) -> LoadReport:
        lora.merge_adapters(self.backbone)  # the file has none; new ones change nothing
        report = super().load_backbone(path, partial=partial)
        self._choose_parts()
        return report

    @property
    def head_steps(self) -> int:
        """Optimiser steps at the beginning that train the classifier alone."""
        return round(self.head_share * (self.total_steps or self.scheduled_steps)) if self.way.name == "head_then_full" else 0

    @property
    def head_alone(self) -> bool:
        """Whether this step trains the classifier alone. A function of the step, so that a resumed run needs no state."""
        return self.way.name == "head" or self.step < self.head_steps

    def late_parameters(self) -> tuple[list[nn.Parameter], int]:
        """The backbone of `head_then_full` has a warm-up of its own: its optimiser has no momentum yet when it joins."""
        if self.way.name != "head_then_full":
            return [], 0
        head = {id(p) for p in self.classifier_parameters()}
        return [p for p in self.backbone.parameters() if id(p) not in head], self.head_steps

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        if mode and self.head_alone:  # frozen means its running statistics, too
            self.backbone.eval()
        elif mode:
            parts.rest_frozen(self.backbone, batch_norms_too=self.frozen_batch_norms)
        return self

    # ---------------------------------------------------------------- pictures to scores

    @property
    def kept(self) -> nn.Module:
        return self.backbone if self.average is None else self.average

    def logits(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised -> `(B, K)`; in evaluation those of the averaged weights, where there are such."""
        images = self.normalize(images)
        if not self.training:
            return self.kept(images)
        alone = self.head_alone
        if alone == self.backbone.training:  # the step at which the backbone joins
            self.train()
        if not alone:
            return self.backbone(images)
        with torch.no_grad():
            features = self.backbone.forward_features(images)
        return self.backbone.forward_head(features)

    forward = logits

    # ---------------------------------------------------------------- steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        self.check_unreleased()
        images = self.normalize(images)
        if self.mixing:
            shares = targets.float() if self.labels == "multi" else F.one_hot(targets, self.num_classes).float()
            images, targets = self.mixing(images, shares)
        if self.erase:
            images = erase(images, self.erase)
        loss = self.loss(self.logits(images), targets)
        self.record(loss=loss)
        return loss

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """That of the training: with smoothing, weights and adjustment."""
        if self.labels == "multi":
            return multi_label_loss(logits, targets, smoothing=self.label_smoothing, positive_weights=self.class_weights)
        return label_loss(logits, targets, smoothing=self.label_smoothing, weights=self.class_weights, adjustment=self.adjustment)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and self.ema is not None:
            average.follow(self.average, self.backbone, average.momentum_at(self.step, self.ema), self.taken)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        if not len(targets):  # every picture of the batch was broken
            return
        logits = self.logits(images).float()
        plain = multi_label_loss if self.labels == "multi" else label_loss
        self.val_loss.update(plain(logits, targets), len(targets))
        self.metrics.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        self.log_agreed(self.metrics.compute() | {"val/loss": self.val_loss.compute()})
        self.metrics.reset()
        self.val_loss.reset()

    @property
    def monitors(self) -> tuple[str, ...]:
        """What a run may call best by, first the usual one."""
        usual = "macro_ap" if self.labels == "multi" else "top1"
        return (usual, *(name for name in self.metrics.keys(keep_base=True) if name != usual), "loss")

    # ---------------------------------------------------------------- around the training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.average is not None:
            self.check_averaging("the average of the weights (head.ema)")

    def release(self) -> nn.Module:
        """timm's network with the weights that were validated: the average where there is one, adapters merged."""
        for network in (self.backbone, self.average):
            if network is not None:
                lora.merge_adapters(network)
                network.requires_grad_(True)
        return super().release()

    def _of_counts(
        self, class_weights: str, logit_adjustment: float, counts: Sequence[int] | None, pictures: int | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the loss is told of the classes' sizes."""
        balanced = class_weights == "balanced"
        key = "head.class_weights" if balanced else "head.logit_adjustment"
        if not balanced and not logit_adjustment:
            return None, None
        if counts is None or len(counts) != self.num_classes:
            raise UserError(f"{key}: needs class_counts, the number of training pictures of each of the {self.num_classes} classes")
        if logit_adjustment and self.labels == "multi":
            raise UserError("head.logit_adjustment: is for one label a picture; for several take head.class_weights=balanced")
        if empty := [name for name, n in zip(self.class_names, counts, strict=True) if not n]:
            raise UserError(f"{key}: class {empty[0]!r} has no training picture; add some, or leave {key} out")
        if not balanced:
            weights = None
        elif self.labels == "multi":
            if pictures is None:
                raise UserError(f"{key}: needs pictures, the number of training pictures, where labels are multi")
            if full := [name for name, n in zip(self.class_names, counts, strict=True) if n >= pictures]:
                # its weight would be 0, and it would never be learned
                raise UserError(f"{key}: every training picture has class {full[0]!r}; leave that class or {key} out")
            weights = balanced_positive_weights(counts, pictures)
        else:
            weights = balanced_weights(counts)
        return weights, logit_adjustment * log_priors(counts) if logit_adjustment else None
