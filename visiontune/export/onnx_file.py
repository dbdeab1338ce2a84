"""Any network as an ONNX file that says what it is: traced, cleaned, and compared with PyTorch before it gets its name.

`metadata_props` hold class names, mean, std, size and what outputs mean for other programs, and all of `config.json` for ours.
B pictures, C channels, H x W pixels.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from visiontune.errors import UserError, some
from visiontune.export.onnx_session import CURE, open_session

Input = Literal["float", "nchw", "nhwc"]
CONFIG_KEY, INPUT_KEY, OUTPUT_KEY = "config", "input", "output"
# The exporter by torch.export writes operators of 18 and later; 18 is read by ONNX Runtime 1.14 of February 2023 and all after it.
OLDEST_OPSET, NEWEST_OPSET = 18, 23
# Largest difference of an output from PyTorch's, as a share of the largest output. Summing in another order costs 1e-7 to 5e-6 in fp32.
TOLERANCE = 1e-4
# Half precision has 11 bits, 5e-4 a rounding, and deep networks round often: 1e-3 to 1.3e-2, see benchmarks/onnx_parity.csv.
TOLERANCE_FP16 = 2e-2
# Bytes that protobuf holds in one file.
LARGEST = 2**31 - 2**20


class PictureGraph(nn.Module):
    """What goes into the file. Subclasses hold the network, and end in fp32.

    Args:
        config: as in the `config.json` of exported weights.
        input: see `export_onnx`.
        fp16: the network is in half precision.
    """

    sides: ClassVar[int] = 1  # where pictures of any size are asked for, rows and columns are multiples of it
    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any], *, input: Input, fp16: bool) -> None:
        super().__init__()
        self.input, self.fp16 = input, fp16
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config["pretrained_cfg"][name]).view(1, -1, 1, 1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        raise NotImplementedError

    def facts(self, config: dict[str, Any]) -> dict[str, Any]:
        """What other programs must know of the outputs, by name: words, or what JSON holds."""
        raise NotImplementedError

    def prepared(self, pictures: Tensor) -> Tensor:
        """What the file takes -> `(B, C, H, W)` as the network takes it."""
        if self.input == "nhwc":
            pictures = pictures.permute(0, 3, 1, 2)
        if self.input != "float":
            pictures = (pictures.float() / 255 - self.mean) / self.std
        return pictures.half() if self.fp16 else pictures

    def given(self, pixels: Tensor) -> Tensor:
        """Pixels `(B, C, H, W)` uint8 -> what the file takes."""
        if self.input == "float":
            return (pixels.float() / 255 - self.mean) / self.std
        return pixels.permute(0, 2, 3, 1).contiguous() if self.input == "nhwc" else pixels


class Differs(Exception):
    """How an ONNX file differs from PyTorch, and by what measure that is too much: a part of a sentence."""


def check_target(out: Path, input: str, opset: int) -> None:
    """Before anything is computed. Raises UserError if packages are missing, options are none, or `out` cannot be written."""
    # onnxscript is what torch's exporter writes with
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(f"export: ONNX needs {some(missing)}; {CURE}")
    import onnx

    newest = min(onnx.defs.onnx_opset_version(), NEWEST_OPSET)
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"--opset: got {opset}; expected a number from {OLDEST_OPSET} to {newest}")
    if input not in get_args(Input):
        raise UserError(f"--with-preprocessing: got {input!r}; allowed: nchw, nhwc")
    if out.suffix != ".onnx":
        raise UserError(f"--out: got {out}; expected a name that ends in .onnx, by which it is known")
    if out.exists():
        raise UserError(f"export: {out} is there already; give another name with --out, or remove it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it, or name a file in one that is there")


def noise(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Random pixels `(B, C, H, W)` uint8, the same each time."""
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def trace(
    graph: PictureGraph,
    config: dict[str, Any],
    pictures: Tensor,
    opset: int,
    dynamic: bool,
    operators: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Any:
    """The graph as ONNX's protobuf, with what it means, without where and when it was made.

    Args:
        graph: in evaluation mode.
        config: as in the `config.json` of exported weights.
        pictures: as the graph takes them, two or more.
        opset: version of the operators.
        dynamic: pictures of any size.
        operators: of PyTorch, that the exporter does not know, and what writes each by onnxscript.

    Raises:
        UserError: if torch cannot export it, or no file holds it.
    """
    free: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if dynamic:
        rows = 1 if graph.input == "nhwc" else 2
        for i in range(2):
            free[rows + i] = torch.export.Dim.DYNAMIC if graph.sides == 1 else graph.sides * torch.export.Dim(f"side{i}", min=2)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (pictures,),
                dynamo=True,
                input_names=["pictures"],
                output_names=list(graph.outputs),
                dynamic_shapes=(free,),
                opset_version=opset,
                custom_translation_table=dict(operators) if operators else None,
                verbose=False,
            )
    except Exception as error:  # torch's own, of many kinds
        what = "for pictures of any size; leave --dynamic out" if dynamic else "to ONNX"
        cause = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"export: torch cannot export {config['architecture']} {what} ({cause[0][:200] if cause else ''})") from error
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() > LARGEST:
        raise UserError(f"export: {config['architecture']} takes {proto.ByteSize() / 1e9:.1f} GB, and an ONNX file holds 2; try --fp16")
    _clean(proto)
    cfg = config["pretrained_cfg"]
    told: dict[str, Any] = {
        INPUT_KEY: graph.input,
        "class_names": config.get("label_names", []),
        "image_size": cfg["input_size"][1:],
        "channels": cfg["input_size"][0],
        "mean": cfg["mean"],
        "std": cfg["std"],
        **graph.facts(config),
        CONFIG_KEY: config,
    }
    for name, value in told.items():
        proto.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return proto


def save_compared(proto: Any, out: Path, compare: Callable[[Any], None], *, cure: str) -> None:
    """Write a file that gets its name when it was compared.

    Args:
        proto: of `trace`.
        out: the file.
        compare: takes an onnxruntime session; raises Differs.
        cure: what to try then.

    Raises:
        UserError: if it differs: it is then kept beside `out`, as `NAME.differs.onnx`.
    """
    part, wrong = (out.with_name(out.stem + ending) for ending in (".part", ".differs.onnx"))
    part.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        compare(open_session(part))
    except Differs as error:
        part.replace(wrong)
        raise UserError(f"export: {error}; it is kept as {wrong} to look at, and not to be used; {cure}") from error
    part.replace(out)


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
