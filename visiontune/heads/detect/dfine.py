"""D-FINE: queries whose boxes are refined as distributions, each layer learning from the last. Peng et al. 2024 (arXiv 2410.13842).

The networks are transformers', from their hybrid encoder (RT-DETR, arXiv 2304.08069) on. Matching and losses are ours, after the paper:
transformers' pair the distributions of a layer with the classes and boxes of the one before, and match no union of layers.
"""

from typing import Any, Literal

from torch import Tensor
from transformers import DFineConfig, DFineForObjectDetection
from transformers.modeling_outputs import BaseModelOutput

from visiontune.heads.detect._detr import DETR
from visiontune.heads.detect._transformers import common_config, sized
from visiontune.losses.detr import varifocal
from visiontune.ranges import NonNegativeInt, PositiveInt

# The authors' D-FINE-N, S, M and L; their N leaves stride 8 out.
SIZES: dict[str, dict[str, Any]] = {
    "n": {"hidden": 128, "ffn": 512, "decoder_layers": 3, "depth": 0.5, "expansion": 0.34},
    "s": {"hidden": 256, "ffn": 1024, "decoder_layers": 3, "depth": 0.34, "expansion": 0.5},
    "m": {"hidden": 256, "ffn": 1024, "decoder_layers": 4, "depth": 0.67, "expansion": 1.0},
    "l": {"hidden": 256, "ffn": 1024, "decoder_layers": 6, "depth": 1.0, "expansion": 1.0},
}


class Head(DETR):
    """transformers' D-FINE behind its backbone.

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

    def __init__(
        self,
        width: tuple[int, int, int],
        num_classes: int,
        *,
        score_threshold: float = 0.01,
        max_detections: int = 100,
        nms: float | None = None,
        size: Literal["n", "s", "m", "l"] = "s",
        hidden: PositiveInt | None = None,
        decoder_layers: PositiveInt | None = None,
        queries: PositiveInt = 300,
        denoising: NonNegativeInt = 100,
    ) -> None:
        sizes = sized(SIZES, size, hidden, decoder_layers)
        more = {"depth_mult": sizes.pop("depth"), "hidden_expansion": sizes.pop("expansion"), "decoder_n_points": [3, 6, 3]}
        net = DFineForObjectDetection(DFineConfig(**common_config(width, num_classes, denoising=denoising, **sizes), **more))
        limits = {"score_threshold": score_threshold, "max_detections": max_detections, "nms": nms}
        super().__init__(net, net.model.encoder_input_proj, (BaseModelOutput, "last_hidden_state"), queries=queries, **limits)

    def class_loss(self, logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        return varifocal(logits, iou, labels, there)
