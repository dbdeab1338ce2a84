"""A network as ONNX, compared with PyTorch before it gets its name.

The file says what its outputs mean: `metadata_props` hold class names, mean, std, size, temperature and thresholds for other programs, and
all of `config.json` for ours. B pictures, C channels, H x W pixels, K classes.
"""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from visiontune import backbones
from visiontune.errors import UserError, some

Input = Literal["float", "nchw", "nhwc"]
CONFIG_KEY, INPUT_KEY, OUTPUT_KEY = "config", "input", "output"
# The exporter by torch.export writes operators of 18 and later; 18 is read by ONNX Runtime 1.14 of February 2023 and all after it.
OLDEST_OPSET, NEWEST_OPSET = 18, 23
# Largest difference of an output from PyTorch's, as a share of the largest output. Summing in another order costs 1e-7 to 5e-6 in fp32.
TOLERANCE = 1e-4
# Half precision has 11 bits, 5e-4 a rounding, and deep networks round often: 1e-3 to 1.3e-2, see benchmarks/onnx_parity.csv.
TOLERANCE_FP16 = 2e-2
CUDA_PROVIDER = "CUDAExecutionProvider"
# Bytes that protobuf holds in one file.
LARGEST = 2**31 - 2**20
CURE = "pip install 'visiontune[onnx]'"
CUDA_CURE = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'; or take --device cpu"


@dataclass(frozen=True)
class OnnxFile:
    """What `export_onnx` wrote.

    Attributes:
        path: the file.
        difference: largest one from PyTorch's outputs, as a share of the largest output.
        size: bytes.
    """

    path: Path
    difference: float
    size: int


