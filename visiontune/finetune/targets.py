"""Pictures and boxes as loaders give them: our own, or torchvision's and COCO's lists of dictionaries. Checked while on the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visiontune.boxes import Boxes, BoxList
from visiontune.errors import UserError


def pictures_of(images: Any) -> Tensor:
    """A batch `(B, C, H, W)`, or the list of pictures `(C, H, W)` that `collate_fn=lambda batch: tuple(zip(*batch))` leaves.

    Raises:
        UserError: if they are of several sizes, or no pictures.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        return images
    if isinstance(images, Sequence) and images and all(isinstance(x, Tensor) and x.ndim == 3 for x in images):
        if len(sizes := {tuple(x.shape) for x in images}) > 1:
            listed = ", ".join("x".join(map(str, s)) for s in sorted(sizes))
            raise UserError(
                f"batch: got pictures of {listed} (channels, rows, columns) in one batch; bring them to one size in the loader, as "
                "visiontune.boxes.Letterbox does, with their boxes"
            )
        return torch.stack(list(images))
    got = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise UserError(f"batch: got {got} for the pictures; expected (B, C, H, W), or a list of B pictures (C, H, W)")


def boxes_of(targets: Any, pictures: int, num_classes: int) -> list[Boxes]:
    """One `Boxes` a picture, from those or from dictionaries with `boxes` `(M, 4)`, xyxy in pixels, and `labels` `(M,)`, from 0.

    What is on the CPU is checked. On another device nothing is asked that would have to wait for it: shapes and types alone.

    Raises:
        UserError: naming the first picture of the batch that is wrong.
    """
    several = isinstance(targets, Sequence | BoxList)
    if not several or len(targets) != pictures:
        got = f"{len(targets)} of them" if several else f"a {type(targets).__name__}"
        raise UserError(f"batch: got {got} as targets for {pictures} pictures; expected a list with one target a picture")
    found = []
    for i, target in enumerate(targets):
        if isinstance(target, Mapping):
            if missing := [k for k in ("boxes", "labels") if k not in target]:
                raise UserError(f"batch: targets[{i}] has no {missing[0]!r}, only {', '.join(map(str, target))}; expected boxes and labels")
            target = Boxes(torch.as_tensor(target["boxes"]), torch.as_tensor(target["labels"]))
            if not target.xyxy.numel():
                target = Boxes(target.xyxy.reshape(0, 4), target.labels.reshape(0).long())  # a list of none has no shape and no type
            target = Boxes(target.xyxy.float(), target.labels)
        if not isinstance(target, Boxes):
            raise UserError(f"batch: targets[{i}] is a {type(target).__name__}; expected visiontune.boxes.Boxes, or a dictionary")
        _check(target, f"targets[{i}]", num_classes)
        found.append(Boxes(target.xyxy.float(), target.labels.long()))
    return found


def _check(target: Boxes, where: str, num_classes: int) -> None:
    boxes, labels = target.xyxy, target.labels
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise UserError(
            f"batch: {where} has boxes of shape {tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}; expected (M, 4) and (M,), "
            "for an empty picture (0, 4) and (0,)"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"batch: {where} has labels of {labels.dtype}; expected whole numbers from 0: labels.long()")
    if boxes.device.type != "cpu" or not len(boxes):
        return
    if not boxes.isfinite().all():
        raise UserError(f"batch: {where} has a box that is not finite: {boxes[~boxes.isfinite().all(1)][0].tolist()}; mend or drop it")
    wrong = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if wrong.any():
        raise UserError(
            f"batch: {where} has the box {boxes[wrong][0].tolist()} with no width or height; expected x1 < x2 and y1 < y2, in pixels "
            "(COCO's files have x, y, width, height)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"batch: {where} has the label {high if high >= num_classes else low}, but num_classes={num_classes} allows 0 to "
            f"{num_classes - 1}; count labels from 0, without one for the background"
        )
