"""What the heads of the DETR family share: transformers' encoder and decoder on maps of our backbones, one matching for all layers.

B pictures, Q queries, K classes, L decoder layers, S predictions: of these layers, and of what comes before the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from visiontune.boxes import Boxes
from visiontune.heads import dense
from visiontune.heads.detect._shared import covered, exact, full_precision, predict_densely
from visiontune.heads.detect._transformers import Encoded, Passed
from visiontune.losses.detr import box_losses, fine_grained_localization, matched, self_distillation
from visiontune.losses.gather import mean_over_processes
from visiontune.losses.matching import Truth, centres, corners, match, noised_assignment, union


@dataclass(frozen=True)
class Predicted:
    """What a network says, float32.

    Attributes:
        logits: `(S, B, Q, K)`, the L decoder layers last.
        boxes: `(S, B, Q, 4)`, centre first, shares of what the maps lie over.
        sides: of heads that predict distributions, their logits, `(L, B, Q, 4, N + 1)`.
        start: boxes that the distributions refine, `(B, Q, 4)`.
    """

    logits: Tensor
    boxes: Tensor
    sides: Tensor | None
    start: Tensor | None

    @staticmethod
    def of(outputs: Any) -> "Predicted":
        logits, boxes = outputs.intermediate_logits.transpose(0, 1), outputs.intermediate_reference_points.transpose(0, 1)
        sides, start = outputs.intermediate_predicted_corners, outputs.initial_reference_points
        if sides is None:
            return Predicted(logits.float(), boxes.float().clamp(0, 1), None, None)
        sides = sides.transpose(0, 1).unflatten(-1, (4, -1)).float()
        return Predicted(logits.float(), boxes.float().clamp(0, 1), sides, start[:, 0].detach().float())

    def part(self, queries: slice) -> "Predicted":
        sides = None if self.sides is None else self.sides[:, :, queries]
        return Predicted(
            self.logits[:, :, queries], self.boxes[:, :, queries], sides, None if self.start is None else self.start[:, queries]
        )

    def after(self, logits: Tensor, boxes: Tensor) -> "Predicted":
        """With a prediction before the others."""
        first = logits.float()[None], boxes.float().clamp(0, 1)[None]
        return Predicted(torch.cat([first[0], self.logits]), torch.cat([first[1], self.boxes]), self.sides, self.start)


class DETR(nn.Module):
    """A model of transformers without its backbone.

    Projections and encoder run in the precision of the training, the decoder, which costs little, in float32 always: it would take its
    anchors in the type of its features, and bfloat16 knows no more than every second pixel of 640. A step waits for the device twice:
    where transformers counts the queries that it noises, and for the costs of all matches.

    Args:
        net: `...ForObjectDetection`.
        projections: from the backbone's maps to one width, of its model.
        encoded: what the model expects of its encoder: a class, and the field that holds the maps.
        queries: that a picture has at most; no more than its maps have positions.
        score_threshold, max_detections, nms: see `visiontune.heads.detect.find_head`.
    """

    PYRAMID: ClassVar[bool] = False  # the encoder is one: it takes the backbone's own maps
    CLIP: ClassVar[float | None] = 0.1  # DETR (arXiv 2005.12872), appendix A.4, and all authors of this family since
    NMS: ClassVar[float | None] = None  # matched one to one, a network learns to say each thing once
    # All authors': of classes, L1, GIoU, and where there are distributions of sides, of these and of learning them from the last layer.
    WEIGHTS: ClassVar[dict[str, float]] = {"classes": 1.0, "boxes": 5.0, "overlaps": 2.0, "sides": 0.15, "distilled": 1.5}
    UNION: ClassVar[bool] = True  # boxes learn from the matches of all layers

    def __init__(
        self,
        net: Any,
        projections: nn.ModuleList,
        encoded: tuple[type, str],
        *,
        queries: int,
        score_threshold: float,
        max_detections: int,
        nms: float | None,
    ) -> None:
        super().__init__()
        self.model, self.projections, self.encoder, self.field = net.model, projections, net.model.encoder, encoded[1]
        self.model.encoder = Passed(*encoded)
        for name in ("backbone", "encoder_input_proj", "conv_encoder"):
            if hasattr(self.model, name):
                delattr(self.model, name)
        for part in (self.model.enc_bbox_head, getattr(self.model.decoder, "pre_bbox_head", None)):
            if part is not None:  # the first boxes are the anchors, as the authors have it
                nn.init.zeros_(part.layers[-1].weight)
                nn.init.zeros_(part.layers[-1].bias)
        self.queries, self.score_threshold, self.max_detections = queries, score_threshold, max_detections
        self.nms = self.NMS if nms is None else nms

    # ---------------------------------------------------------------- forward

    def encode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`(B, widths[i], h, w)` -> `(B, hidden, h, w)`, strides 8, 16, 32."""
        for layer in self.encoder.aifi:
            layer.eval()  # drops nothing; in training it would ask the device whether all is finite
        maps = [project(m) for project, m in zip(self.projections, features, strict=True)]
        return list(getattr(self.encoder(maps), self.field))

    def decode(self, maps: Sequence[Tensor], truth: Truth | None) -> Any:
        """transformers' outputs; with a truth those of all layers, and of queries that are the truth, noised."""
        for part in (self.model, self.model.decoder):  # they ask the mode what to give out; they drop nothing
            part.training = truth is not None
        self.model.config.num_queries = min(self.queries, sum(m.shape[-2] * m.shape[-1] for m in maps))
        labels = None
        if truth is not None:
            labels = [{"boxes": b[:n], "class_labels": c[:n]} for b, c, n in zip(truth.boxes, truth.labels, truth.counts, strict=True)]
        given = {"pixel_values": None, "inputs_embeds": Encoded(m.float() for m in maps), "labels": labels}
        with full_precision(maps):
            if next(self.model.parameters()).dtype == torch.float32:
                return self.model(**given)
            weights = {name: x.float() for name, x in (*self.model.named_parameters(), *self.model.named_buffers())}
            return functional_call(self.model, weights, kwargs=given)

    # ---------------------------------------------------------------- training

    def loss(self, features: Sequence[Tensor], targets: Sequence[Boxes], image_size: tuple[int, int]) -> dict[str, Tensor]:
        truth = normalized(targets, covered(features))
        outputs = self.decode(self.encode(features), truth)
        with full_precision(features):
            losses = self.all_losses(outputs, truth)
            if self.model.config.num_denoising:  # reached in all processes, also by those whose pictures have no box to noise
                losses["classes"] = losses["classes"] + 0 * self.model.denoising_class_embed.weight.float().sum()
        return losses

    def all_losses(self, outputs: Any, truth: Truth) -> dict[str, Tensor]:
        predicted, noise = Predicted.of(outputs), outputs.denoising_meta_values
        noised = noise["dn_num_split"][0] if noise else 0
        plain = predicted.part(slice(noised, None)).after(outputs.enc_topk_logits, outputs.enc_topk_bboxes)
        own = match(plain.logits, plain.boxes, truth)  # (S, B, Q); here the step waits, once
        joint = np.broadcast_to(union(own, truth.labels.shape[1]), own.shape) if self.UNION else own
        boxes, groups = sum(truth.counts), noise["dn_num_group"] if noise else 0
        counts = torch.tensor([boxes, int((joint[0] >= 0).sum()) if self.UNION else boxes, boxes * groups], dtype=torch.float32)
        count, joint_count, noised_count = mean_over_processes(counts.to(plain.logits.device, non_blocking=True)).clamp(min=1)
        assigned = torch.from_numpy(np.stack([own, joint])).to(plain.logits.device, non_blocking=True)
        losses = self.of_layers(plain, truth, assigned[0], assigned[1], count, joint_count)
        if noise:
            fixed = noised_assignment(truth, groups).expand(len(predicted.logits), -1, -1)
            parts = self.of_layers(predicted.part(slice(noised)), truth, fixed, fixed, noised_count, noised_count)
            losses["denoising"] = torch.stack(list(parts.values())).sum()
        return losses

    def of_layers(
        self, predicted: Predicted, truth: Truth, own: Tensor, joint: Tensor, count: Tensor, joint_count: Tensor
    ) -> dict[str, Tensor]:
        """Sums over all predictions: of classes by each one's own matches `(S, B, Q)`, of boxes and sides by those of `joint`."""
        _, labels, there = matched(truth, own)
        l1, giou, iou = box_losses(predicted.boxes, truth, joint)
        fit = box_losses(predicted.boxes.detach(), truth, own)[2] if self.UNION else iou
        parts = {"classes": self.class_loss(predicted.logits, fit, labels, there) / count, "boxes": l1 / joint_count}
        parts["overlaps"] = giou / joint_count
        if predicted.sides is not None and predicted.start is not None:
            iou = iou[-len(predicted.sides) :]
            parts["sides"] = fine_grained_localization(predicted.sides, predicted.start, truth, joint[0], iou) / joint_count
            parts["distilled"] = self_distillation(predicted.sides, predicted.logits[-1], joint[0], iou)
        return {name: self.WEIGHTS[name] * part for name, part in parts.items()}

    def class_loss(self, logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        raise NotImplementedError

    # ---------------------------------------------------------------- prediction

    @property
    def limits(self) -> dense.Limits:
        """All that a picture may have are candidates."""
        return dense.Limits(self.model.config.num_labels, self.score_threshold, self.nms, self.max_detections, self.max_detections)

    def dense(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[dense.Level]:
        """Boxes `(B, Q, 4)` in pixels, cut to the picture, and scores `(B, Q, K)`, as one level."""
        outputs = self.decode(self.encode(exact(self, features)), None)
        scores, xyxy = outputs.intermediate_logits[:, -1].float().sigmoid(), corners(outputs.intermediate_reference_points[:, -1].float())
        H, W = covered(features)
        return [(dense.cut(xyxy * xyxy.new_tensor([W, H, W, H]), image_size), scores)]

    def predict(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Boxes]:
        return predict_densely(self, features, image_size)


def normalized(targets: Sequence[Boxes], size: tuple[int, int]) -> Truth:
    """In shares of the rows and columns that the maps lie over: the picture's, filled up to whole positions of the coarsest."""
    H, W = size  # as numbers: a tensor of them would be copied to the device, and the step wait for it
    shares = [torch.stack([t.xyxy[:, 0::2].float() / W, t.xyxy[:, 1::2].float() / H], dim=-1).flatten(1) for t in targets]
    return Truth.of([centres(s) for s in shares], [t.labels for t in targets])