class Graph(nn.Module):
    """What goes into the file: normalisation where it is wanted, the network, fp32 outputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: dict[str, Any], *, input: Input, fp16: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().cpu().requires_grad_(False)
        self.network = self.network.half() if fp16 else self.network.float()
        self.input, self.fp16, self.embeds = input, fp16, not config.get("num_classes")
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config["pretrained_cfg"][name]).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        if self.input == "nhwc":
            pictures = pictures.permute(0, 3, 1, 2)
        if self.input != "float":
            pictures = (pictures.float() / 255 - self.mean) / self.std
        if self.fp16:
            pictures = pictures.half()
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
    _check(out, input, opset)
    graph = Graph(network, config, input=input, fp16=fp16).eval()
    channels, H, W = config["pretrained_cfg"]["input_size"]
    tolerance = tolerance or (TOLERANCE_FP16 if fp16 else TOLERANCE)
    proto = _trace(graph, config, random_pictures(2, channels, (H, W), graph), opset, dynamic)
    if proto.ByteSize() > LARGEST:
        raise UserError(f"export: {config['architecture']} takes {proto.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2; try --fp16")
    part, wrong = (out.with_name(out.stem + ending) for ending in (".part", ".differs.onnx"))
    part.write_bytes(proto.SerializeToString(deterministic=True))
    session = open_session(part)
    reference = Graph(network, config, input=input, fp16=False).eval()
    worst = 0.0
    for size in [(H, W), (H + 32, W + 64)] if dynamic else [(H, W)]:
        for B in (1, 3):
            pictures = random_pictures(B, channels, size, graph)
            difference = largest_difference(session, reference, pictures)
            worst = max(worst, difference)
            if not difference <= tolerance:  # not a number is no agreement either
                part.replace(wrong)
                raise UserError(
                    f"export: the ONNX file's outputs differ from PyTorch's by {difference:.1e} of the largest output (batch {B} of "
                    f"{size[0]}x{size[1]}), more than {tolerance:.0e}; it is kept as {wrong} to look at, and not to be used; "
                    + ("leave --fp16 out" if fp16 else "try another --opset")
                )
    part.replace(out)
    return OnnxFile(out, worst, out.stat().st_size)


def _check(out: Path, input: str, opset: int) -> None:
    # onnxscript is what torch's exporter writes with
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(f"export: ONNX needs {some(missing)}; {CURE}")
    import onnx

    newest = min(onnx.defs.onnx_opset_version(), NEWEST_OPSET)
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"--opset: got {opset}; expected a number from {OLDEST_OPSET} to {newest}")
    if input not in get_args(Input):
        raise UserError(f"--with-preprocessing: got {input!r}; allowed: nchw, nhwc")
    if out.exists():
        raise UserError(f"export: {out} is there already; give another name with --out, or remove it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it, or name a file in one that is there")


def random_pictures(count: int, channels: int, size: tuple[int, int], graph: Graph) -> Tensor:
    """uint8 noise as the graph takes it, the same each time."""
    generator = torch.Generator().manual_seed(count)
    pictures = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)
    if graph.input == "float":
        return (pictures.float() / 255 - graph.mean) / graph.std
    return pictures.permute(0, 2, 3, 1).contiguous() if graph.input == "nhwc" else pictures


@torch.no_grad()
def largest_difference(session: Any, reference: nn.Module, pictures: Tensor) -> float:
    """Of an ONNX session's outputs from a module's, as a share of the module's largest; infinite for other shapes."""
    expected = reference(pictures)
    got = torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def open_session(path: Path, device: str = "cpu") -> Any:
    """A file in onnxruntime.

    Raises:
        UserError: if onnxruntime is missing, has no such device, or refuses the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"load: {path} needs onnxruntime; {CURE}") from error
    kind, _, number = device.partition(":")
    wanted = {"cpu": "CPUExecutionProvider", "cuda": CUDA_PROVIDER}.get(kind)
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        cure = CUDA_CURE if kind == "cuda" else "take --device cpu"
        raise UserError(f"--device: got {device!r}, and this onnxruntime computes by {', '.join(available)} alone; {cure}")
    if not path.is_file():
        raise UserError(f"load: there is no file {path}")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        providers.insert(0, (CUDA_PROVIDER, {"device_id": number or "0"}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised; the rest is advice about a graph that nobody here writes by hand
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's own, of many kinds
        what = "load: onnxruntime cannot read" if kind == "cpu" else f"--device: got {device!r}, but onnxruntime cannot open there"
        raise UserError(f"{what} {path}: {str(error).splitlines()[0][:200]}") from error
    if wanted not in session.get_providers():  # where the provider's libraries do not load it computes on the CPU without a word
        raise UserError(f"--device: got {device!r}, but onnxruntime's {wanted} does not start here; {CUDA_CURE}")
    return session


def fastest_device(path: Path, fastest: str) -> tuple[str, str]:
    """Where onnxruntime computes a file fastest, and why not on the device that torch has, or nothing."""
    if not fastest.startswith("cuda"):
        return "cpu", f"onnxruntime does not compute on {fastest}" if fastest != "cpu" else ""
    try:
        open_session(path, fastest)
    except UserError as error:
        reason = str(error).removeprefix(f"--device: got {fastest!r}, ").removeprefix("and ").removeprefix("but ")
        return "cpu", reason if str(error).startswith("--device") else ""  # what else is wrong is told when it is loaded
    return fastest, ""


def _trace(graph: Graph, config: dict[str, Any], pictures: Tensor, opset: int, dynamic: bool) -> Any:
    """The graph as ONNX's protobuf, with what it means, without where and when it was made."""
    free = {0: torch.export.Dim.DYNAMIC}
    if dynamic:
        rows = 1 if graph.input == "nhwc" else 2
        free |= {rows: torch.export.Dim.DYNAMIC, rows + 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (pictures,),
                dynamo=True,
                input_names=["pictures"],
                output_names=["embedding" if graph.embeds else "logits"],
                dynamic_shapes=(free,),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # torch's own, of many kinds
        what = "for pictures of any size; leave --dynamic out" if dynamic else "to ONNX"
        cause = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"export: torch cannot export {config['architecture']} {what} ({cause[0][:200] if cause else ''})") from error
    assert program is not None
    proto = program.model_proto
    _clean(proto)
    for name, value in facts(config, graph).items():
        proto.metadata_props.add(key=name, value=value)
    return proto


def facts(config: dict[str, Any], graph: Graph) -> dict[str, str]:
    """What other programs need to know, as `metadata_props` take it: words or JSON."""
    cfg = config["pretrained_cfg"]
    told: dict[str, Any] = {
        "class_names": config.get("label_names", []),
        "image_size": cfg["input_size"][1:],
        "channels": cfg["input_size"][0],
        "mean": cfg["mean"],
        "std": cfg["std"],
        "labels": config.get("labels", "single"),
        "temperature": config.get("temperature", 1.0),
        "thresholds": config.get("thresholds", []),
        CONFIG_KEY: config,
    }
    words = {INPUT_KEY: graph.input, OUTPUT_KEY: "embedding" if graph.embeds else "logits"}
    return words | {k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()}


def _clean(proto: Any) -> None:
    """Without the exporter's notes, which name places on this machine."""
    for graph in [proto.graph, *proto.functions]:
        for part in [graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ()), *getattr(graph, "input", ())]:
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.doc_string = ""
    del proto.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's account of its steps, and warnings about them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
