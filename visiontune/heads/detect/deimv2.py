"""DEIMv2: D-FINE with a lighter encoder and a loss that also heeds matches that fit badly. Huang et al. 2025 (arXiv 2509.20787).

The networks are transformers', from their hybrid encoder on; matching and losses are ours, after the papers (DEIM: arXiv 2412.04234). Their
adapter beside a ViT is not here: a plain ViT's features become strides by the simple pyramid. What DEIM calls dense one-to-one is
augmentation: mosaic and mixup.
"""

from typing import Any, Literal

from torch import Tensor
from transformers import Deimv2Config, Deimv2ForObjectDetection
from transformers.models.deimv2.modeling_deimv2 import Deimv2EncoderOutput

from visiontune.heads.detect._detr import DETR
from visiontune.heads.detect._transformers import common_config, sized
from visiontune.losses.detr import matchability_aware
from visiontune.ranges import NonNegativeInt, PositiveInt

# n and l: encoder and decoder of the authors' models behind HGNetv2, whose N leaves stride 8 out; s and m lie between, as D-FINE's do.
SIZES: dict[str, dict[str, Any]] = {
    "n": {"hidden": 128, "ffn": 512, "decoder_ffn": 512, "decoder_layers": 3, "depth": 0.5, "expansion": 0.34},
    "s": {"hidden": 256, "ffn": 1024, "decoder_ffn": 1024, "decoder_layers": 3, "depth": 0.34, "expansion": 0.5},
    "m": {"hidden": 256, "ffn": 1024, "decoder_ffn": 2048, "decoder_layers": 4, "depth": 0.67, "expansion": 1.0},
    "l": {"hidden": 256, "ffn": 1024, "decoder_ffn": 2048, "decoder_layers": 6, "depth": 1.0, "expansion": 1.0},
}


class Head(DETR):
    """transformers' DEIMv2 behind its backbone.

    Args:
        width: of the features of strides 8, 16 and 32.
        num_classes: K.
        score_threshold: lowest score of a prediction.
        max_detections: of a picture.
        nms: largest IoU of two predictions of one class; None: any.
        size: of encoder and decoder.
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
        more = {
            "depth_mult": sizes.pop("depth"),
            "hidden_expansion": sizes.pop("expansion"),
            "decoder_n_points": [3, 6, 3],
            "decoder_activation_function": "silu",
            "encoder_has_trailing_conv": False,
        }
        net = Deimv2ForObjectDetection(Deimv2Config(**common_config(width, num_classes, denoising=denoising, **sizes), **more))
        limits = {"score_threshold": score_threshold, "max_detections": max_detections, "nms": nms}
        projections = net.model.conv_encoder.encoder_input_proj
        super().__init__(net, projections, (Deimv2EncoderOutput, "feature_maps"), queries=queries, **limits)

    def class_loss(self, logits: Tensor, iou: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        return matchability_aware(logits, iou, labels, there)
