"""What a detector's boxes are worth: COCO's average precision and recall, over processes as over one.

N pictures, D predictions, M true boxes (a crowd's among them), K classes; T overlaps (IoU) from 0.5 to 0.95, R = 101 recalls, A ranges of
area, L limits on the predictions of a picture.
"""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from visiontune.boxes import Boxes
from visiontune.errors import UserError

COUNTERS = ("faster_coco_eval", "pycocotools")  # what can count, the faster first
STATES = ("found", "truth", "crowd", "counts")  # rows of boxes, and how many of each a picture has
SIZES = ("small", "medium", "large")  # areas up to 32 x 32 pixels, up to 96 x 96, and above: https://cocodataset.org/#detection-eval
HALF, THREE_QUARTERS = 0, 5  # places of an IoU of 0.5 and of 0.75 among the T


class MeanAveragePrecision(Metric):
    """COCO's numbers from the boxes of any number of pictures.

    Predictions and truth stay on the device until `compute`: an update never waits for it. Over processes all of them are joined, whatever
    number of pictures each has seen, none included; let no picture be seen twice.

    Args:
        num_classes: K.
        max_detections: most predictions of a picture and class that count, the best ones: the detector's own limit of a picture, so that
            none of its boxes is left out. COCO's is 100.

    Raises:
        UserError: if nothing is installed that counts.
    """

    full_state_update = False
    higher_is_better = True
    found: list[Tensor]
    truth: list[Tensor]
    crowd: list[Tensor]
    counts: list[Tensor]

    def __init__(self, num_classes: int, *, max_detections: int = 100) -> None:
        super().__init__()
        find_counter()
        self.num_classes, self.max_detections = num_classes, max_detections
        for name in STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        found: Sequence[Boxes],
        truth: Sequence[Boxes],
        *,
        crowd: Sequence[Boxes] | None = None,
        area: Sequence[Tensor] | None = None,
    ) -> None:
        """Add pictures, on any device.

        Args:
            found: predictions of each picture, with scores, in pixels of the original picture, for areas are compared with COCO's.
            truth: what there is, in the same pixels.
            crowd: boxes of each picture that count for nothing, whether they are found or not (COCO's `iscrowd`).
            area: `(M,)` of each picture's true boxes in square pixels, such as those of outlines; None: those of the boxes.
        """
        assert len(found) == len(truth), "as many predictions as pictures"
        if not truth:
            return
        self.found.append(self._rows(found, [f.scores if f.scores is not None else torch.zeros(0) for f in found]))
        self.truth.append(self._rows(truth, area))
        counts = [[len(b) for b in boxes] for boxes in (found, truth, crowd or [Boxes.none()] * len(truth))]
        self.counts.append(torch.tensor(counts).T)  # from the CPU it would wait for the device
        if crowd is not None:
            self.crowd.append(self._rows(crowd))

    def _rows(self, boxes: Sequence[Boxes], columns: Sequence[Tensor] | None = None) -> Tensor:
        """xyxy, label and a column, which is the area where there is none: `(M, 6)`. Of labels float32 is exact up to 16 million."""
        xyxy, labels = (
            torch.cat([x.to(self.device).float() for x in each]) for each in zip(*((b.xyxy, b.labels) for b in boxes), strict=True)
        )
        column = areas_of(xyxy) if columns is None else torch.cat([c.to(self.device).float() for c in columns])
        return torch.cat([xyxy, labels[:, None], column[:, None]], dim=1)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A process without a picture takes part, with nothing of the right shape.
        for name in STATES:
            if not getattr(self, name):
                setattr(self, name, [_nothing(name, self.device)])
        self.counts = [c.to(self.device) for c in self.counts]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """The numbers of `coco_metrics`, on this metric's device; torchmetrics makes scalars of one class's `ap` and `ap50`."""
        found, truth, crowd, counts = (_joined(name, getattr(self, name)) for name in STATES)
        numbers = np.arange(len(counts))
        found_in, truth_in, crowd_in = (np.repeat(numbers, each) for each in counts.T)
        real = np.concatenate([np.pad(truth, ((0, 0), (0, 1))), np.pad(crowd, ((0, 0), (0, 1)), constant_values=1)])
        counted = _count(found, found_in, real, np.concatenate([truth_in, crowd_in]), len(numbers), self.max_detections)
        values = _summary(*counted, self.num_classes)
        return {name: torch.as_tensor(value, dtype=torch.float32).to(self.device) for name, value in values.items()}


def coco_metrics(
    found: Sequence[Boxes],
    truth: Sequence[Boxes],
    *,
    num_classes: int,
    crowd: Sequence[Boxes] | None = None,
    area: Sequence[Tensor] | None = None,
    max_detections: int = 100,
) -> dict[str, Tensor]:
    """COCO's numbers of these pictures, in this process alone. Arguments as of `MeanAveragePrecision`.

    Returns:
        `map`, the mean of average precision over IoU of 0.5, 0.55 to 0.95 and over classes; `map50` and `map75` at one IoU; `map_small`,
        `map_medium`, `map_large` of true boxes of those areas; `mar1`, `mar10` and `mar`, the mean recall with that many predictions of a
        picture and class, and with `max_detections`; `mar_small`, `mar_medium`, `mar_large`; `ap` and `ap50`, `(K,)`, of each class. nan is
        of no box at all.

    Lin et al. 2014 (arXiv 1405.0312) and https://cocodataset.org/#detection-eval.
    """
    metric = MeanAveragePrecision(num_classes, max_detections=max_detections)
    metric.distributed_available_fn = lambda: False
    metric.update(found, truth, crowd=crowd, area=area)
    values = metric.compute()
    return values | {name: values[name].reshape(num_classes) for name in ("ap", "ap50")}


