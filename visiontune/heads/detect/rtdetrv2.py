"""RT-DETRv2: an encoder mixes the strides, queries are its best positions, a decoder refines them. Lv et al. 2024 (arXiv 2407.17140).

The networks are transformers', from their hybrid encoder (RT-DETR, arXiv 2304.08069) on; matching and losses are ours, equal to theirs.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.modeling_outputs import BaseModelOutput

from visiontune.heads.detect._detr import DETR
from visiontune.heads.detect._transformers import common_config, sized
from visiontune.losses.detr import varifocal
from visiontune.ranges import NonNegativeInt, PositiveInt

# The authors' S, M and L, behind ResNet-18, -34 and -50.
SIZES: dict[str, dict[str, Any]] = {
    "s": {"hidden": 256, "ffn": 1024, "decoder_layers": 3, "expansion": 0.5},
    "m": {"hidden": 256, "ffn": 1024, "decoder_layers": 4, "expansion": 0.5},
    "l": {"hidden": 256, "ffn": 1024, "decoder_layers": 6, "expansion": 1.0},
}


class Head(DETR):
    """transformers' RT-DETRv2 behind its backbone.

    Args:
        width: of the features of strides 8, 16 and 32.
        num_classes: K.
        score_threshold: lowest score of a prediction.
        max_detections: of a picture.
        nms: largest IoU of two predictions of one class; None: any.
        size: encoder and decoder of the authors' model of that name.
        hidden: width of encoder and decoder, a multiple of 32; None: the size's.
        decoder_layers: of the decoder; None: the size's.
        queries: boxes that a picture has at most.
        denoising: about how many noised boxes of the truth are queries of the training, too; 0: none.
    """

    UNION: ClassVar[bool] = False

    def __init__(
        self,
        width: tuple[int, int, int],
        num_classes: int,
        *,
        score_threshold: float = 0.01,
        max_detections: int = 100,
        nms: float | None = None,
        size: Literal["s", "m", "l"] = "s",
        hidden: PositiveInt | None = None,
        decoder_layers: PositiveInt | None = None,
        queries: PositiveInt = 300,
        denoising: NonNegativeInt = 100,
    ) -> None:
        sizes = sized(SIZES, size, hidden, decoder_layers)
        more = {"hidden_expansion": sizes.pop("expansion")}
        net = RTDetrV2ForObjectDetection(RTDetrV2Config(**common_config(width, num_classes, denoising=denoising, **sizes), **more))
        limits = {"score_threshold": score_threshold, "max_detections": max_detections, "nms": nms}
        super().__init__(net, net.model.encoder_input_proj, (BaseModelOutput, "last_hidden_state"), queries=queries, **limits)

    def class_loss(self, logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        return varifocal(logits, iou, labels, there)
