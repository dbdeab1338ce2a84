"""A detector as ONNX, its boxes compared with PyTorch's before the file gets its name.

B pictures, P positions of all levels, K classes, C candidates, D detections. Boxes are xyxy in pixels of the file's input.
"""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from visiontune.boxes import FILL
from visiontune.errors import UserError
from visiontune.export.onnx_compare import compare_detections, compare_everywhere, scenes
from visiontune.export.onnx_file import OLDEST_OPSET, OUTPUT_KEY, Input, PictureGraph, check_target, noise, save_compared, trace
from visiontune.export.onnx_graph import OnnxFile
from visiontune.export.onnx_operators import OPERATORS, suppress_boxes
from visiontune.heads import dense

Nms = Literal["inside", "outside"]
DETECTIONS, CANDIDATES = "detections", "candidates"  # what the outputs are: with NMS inside, and outside


class DetectorGraph(PictureGraph):
    """Normalisation where it is wanted, the network, boxes decoded in fp32, and NMS where it is wanted."""

    sides = 32  # coarser maps lie on finer ones then

    def __init__(self, detector: Any, config: dict[str, Any], *, input: Input, fp16: bool, nms: Nms) -> None:
        super().__init__(config, input=input, fp16=fp16)
        detector = copy.deepcopy(detector).eval().cpu().requires_grad_(False)
        self.detector = detector.half() if fp16 else detector.float()
        self.limits: dense.Limits = detector.head.limits
        self.nms = nms

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels") if self.nms == "inside" else ("boxes", "scores")

    def facts(self, config: dict[str, Any]) -> dict[str, Any]:
        shown = {"shown_from": config["shown_from"]} if "shown_from" in config else {}
        return shown | {
            OUTPUT_KEY: DETECTIONS if self.nms == "inside" else CANDIDATES,
            "preprocessing": {"resize": "letterbox", "place": "upper left", "fill": FILL},
            "box_format": "xyxy in pixels of the input",
            "score_threshold": self.limits.score,
            "nms": self.nms,
            "nms_iou": self.limits.nms,
            "max_detections": self.limits.detections,
        }

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        pictures = self.prepared(pictures)
        H, W = pictures.shape[-2:]
        network = self.detector.trained if self.detector.average is None else self.detector.average  # as `Detector.predict`
        levels = network["head"].dense(self.detector.features(pictures, network), (H, W))
        if self.nms == "inside":
            return dense.best(levels, self.limits, self._suppress)
        boxes, scores = zip(*levels, strict=True)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
        return suppress_boxes(boxes, scores, labels, iou, self.limits.num_classes, self.limits.detections)


def export_detector_onnx(
    detector: Any,
    config: dict[str, Any],
    out: Path,
    *,
    nms: Nms = "inside",
    input: Input = "float",
    opset: int = OLDEST_OPSET,
    dynamic: bool = False,
    fp16: bool = False,
) -> OnnxFile:
    """Write a detector, and compare it with PyTorch on noise and on painted scenes, one and three at a time.

    The file's input is `pictures`. Its outputs, with NMS inside: `boxes` (B, D, 4), `scores` (B, D), highest first, `labels` (B, D) from 0;
    where fewer are found, the rest has score 0. So are those of a head with queries, which suppresses nothing. With NMS outside: `boxes`
    (B, P, 4) and `scores` (B, P, K), for runtimes that lack ONNX's NonMaxSuppression or have their own. B is free.

    Args:
        detector: a `visiontune.Detector`; it stays as it is.
        config: as in the `config.json` of exported weights.
        out: the file; not there yet.
        nms: `inside`, the default because the file then says what the run says, and no program around it has a threshold to get wrong; or
            `outside`.
        input: as of `export_onnx`.
        opset: version of the operators.
        dynamic: pictures of any size in multiples of 32, for a network that takes them; compared at two sizes.
        fp16: weights and arithmetic of the network in half precision; boxes are decoded in fp32.

    Returns:
        The file; its `difference` is the largest one of scores, and with NMS outside of boxes, too, as shares of the picture's longer side.

    Raises:
        UserError: as of `export_onnx`; for a head that cannot be exported, too. What differs: with NMS inside, a box of one that has no
            partner of its class in the other, IoU of 0.99 and more, score within 1e-3; with NMS outside, boxes or scores that differ by
            more than 1e-3; at half precision 0.9 and 2e-2. The file is then kept as `NAME.differs.onnx`.
    """
    check_target(out, input, opset)
    if nms not in ("inside", "outside"):
        raise UserError(f"--nms: got {nms!r}; allowed: inside, outside")
    if not hasattr(detector.head, "dense"):
        name = config["detector"].get("head", type(detector.head).__module__.rpartition(".")[2])
        raise UserError(
            f"export: head {name} cannot be written as ONNX, only those whose predictions have a fixed number can: train head fcos, "
            "retinanet, rtdetrv2, dfine or deimv2, or use the run itself by visiontune.load(RUN)"
        )
    if not getattr(detector.head, "PYRAMID", True) and (dynamic or nms == "outside"):
        option, why = ("--dynamic", "has anchors for one size of pictures") if dynamic else ("--nms outside", "suppresses nothing")
        raise UserError(f"{option}: a head with queries {why}; leave {option} out")
    graph, reference = (DetectorGraph(detector, config, input=input, fp16=half, nms=nms).eval() for half in (fp16, False))
    channels, H, W = config["pretrained_cfg"]["input_size"]
    size = (-(-H // 32) * 32, -(-W // 32) * 32) if dynamic else (H, W)
    proto = trace(graph, config, graph.given(noise(2, channels, size)), opset, dynamic, OPERATORS)
    worst, boxes = 0.0, 0

    def compare(session: Any) -> None:
        nonlocal worst, boxes
        for h, w in [size, (size[0] + 32, size[1] + 64)] if dynamic else [size]:
            for pixels in (noise(1, channels, (h, w)), scenes(3, channels, (h, w))):
                pictures = graph.given(pixels)
                with torch.no_grad():
                    expected = reference(pictures)
                got = tuple(torch.from_numpy(x) for x in session.run(None, {"pictures": pictures.numpy()}))
                if nms == "inside":
                    difference, count = compare_detections(expected, got, graph.limits, fp16=fp16)
                    boxes += count
                else:
                    difference = compare_everywhere(expected, got, longest=max(h, w), fp16=fp16)
                worst = max(worst, difference)

    save_compared(proto, out, compare, cure="leave --fp16 out" if fp16 else "try another --opset, or --nms outside")
    return OnnxFile(out, worst, out.stat().st_size, boxes)