def areas_of(xyxy: Tensor) -> Tensor:
    """`(M, 4)` -> `(M,)`, square pixels."""
    return (xyxy[:, 2:] - xyxy[:, :2]).prod(dim=1)


def find_counter() -> str:
    """The name of what is installed and counts.

    Raises:
        UserError: if nothing is.
    """
    name = next((c for c in COUNTERS if importlib.util.find_spec(c)), None)
    if name is None:
        raise UserError(
            "mean average precision needs faster-coco-eval or pycocotools, and neither is installed; "
            "pip install faster-coco-eval (extra `detection`), or, in a project of your own, train without validation pictures"
        )
    return name


def _nothing(name: str, device: torch.device | str = "cpu") -> Tensor:
    return torch.zeros(0, 3, dtype=torch.long, device=device) if name == "counts" else torch.zeros(0, 6, device=device)


def _joined(name: str, rows: Any) -> np.ndarray:
    """A list of parts, or after a sync their whole."""
    return (rows if isinstance(rows, Tensor) else torch.cat([_nothing(name), *(r.cpu() for r in rows)])).cpu().numpy()


# ---------------------------------------------------------------- counting


def _count(
    found: np.ndarray, found_in: np.ndarray, truth: np.ndarray, truth_in: np.ndarray, N: int, max_detections: int
) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Precision `(T, R, k, A, L)`, recall `(T, k, A, L)`, the k classes that have a true box, and the L limits; -1 where there is none.

    Args:
        found: `(D, 6)`: xyxy, label, score.
        found_in: `(D,)`, the number of the picture.
        truth: `(M, 7)`: xyxy, label, area, crowd.
        truth_in: `(M,)`.
        N: the number of pictures.
    """
    limits = sorted({min(limit, max_detections) for limit in (1, 10, max_detections)})
    classes = np.unique(truth[truth[:, 6] == 0, 4]).astype(int).tolist()
    if not classes:
        return np.zeros((10, 101, 0, 4, len(limits))), np.zeros((10, 0, 4, len(limits))), [], limits
    make, evaluate = _tools(find_counter())
    real, said = make(), make()
    images, categories = [{"id": i} for i in range(N)], [{"id": k} for k in classes]
    keep = np.isin(truth[:, 4], classes)
    real.dataset = {
        "images": images,
        "categories": categories,
        "annotations": _annotations(truth[keep], truth_in[keep], area=truth[keep, 5].tolist(), iscrowd=truth[keep, 6].astype(int).tolist()),
    }
    keep = np.isin(found[:, 4], classes)
    sides = found[keep, 2:4].astype(np.float64) - found[keep, :2]
    said.dataset = {
        "images": images,
        "categories": categories,
        "annotations": _annotations(found[keep], found_in[keep], area=sides.prod(axis=1).tolist(), score=found[keep, 5].tolist()),
    }
    with contextlib.redirect_stdout(io.StringIO()):  # they tell how long everything took
        real.createIndex()
        said.createIndex()
        counter = evaluate(real, said, iouType="bbox")
        counter.params.maxDets = limits
        counter.evaluate()
        counter.accumulate()
    # Their own summary asks for a limit of 100 whatever the limits are; the arrays hold all there is.
    return counter.eval["precision"], counter.eval["recall"], classes, limits


def _annotations(rows: np.ndarray, pictures: np.ndarray, **columns: Iterable[Any]) -> list[dict[str, Any]]:
    """COCO's dictionaries; numbers begin at 1, for 0 means no match."""
    xywh = rows[:, :4].astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    owners, labels = pictures.tolist(), rows[:, 4].astype(int).tolist()
    made: list[dict[str, Any]] = [
        {"id": i, "image_id": owner, "category_id": label, "bbox": box}
        for i, (owner, label, box) in enumerate(zip(owners, labels, xywh.tolist(), strict=True), 1)
    ]
    for name, values in columns.items():
        for annotation, value in zip(made, values, strict=True):
            annotation[name] = value
    return made


def _tools(counter: str) -> tuple[Any, Any]:
    """The classes of annotations and of the evaluation."""
    if counter == "faster_coco_eval":
        module = importlib.import_module("faster_coco_eval")
        return module.COCO, module.COCOeval_faster
    return importlib.import_module("pycocotools.coco").COCO, importlib.import_module("pycocotools.cocoeval").COCOeval


def _summary(
    precision: np.ndarray, recall: np.ndarray, classes: list[int], limits: list[int], num_classes: int
) -> dict[str, float | np.ndarray]:
    """Means over what there is; see `coco_metrics`."""
    best = precision[..., -1]  # (T, R, k, A), with all predictions
    values: dict[str, float | np.ndarray] = {
        "map": _mean(best[:, :, :, 0]),
        "map50": _mean(best[HALF, :, :, 0]),
        "map75": _mean(best[THREE_QUARTERS, :, :, 0]),
    }
    values |= {f"map_{size}": _mean(best[:, :, :, a]) for a, size in enumerate(SIZES, 1)}
    for name, limit in (("mar1", 1), ("mar10", 10), ("mar", limits[-1])):
        values[name] = _mean(recall[:, :, 0, limits.index(min(limit, limits[-1]))])
    values |= {f"mar_{size}": _mean(recall[:, :, a, -1]) for a, size in enumerate(SIZES, 1)}
    for name, part in (("ap", best[..., 0]), ("ap50", best[HALF : HALF + 1, :, :, 0])):
        every = np.full(num_classes, np.nan)
        every[classes] = [_mean(part[:, :, i]) for i in range(len(classes))]
        values[name] = every
    return values


def _mean(values: np.ndarray) -> float:
    there = values[values > -1]
    return float(there.mean()) if there.size else float("nan")
