"""A network as ONNX, compared with PyTorch before it gets its name.

B pictures, C channels, H x W pixels, K classes, D width.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.export.onnx_file import (
    OLDEST_OPSET,
    OUTPUT_KEY,
    TOLERANCE,
    TOLERANCE_FP16,
    Differs,
    Input,
    PictureGraph,
    check_target,
    noise,
    save_compared,
    trace,
)


@dataclass(frozen=True)
class OnnxFile:
    """What `export_onnx` or `export_detector_onnx` wrote.

    Attributes:
        path: the file.
        difference: largest one from PyTorch's outputs, as a share of the largest output; of boxes, see `export_detector_onnx`.
        size: bytes.
        boxes: of PyTorch's and of the file's, that were looked for among the other's; 0 without them.
    """

    path: Path
    difference: float
    size: int
    boxes: int = 0


class Graph(PictureGraph):
    """Normalisation where it is wanted, the network, fp32 outputs."""

    def __init__(self, network: nn.Module, config: dict[str, Any], *, input: Input, fp16: bool) -> None:
        super().__init__(config, input=input, fp16=fp16)
        self.network = copy.deepcopy(network).eval().cpu().requires_grad_(False)
        self.network = self.network.half() if fp16 else self.network.float()
        self.embeds = not config.get("num_classes")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("embedding",) if self.embeds else ("logits",)

    def facts(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            OUTPUT_KEY: self.outputs[0],
            "labels": config.get("labels", "single"),
            "temperature": config.get("temperature", 1.0),
            "thresholds": config.get("thresholds", []),
        }

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = self.prepared(pictures)
        out = backbones.embed(self.network, pictures) if self.embeds else self.network(pictures)
        return out.float()


def export_onnx(
    network: nn.Module,
    config: dict[str, Any],
    out: Path,
    *,
    input: Input = "float",
    opset: int = OLDEST_OPSET,
    dynamic: bool = False,
    fp16: bool = False,
    tolerance: float | None = None,
) -> OnnxFile:
    """Write a network, and compare it with PyTorch on random pictures, one and three at a time.

    The file's input is `pictures`, its output `logits` (B, K), or `embedding` (B, D) of a backbone; B is free.

    Args:
        network: a timm module; it stays as it is.
        config: as in the `config.json` of exported weights.
        out: the file; not there yet.
        input: `float`: normalised `(B, C, H, W)` float32; `nchw` and `nhwc`: uint8 pixels, `(B, C, H, W)` or `(B, H, W, C)`, which the file
            normalises itself.
        opset: version of the operators.
        dynamic: pictures of any size, for a network that takes them; compared at two sizes.
        fp16: weights and arithmetic in half precision; inputs and outputs as ever.
        tolerance: largest difference, as a share of the largest output; None takes 1e-4, and 2e-2 of fp16.

    Raises:
        UserError: if packages are missing, `out` is there already, the network cannot be exported, or its outputs differ: the file is then
            kept beside `out`, as `NAME.differs.onnx`.
    """
    check_target(out, input, opset)
    graph = Graph(network, config, input=input, fp16=fp16).eval()
    reference = Graph(network, config, input=input, fp16=False).eval()
    channels, H, W = config["pretrained_cfg"]["input_size"]
    tolerance = tolerance or (TOLERANCE_FP16 if fp16 else TOLERANCE)
    proto = trace(graph, config, graph.given(noise(2, channels, (H, W))), opset, dynamic)
    worst = 0.0

    def compare(session: Any) -> None:
        nonlocal worst
        for size in [(H, W), (H + 32, W + 64)] if dynamic else [(H, W)]:
            for B in (1, 3):
                difference = largest_difference(session, reference, graph.given(noise(B, channels, size)))
                worst = max(worst, difference)
                if not difference <= tolerance:  # not a number is no agreement either
                    raise Differs(
                        f"the ONNX file's outputs differ from PyTorch's by {difference:.1e} of the largest output (batch {B} of "
                        f"{size[0]}x{size[1]}), more than {tolerance:.0e}"
                    )

    save_compared(proto, out, compare, cure="leave --fp16 out" if fp16 else "try another --opset")
    return OnnxFile(out, worst, out.stat().st_size)


@torch.no_grad()
def largest_difference(session: Any, reference: nn.Module, pictures: Tensor) -> float:
    """Of an ONNX session's outputs from a module's, as a share of the module's largest; infinite for other shapes."""
    expected = reference(pictures)
    got = torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
