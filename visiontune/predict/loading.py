"""A model from a run, an exported folder or file, or timm."""

from pathlib import Path
from typing import Any

import torch

from visiontune import backbones
from visiontune.errors import UserError, near, some
from visiontune.export import timm_config
from visiontune.predict.detector import DetectorModel
from visiontune.predict.model import Model
from visiontune.predict.onnx_model import OnnxDetector, OnnxModel, load_onnx
from visiontune.run import Run


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Model | DetectorModel | OnnxModel | OnnxDetector:
    """A finished run, one stage of it, or what was exported, as a model with its own preprocessing, in evaluation mode.

    A fine-tuned run gives its classifier or detector, a pretrained one its backbone; of a staged run the last stage is meant.

    Args:
        path: a run, an exported folder, `weights.safetensors` as `export` writes it, or `model.onnx`.
        device: where it computes: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        UserError: if there are no weights, or no such device.

    >>> import tempfile, timm, torch
    >>> import visiontune
    >>> from visiontune.export import save_timm_folder
    >>> from visiontune.backbones import spec_of
    >>> network, folder = timm.create_model("test_vit", num_classes=2), tempfile.TemporaryDirectory()
    >>> names = {"num_classes": 2, "class_names": ["cat", "dog"]}  # a run leaves such a folder: runs/pets/weights/model
    >>> save_timm_folder(network, Path(folder.name), spec_of(network), mean=[0.5] * 3, std=[0.5] * 3, **names)
    >>> model = visiontune.load(folder.name)
    >>> model.class_names, model.image_size
    (('cat', 'dog'), (160, 160))
    >>> model(torch.zeros(4, 3, 160, 160, dtype=torch.uint8)).shape
    torch.Size([4, 2])
    >>> [p.broken for p in model.predict(["gone.jpg"])]
    ['file is gone']
    """
    if Path(path).suffix == ".onnx":
        return load_onnx(path, device=str(device))
    place = weights_of(path)
    config = backbones.read_config(place)
    if config is None:
        raise UserError(f"load: {path} {_what(Path(path))}; give a finished run, its weights/model, or what `export` wrote")
    if "detector" in config:
        return to_device(DetectorModel.read_folder(place, config), device)
    return to_device(Model(backbones.rebuild(place), config).eval(), device)


def weights_of(path: str | Path) -> Path:
    """The exported folder that a run's path stands for; other paths as they are.

    Raises:
        UserError: for a run without weights.
    """
    folder = Path(path)
    if not (folder / "recipe.yaml").is_file():
        return folder
    run = Run(folder)
    if stages := run.stage_runs():
        run = list(stages.values())[-1]
    place = run.model if run.model.is_dir() else run.backbone
    if not place.is_dir():
        raise UserError(f"load: the run {path} is not finished, and has no {place.name}; python -m visiontune.fit --resume {path} goes on")
    return place


def load_or_create(name: str, *, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu") -> Any:
    """As `load`; or, for what is no path, the backbone that timm knows by this name.

    Args:
        name: a path that `load` takes, or timm's name of a backbone.
        weights: of a backbone by name: `timm` (as None: fetched), `random`, a file, a run or an exported folder.
        image_size: pixels of a backbone by name; None takes timm's.

    Raises:
        UserError: if it is neither, `weights` or `image_size` are given for a path, or timm's weights cannot be fetched.
    """
    if Path(name).exists():
        if weights is not None or image_size is not None:
            option = "--weights" if weights is not None else "--image-size"
            raise UserError(f"embed: {option} is for backbones by name, and {name} has weights and a size of its own; leave it out")
        return load(name, device=device)
    if backbones.check_name(name):
        known = near(name, sorted(p.name for p in Path(name).parent.glob("*"))) if Path(name).parent.is_dir() else ""
        raise UserError(f"embed: {name} is no run, folder or file here{known}, and {backbones.check_name(name)}")
    weights = weights or "timm"  # as `probe` does: an embedding by weights that nobody trained is no one's first wish
    network = backbones.create(name, image_size=image_size, pretrained=weights == "timm")
    cfg: Any = network.pretrained_cfg
    spec = backbones.spec_of(network)
    config = timm_config(network, spec, cfg["mean"], cfg["std"], 0, ())
    config["pretrained_cfg"]["crop_pct"] = cfg.get("crop_pct") or 1.0  # of its published accuracy
    if weights not in ("random", "timm"):
        place = weights_of(weights)
        backbones.load_weights(network, place)
        if told := backbones.read_config(place):
            config["pretrained_cfg"] |= {k: told["pretrained_cfg"][k] for k in ("mean", "std") if k in told["pretrained_cfg"]}
    return to_device(Model(network, config).eval(), device)


def to_device(model: Any, device: str | torch.device) -> Any:
    """Moved. Raises UserError if there is no such device."""
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"--device: got {str(device)!r}; {str(error).splitlines()[0]}; allowed here: {', '.join(devices())}") from error


def devices() -> list[str]:
    """What this machine computes with, the fastest first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _what(path: Path) -> str:
    if path.is_dir():
        return "holds no recipe.yaml, and no config.json with model.safetensors"
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) if path.parent.is_dir() else []
        there = f"; {path.parent} holds {some(beside)}" if beside and str(path.parent) != "." else ""
        return f"is not there{near(path.name, beside) or there}"
    return "does not tell which network it is of"
