"""Classification: timm's own classifier on a backbone, trained whole or alone.

B pictures, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn

from visiontune.errors import UserError
from visiontune.module import Module
from visiontune.ranges import Fraction, PositiveInt

# Crop and flip; as timm's training script, without its stronger policies.
VIEWS = {"crop_scale": (0.35, 1.0), "flip": 0.5}
OPTIM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}


class Classifier(Module):
    """Cross entropy on labelled pictures, `[images, labels]` batches.

    Args:
        num_classes: K.
        tune: `full` trains everything; `head` trains the classifier on a frozen backbone, whose batch norms keep their statistics.
        label_smoothing: share of the target spread over all classes.
        class_names: K names, saved with the weights.
        common: see `visiontune.module.Module`.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        num_classes: PositiveInt,
        tune: Literal["full", "head"] = "full",
        label_smoothing: Fraction = 0.0,
        class_names: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        if tune not in ("full", "head"):
            raise UserError(f"tune: got {tune!r}; allowed: full, head")
        super().__init__(backbone, num_classes=num_classes, **common)
        fits = self.backbone.num_classes == num_classes
        if not fits:
            self.backbone.reset_classifier(num_classes)
        if isinstance(backbone, str) or not fits:  # a classifier that came with a module of one's own stays as it is
            # Small weights start from about equal scores, whatever the backbone's scale.
            for parameter in self.classifier_parameters():
                nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.trunc_normal_(parameter, std=0.01)
        self.tune, self.label_smoothing = tune, label_smoothing
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        if tune == "head":
            self.backbone.requires_grad_(False)
            for parameter in self.classifier_parameters():
                parameter.requires_grad_(True)
        accuracy = {"top1": torchmetrics.Accuracy("multiclass", num_classes=num_classes, average="micro")}
        if num_classes > 5:
            accuracy["top5"] = torchmetrics.Accuracy("multiclass", num_classes=num_classes, average="micro", top_k=5)
        self.metrics = torchmetrics.MetricCollection({**accuracy, "loss": torchmetrics.MeanMetric()}, prefix="val/", compute_groups=False)

    def classifier_parameters(self) -> Iterator[nn.Parameter]:
        """Of timm's classifier, or of both of a distilled model's."""
        heads = self.backbone.get_classifier()
        for head in heads if isinstance(heads, tuple) else (heads,):
            yield from head.parameters()

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.tune == "head" and mode:  # frozen means its running statistics, too
            self.backbone.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, uint8 or normalised -> `(B, K)`."""
        if self.tune == "head":
            with torch.no_grad():
                features = self.backbone.forward_features(self.normalize(images))
            return self.backbone.forward_head(features)
        return self.backbone(self.normalize(images))

    forward = logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.logits(images).float(), labels, label_smoothing=self.label_smoothing)
        self.record(loss=loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        if not len(labels):  # every picture of the batch was broken
            return
        logits = self.logits(images).float()
        for name, metric in self.metrics.items(keep_base=True):
            if name == "loss":
                metric.update(F.cross_entropy(logits, labels), weight=len(labels))
            else:
                metric.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute(), prog_bar=True)
        self.metrics.reset()
