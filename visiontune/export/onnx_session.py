"""An ONNX file in onnxruntime, on the device that was asked for or not at all."""

from pathlib import Path
from typing import Any

from visiontune.errors import UserError

CUDA_PROVIDER = "CUDAExecutionProvider"
CURE = "pip install 'visiontune[onnx]'"
CUDA_CURE = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'; or take --device cpu"


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
