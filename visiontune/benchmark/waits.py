"""What of a training step makes the host wait for its device, so that the device runs dry until the host has caught up."""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operators whose result, or its size, the host must read from the device.
READS = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.bincount, aten.histc,
)  # fmt: skip
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# Where a wait is looked for in the stack: behind what only passes it on.
PASSES_ON = ("torch/", "lightning/", "contextlib.py", "warnings.py", "benchmark/waits.py")


@contextmanager
def noted(device: torch.device) -> Iterator[list[str]]:
    """A list that every wait inside joins, by what it is and the file and line that it comes from.

    On CUDA they are those that torch itself tells of (`torch.cuda.set_sync_debug_mode`), copies from and to the host among them. Elsewhere
    they are the operators that would wait on a GPU, in the step's thread; copies do not show there, nor whether a number that is read was
    the host's own.
    """
    found: list[str] = []
    if device.type != "cuda":
        with _Reads(found):
            yield found
        return

    def show(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # not torch's word about the mode itself
            found.append(_where("a synchronizing operation"))

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # type: ignore[assignment]  # `catch_warnings` puts it back
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)


def waits(step: Callable[[], object], device: torch.device) -> list[str]:
    """Those of one call of `step`."""
    with noted(device) as found:
        step()
    return found


class _Reads(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in READS or (func.overloadpacket in INDEXED and _by_mask(func, args)) or _by_counts(func, kwargs):
            self.found.append(_where(str(func)))
        return func(*args, **kwargs)


def _by_mask(func: Any, args: Sequence[Any]) -> bool:
    """A mask picks as many as it is True for; where one number is written behind it, nothing has to be counted."""
    masks = any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return masks and not (func.overloadpacket is not aten.index and isinstance(args[2], torch.Tensor) and args[2].numel() == 1)


def _by_counts(func: Any, kwargs: dict[str, Any]) -> bool:
    return func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None


def _where(what: str) -> str:
    for frame in reversed(traceback.extract_stack()):
        if not any(part in frame.filename for part in PASSES_ON):
            return f"{what} at {Path(frame.filename).name}:{frame.lineno}"
    return what
