"""What torch's exporter does not know, in ONNX's operators. Foremost non-maximum suppression of a batch as one operator: torchvision's in
PyTorch, ONNX's NonMaxSuppression in a file.

B pictures, C candidates, K classes, M of them that are kept. An exporter would write a loop over pictures for as many as it saw.
"""

from typing import Any

import torch
from torch import Tensor

from visiontune.heads import dense


@torch.library.custom_op("visiontune::suppress_boxes", mutates_args=())
def suppress_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, num_classes: int, most: int) -> Tensor:
    """`(B, C, 4)`, `(B, C)`, `(B, C)` -> `(B, C)`, 1 where a candidate is kept, else 0.

    Args:
        boxes: xyxy.
        scores: 0 where there is no candidate.
        labels: from 0.
        iou: largest overlap of two that are kept.
        num_classes: K.
        most: so many of a class suffice.
    """
    return dense.suppress(boxes, scores, labels, iou)


@suppress_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, num_classes: int, most: int) -> Tensor:
    return torch.empty_like(scores)


def write_suppress_boxes(boxes: Any, scores: Any, labels: Any, iou: float, num_classes: int, most: int) -> Any:
    """The same by onnxscript, in operators of version 18."""
    import onnxscript

    op: Any = onnxscript.opset18
    classes = op.Constant(value_ints=list(range(num_classes)))
    mine = op.Equal(op.Unsqueeze(labels, op.Constant(value_ints=[1])), op.Unsqueeze(classes, op.Constant(value_ints=[0, 2])))
    by_class = op.Where(mine, op.Unsqueeze(scores, op.Constant(value_ints=[1])), op.Constant(value_float=0.0))  # (B, K, C)
    limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[iou]), op.Constant(value_floats=[0.0])
    found = op.NonMaxSuppression(boxes, by_class, *limits)  # (M, 3): picture, class, candidate
    at = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)  # (M, 2): a candidate has one class
    ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(found), *(op.Constant(value_ints=[i]) for i in (0, 1))))
    return op.ScatterND(op.Mul(scores, op.Constant(value_float=0.0)), at, ones)


def write_is_all_true(values: Any) -> Any:
    """What transformers' checks of shapes become when they are traced."""
    import onnxscript

    op: Any = onnxscript.opset18
    return op.Cast(op.ReduceMin(op.Cast(values, to=6), keepdims=0), to=9)  # through int32: booleans have no minimum


OPERATORS = {
    torch.ops.visiontune.suppress_boxes.default: write_suppress_boxes,
    torch.ops.aten._is_all_true.default: write_is_all_true,
}
