"""Small pictures and runs for all tests. Nothing here or in the tests touches the network or a time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).parent.parent

# A vision transformer and a convnet small enough for a step in milliseconds.
VIT = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}
CONV = {"name": "convnext_atto", "args": {"patch_size": 2, "depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}}
# Every joint-embedding method with small heads, as options of its class.
_HEAD = {"projector_hidden": 32, "projector_out": 16}
_PROTOTYPES = _HEAD | {"prototypes": 24, "momentum_start": 0.9, "teacher_warmup": 0.5, "freeze_prototypes": 0.2}
JOINT: dict[str, dict] = {
    "simclr": _HEAD | {"temperature": 0.5},
    "mocov2": _HEAD | {"queue": 32, "teacher_momentum": 0.9},
    "mocov3": _HEAD | {"momentum_start": 0.9},
    "byol": _HEAD | {"momentum_start": 0.9},
    "simsiam": {"projector_hidden": 32, "projector_out": 32, "predictor_hidden": 8},
    "barlow_twins": {"projector_out": 16},
    "vicreg": {"projector_out": 16},
    "swav": _HEAD | {"prototypes": 12, "queue": 16, "queue_start": 0.3, "freeze_prototypes": 0.2},
    "dino": _PROTOTYPES,
    "ibot": _PROTOTYPES,
    "dinov2": _PROTOTYPES,
    "lejepa": _HEAD | {"directions": 16},
    "distill": {"projector_hidden": 32},
}
MULTI_CROP = ("swav", "dino", "ibot", "dinov2", "lejepa")


def make_joint(name: str, backbone, **more):
    """A joint-embedding method with small heads; the teacher of `distill` is a small network of random weights."""
    import timm

    import visiontune
    from visiontune.recipe.options import read_options

    options = JOINT[name] | more
    if name == "distill":
        with torch.random.fork_rng():
            torch.manual_seed(7)
            options = {"teacher": timm.create_model("test_resnet", num_classes=0)} | options
    return getattr(visiontune, read_options("pretrain", name).class_name)(backbone, **options)


def joint_views(name: str, size: int, pictures: int = 8, seed: int = 0):
    """Random views as the method takes them: one, two, or two and two small ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [size] if name == "distill" else [size] * 2 + [size // 2] * (2 * (name in MULTI_CROP))
    views = [torch.randn(pictures, 3, s, s, generator=generator) for s in sizes]
    return views[0] if name == "distill" else views


def pytest_collection_modifyitems(config, items):
    """`gpu` tests skip where there is none and say so; `slow` ones run when they are asked for."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA: run `pytest -m gpu` on a machine that has it"))
        if "slow" in item.keywords and "slow" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run `pytest -m slow`"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VISIONTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def paint(label: int, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """A picture whose class can be learned: noise with a bright bar, lying for class 0, standing for class 1."""
    picture = rng.integers(0, 100, (size, size, 3), dtype=np.uint8)
    at = int(rng.integers(4, size - 8))
    picture[at : at + 4] += 150 * (label == 0)
    picture[:, at : at + 4] += np.uint8(150 * (label == 1))
    return picture


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """`train/{lying,standing}` with 24 pictures each, `val` with 8 each; 32 pixels."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for label, name in enumerate(("lying", "standing")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(paint(label, rng)).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture
def recipes(pictures) -> dict[str, dict]:
    """A small recipe of each kind, as YAML would give it."""
    data = {"train": str(pictures / "train"), "image_size": 32, "batch_size": 16, "workers": 0}
    small = {"trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "log_every_n_steps": 1}, "epochs": 2}
    labelled = {**data, "val": str(pictures / "val"), "augment": {"flip": 0.5, "crop_scale": [0.7, 1]}}
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    swin = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    masked = {"task": "pretrain", "data": data, "optim": {"lr": 0.01}, **small}
    predictor = {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, "target_scale": 0.15, "momentum_start": 0.9}
    return {
        "simmim": masked
        | {"method": {"name": "simmim", "mask_size": 8}, "backbone": {"name": "swin_tiny_patch4_window7_224", "args": swin}},
        "spark": masked
        | {"method": {"name": "spark", "decoder_dim": 16}, "backbone": {"name": "resnet10t", "args": {"channels": [8, 8, 16, 16]}}}
        | {"data": data | {"image_size": 64}},
        "ijepa": masked | {"method": {"name": "ijepa", **predictor}, "backbone": VIT},
        "mae": {"task": "pretrain", "method": {"name": "mae", **decoder}, "backbone": VIT, "data": data, "optim": {"lr": 0.01}, **small},
        "simclr": {
            "task": "pretrain",
            "method": {"name": "simclr", "projector_hidden": 32, "projector_out": 16, "temperature": 0.5},
            "backbone": CONV,
            "data": data | {"augment": {"crop_scale": [0.5, 1], "jitter": 0.3, "grey": 0, "blur": 0.2}},
            "optim": {"name": "adamw", "lr": 0.003},
            **small,
        },
        **{name: joint_recipe(name, data, small, pictures.parent / "teacher") for name in JOINT if name != "simclr"},
        "classify": {"task": "classify", "backbone": CONV, "data": labelled, "optim": {"lr": 0.003}, **small},
    }


def joint_recipe(name: str, data: dict, small: dict, teacher: Path) -> dict:
    """A recipe of a joint-embedding method, on a transformer where it hides patches."""
    method = {"name": name, **JOINT[name]}
    if name == "distill":
        if not teacher.exists():
            import timm

            from visiontune.backbones import spec_of
            from visiontune.export import save_timm_folder

            model = timm.create_model("test_resnet", num_classes=0)
            save_timm_folder(model, teacher, spec_of(model), mean=[0.5] * 3, std=[0.5] * 3)
        method["teacher"] = str(teacher)
    views = {"crop_scale": [0.5, 1], "jitter": 0.3, "grey": 0, "blur": 0}
    if name in MULTI_CROP:
        views["local"] = {"views": 2, "image_size": 16}
    backbone = VIT if name in MULTI_CROP else CONV
    optim = {"name": "adamw", "lr": 0.003}
    return {"task": "pretrain", "method": method, "backbone": backbone, "data": data | {"augment": views}, "optim": optim, **small}


def losses_on_one_batch(module, images: torch.Tensor, lr: float = 3e-3) -> list[float]:
    """Six steps of a masked method on one batch and one mask; afterwards every trained parameter must have a gradient."""
    mask = module.mask(images)
    module.mask = lambda *_: mask
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(6):
        loss = module.training_step(images, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    return losses


def run_command(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`python -m WORDS ...` as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
