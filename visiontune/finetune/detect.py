"""Detection: a feature pyramid and a head on any timm backbone, trained whole.

B pictures, C channels, K classes, H x W pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.backbones.maps import find_maps
from visiontune.boxes import Boxes, BoxList, Letterbox, LetterboxList
from visiontune.errors import UserError
from visiontune.finetune import average, parts
from visiontune.finetune.targets import boxes_of, pictures_of
from visiontune.heads.detect import find_head, head_names
from visiontune.heads.pyramid import make_pyramid
from visiontune.metrics import MeanAveragePrecision
from visiontune.module import Module
from visiontune.ranges import Fraction, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt, check_options

# Swin (arXiv 2103.14030), appendix A2.2, for batches of 16; ViTDet's (arXiv 2203.16527, appendix A.2) are the same, with a decay of 0.1.
OPTIM = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05}
MONITORS = ("map", "map50", "map75")


class Detector(Module):
    """Boxes around labelled things, `(images, targets)` batches.

    Args:
        num_classes: K, without one for the background.
        head: `fcos`, `retinanet`, `faster_rcnn`, with transformers also `dfine`, `deimv2`, `rtdetrv2`, or `package.module.Class` of your
            own; see `visiontune.heads.detect.find_head`.
        head_args: more keywords of the head's class.
        pyramid_width: channels of the pyramid and the head; a multiple of 32. Heads of the DETR family have a width of their own, and
            take the backbone's maps where it has them all.
        backbone_lr_factor: learning rate of the backbone as a share of `lr`. With layer_decay, which slows it too, take 1.
        freeze_stages: how many of the backbone's first stages, with the stem, stay as they are; of a plain ViT, blocks; 0: none.
        freeze_backbone: keep all of the backbone, statistics of batch norms included: pyramid and head alone learn.
        freeze_batch_norms: keep scale, shift and statistics of the backbone's batch norms: for small batches, not random weights.
        ema: largest share of the old in an average of the weights over the training, which is then what is validated and kept; None: off.
        score_threshold: lowest score of a prediction. Mean average precision wants it low, a person who looks at boxes about 0.3.
        max_detections: of a picture.
        nms: largest overlap (IoU) of two predictions of one class; None takes the head's.
        class_names: K names, saved with the weights.
        common: see `visiontune.module.Module`. clip=None takes the head's.

    Batches may also be dictionaries of `images` and `boxes`; for validation, of `crowd`, boxes that count for nothing, and `letterbox`, for
    which they are judged in pixels of the original.
    Pictures of a batch have one size; uint8, or floats that are normalised. A target is a `Boxes`, or a dictionary of `boxes` (xyxy) and
    `labels` (from 0), as torchvision has them. Boxes are in pixels of these pictures, predictions too.

    Sources: FCOS (arXiv 1904.01355), RetinaNet (1708.02002), Faster R-CNN (1506.01497), D-FINE (2410.13842), DEIMv2 (2509.20787), RT-DETRv2
    (2407.17140), FPN (1612.03144), ViTDet (2203.16527). A tenth of the learning rate for the backbone: DETR (2005.12872), section 4.
    """

    OPTIM: ClassVar[dict[str, Any]] = OPTIM

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        num_classes: PositiveInt,
        head: str = "fcos",
        head_args: dict | None = None,
        pyramid_width: PositiveInt = 256,
        backbone_lr_factor: PositiveFloat = 0.1,
        freeze_stages: NonNegativeInt = 0,
        freeze_backbone: bool = False,
        freeze_batch_norms: bool = True,
        ema: OpenFraction | None = None,
        score_threshold: Fraction = 0.01,
        max_detections: PositiveInt = 100,
        nms: OpenFraction | None = None,
        class_names: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        if pyramid_width % 32:
            raise UserError(f"head.pyramid_width: got {pyramid_width}; the group norms of heads need a multiple of 32")
        if isinstance(backbone, str) and backbones.is_plain_vit(backbone):
            # Positions are resampled and pictures filled up: no size must fit the patches.
            free = {"dynamic_img_size": True, "dynamic_img_pad": True}
            common["backbone_args"] = free | (common.get("backbone_args") or {})
        make_head = find_head(head)
        if head in head_names() and (said := check_options(make_head.__init__, head_args or {})):
            raise UserError(f"head.{said}")
        super().__init__(backbone, **common)
        self.num_classes, self.ema, self.backbone_lr_factor = num_classes, ema, backbone_lr_factor
        self.max_detections = max_detections
        self.freeze_stages, self.freeze_backbone, self.frozen_batch_norms = freeze_stages, freeze_backbone, freeze_batch_norms
        self.class_names = tuple(class_names or map(str, range(num_classes)))

        self.maps = find_maps(self.backbone, self.spec.image_size, self.spec.channels)
        mixed_later = not getattr(make_head, "PYRAMID", True)
        self.pyramid = make_pyramid(self.maps.strides, self.maps.widths, pyramid_width, mixed_later=mixed_later)
        self.notes += [*self.maps.notes, *self.pyramid.notes]
        limits = {"score_threshold": score_threshold, "max_detections": max_detections, "nms": nms}
        try:
            self.head = make_head(self.pyramid.widths if mixed_later else pyramid_width, num_classes, **limits, **(head_args or {}))
        except TypeError as error:
            raise UserError(f"head.head_args: {head} refuses {head_args}: {error}") from error
        if self.clip is None:
            self.clip = getattr(make_head, "CLIP", None)
        self.leave_out_unreached(lambda images: self.pyramid(self.maps.take(self.backbone, images)))
        self.average: nn.Module | None = None
        self.metric: MeanAveragePrecision | None = None  # made when it is first needed: what counts it need not be installed to train
        self._choose_parts()

    # ---------------------------------------------------------------- what is trained

    def _choose_parts(self) -> None:
        if self.freeze_backbone:
            self.leave_out(*self.backbone.parameters())
        if self.freeze_stages:
            self.leave_out(*parts.first_stages(self.backbone, self.freeze_stages))
        if self.frozen_batch_norms:
            self.leave_out(*(p for norm in parts.batch_norms(self.backbone) for p in norm.parameters()))
        if self.ema is not None:
            self.average = average.average_of(self.trained)
        self.train(self.training)  # what is frozen is in evaluation from the first step: Lightning leaves modes as it finds them

    @property
    def trained(self) -> nn.ModuleDict:
        """The whole network, as what is averaged."""
        return nn.ModuleDict({"backbone": self.backbone, "pyramid": self.pyramid, "head": self.head})

    @property
    def kept(self) -> nn.Module:
        return self.backbone if self.average is None else self.average.get_submodule("backbone")

    def load_backbone(self, path: str, *, partial: bool = False) -> backbones.LoadReport:
        report = super().load_backbone(path, partial=partial)
        self._choose_parts()  # the average starts from these weights
        return report

    def train(self, mode: bool = True) -> "Detector":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        if mode:
            parts.rest_frozen(self.backbone, batch_norms_too=self.frozen_batch_norms)
        return self

    # ---------------------------------------------------------------- pictures to boxes

    def features(self, images: Tensor, network: nn.ModuleDict | None = None) -> list[Tensor]:
        """`(B, C, H, W)`, uint8 or normalised -> the head's maps of strides 8, 16 and 32, `(B, width, h, w)`."""
        network = self.trained if network is None else network
        return network["pyramid"](self.maps.take(network["backbone"], self.normalize(images)))

    def predict(self, images: Tensor) -> list[Boxes]:
        """`(B, C, H, W)`, uint8 or normalised -> boxes with scores, best first, in their pixels, by the weights that are kept."""
        network: Any = self.trained if self.average is None else self.average
        modes = {part: part.training for part in network.modules()}
        network.eval()
        try:
            with torch.no_grad():
                return network["head"].predict(self.features(images, network), tuple(images.shape[-2:]))
        finally:
            for part, mode in modes.items():
                part.training = mode

    forward = predict  # type: ignore[assignment]

    # ---------------------------------------------------------------- steps

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """While all is on the CPU: what is wrong is told here, and no step waits for the device to find out."""
        if isinstance(batch, Tensor) or (isinstance(batch, Sequence) and len(batch) == 1):  # pictures alone, to predict
            return batch
        images, boxes = self.read(batch)
        if not isinstance(batch, Mapping):
            return images, BoxList(boxes)
        carried: dict[str, Any] = {"images": images, "boxes": BoxList(boxes)}
        for key, kind in (("crowd", BoxList), ("letterbox", LetterboxList)):
            if batch.get(key):
                carried[key] = kind(batch[key])
        return {**batch, **carried}

    def read(self, batch: Any) -> tuple[Tensor, list[Boxes]]:
        """A loader's batch as pictures `(B, C, H, W)` and one `Boxes` each.

        Raises:
            UserError: if it is none.
        """
        if isinstance(batch, Mapping) and {"images", "boxes"} <= batch.keys():
            batch = (batch["images"], batch["boxes"])
        if not isinstance(batch, Sequence) or len(batch) != 2:
            expected = f"{type(self).__name__} expects (images, targets), or a dictionary with images and boxes"
            raise UserError(f"batch: got {type(batch).__name__}; {expected}")
        images = pictures_of(batch[0])
        return images, boxes_of(batch[1], len(images), self.num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.check_unreleased()
        images, targets = self.read(batch)
        losses = self.head.loss(self.features(images), targets, tuple(images.shape[-2:]))
        loss = torch.stack([v.float() for v in losses.values()]).sum()
        self.record(loss=loss, **{f"loss_{k}": v for k, v in losses.items()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and self.ema is not None:
            average.follow(self.average, self.trained, average.momentum_at(self.step, self.ema), self.taken)

    def on_validation_start(self) -> None:
        self._counted()

    def _counted(self) -> MeanAveragePrecision:
        if self.metric is None:
            self.metric = MeanAveragePrecision(self.num_classes, max_detections=self.max_detections).to(self.device)
        return self.metric

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = self.read(batch)
        if not len(images):  # every picture of the batch was broken
            return
        found: Sequence[Boxes] = self.predict(images)
        crowd = batch.get("crowd") if isinstance(batch, Mapping) else None
        if isinstance(batch, Mapping) and batch.get("letterbox"):  # as the original has it: sizes of things count there
            found, targets, crowd = (_outside(batch["letterbox"], many) for many in (found, targets, crowd or [Boxes.none()] * len(found)))
            found = [boxes.with_area() for boxes in found]
        self._counted().update(found, targets, crowd=crowd)

    def on_validation_epoch_end(self) -> None:
        if self.metric is None:
            return
        values = self.metric.compute()
        self.log_agreed({f"val/{name}": values[name] for name in MONITORS})
        self.metric.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> list[Boxes]:
        """Of batches of pictures, with or without targets."""
        if isinstance(batch, Mapping):
            batch = (batch["images"],)
        return self.predict(batch if isinstance(batch, Tensor) else pictures_of(batch[0]))

    @property
    def monitors(self) -> tuple[str, ...]:
        """What a run may call best by, first the usual one: COCO's mean over IoU of 0.5 to 0.95, and those at 0.5 and 0.75."""
        return MONITORS

    # ---------------------------------------------------------------- around the training

    def rehearse(self, pictures: int, size: tuple[int, int], boxes: int) -> None:
        """A step's forward and backward pass on blank pictures, for what it takes of memory: weights, statistics and random state stay.

        Args:
            pictures: B.
            size: `(H, W)`.
            boxes: in each picture.
        """
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        with torch.random.fork_rng():
            corner = torch.rand(boxes, 2, device=self.device) * torch.tensor([size[1], size[0]], device=self.device) / 2
            target = Boxes(torch.cat([corner, corner * 2 + 1], dim=1), torch.zeros(boxes, dtype=torch.long, device=self.device))
            images = torch.zeros(pictures, self.spec.channels, *size, dtype=torch.uint8, device=self.device)
            losses = self.head.loss(self.features(images), [target] * pictures, size)
            torch.stack([v.float() for v in losses.values()]).sum().backward()
        self.zero_grad(set_to_none=True)
        for name, buffer in self.named_buffers():
            buffer.copy_(before[name])

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.average is not None:
            self.check_averaging("the average of the weights (head.ema)")
        norms = [n for n in parts.batch_norms(self.backbone) if n.running_mean is not None]
        if self.frozen_batch_norms and not self.freeze_backbone and norms and all(not n.running_mean.any() for n in norms):
            warnings.warn(
                "head.freeze_batch_norms: the backbone's batch norms have never seen a picture and would stay so; for random weights set "
                "head.freeze_batch_norms=false",
                stacklevel=2,
            )

    def release(self) -> nn.Module:
        """timm's network with the weights that were validated: the average where there is one. Pyramid and head stay here."""
        if self.average is not None:
            self.kept.requires_grad_(True)
        self.backbone.requires_grad_(True)
        return super().release()


def _outside(letterboxes: Sequence[Letterbox], boxes: Sequence[Boxes]) -> list[Boxes]:
    """Boxes of each picture of a batch, in pixels of the originals."""
    return [box.outside(b) for box, b in zip(letterboxes, boxes, strict=True)]
