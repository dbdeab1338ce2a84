"""No training step makes the host wait for its device, but for the matching of detectors, which says so."""

from importlib.util import find_spec
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from tests.conftest import CONV, VIT
from tests.pretrain.test_strangers import KINDS, build, trainer
from visiontune import Classifier, Detector
from visiontune.benchmark.waits import noted, waits
from visiontune.boxes import Boxes

CPU = torch.device("cpu")


class Waits(L.Callback):
    """Of everything between a batch's start and its end: training step, backward pass, clipping, optimiser, averages."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device, self.found = device, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.within = noted(self.device)
        self.inside = self.within.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.within.__exit__(None, None, None)
        self.found.append(self.inside)


def waits_of(module, data, tmp_path, **more) -> list[list[str]]:
    """Of each step of an epoch without a report."""
    watch = Waits()
    trainer(tmp_path, epochs=1, callbacks=[watch], log_every_n_steps=1000, **more).fit(module, data)
    return watch.found


def test_what_would_wait_is_found_with_its_line():
    x = torch.ones(4)
    assert waits(lambda: x[x > 0], CPU)[0].startswith("aten.index.Tensor at test_waits.py:")
    for wait in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: float(x[0]), lambda: bool((x > 0).any()), lambda: x.unique()):
        assert waits(wait, CPU)
    for fine in (lambda: x.masked_fill_(x > 2, 0.0), lambda: x.where(x > 0, 1.0), lambda: x.tril, lambda: x[torch.tensor([0])]):
        assert waits(fine, CPU) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_every_method_waits_for_nothing(tmp_path, kind):
    module, data = build(kind, "uint8")
    module.clip = 1.0
    assert waits_of(module, data, tmp_path, precision="bf16-mixed") == [[], []]


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.99, "erase": 0.5}, {"tune": "lora"}, {"tune": "head"}, {"layer_decay": 0.7}, {"optimizer": "lars"}, {"optimizer": "sgd"}],
    ids=lambda o: "-".join(o),
)
def test_nor_does_a_step_of_any_way_to_tune(tmp_path, options):
    module = Classifier(VIT["name"], num_classes=4, image_size=32, backbone_args=VIT["args"], **options)
    assert waits_of(module, build("classifier", "uint8")[1], tmp_path) == [[], []]


def detector(head: str) -> Detector:
    torch.manual_seed(0)
    args = {"queries": 20, "hidden": 32, "decoder_layers": 2, "denoising": 10} if head in ("dfine", "deimv2", "rtdetrv2") else {}
    return Detector(CONV["name"], num_classes=3, head=head, head_args=args, pyramid_width=32, image_size=64, backbone_args=CONV["args"])


# Of the matching alone: torchvision's of dense heads picks by mask, and transformers' asks how many boxes there are.
MATCHING = {"fcos": 18, "retinanet": 13, "faster_rcnn": 29, "dfine": 4, "deimv2": 4, "rtdetrv2": 4}


HEADS = ["fcos", "retinanet", "faster_rcnn", *(["dfine", "deimv2", "rtdetrv2"] if find_spec("transformers") else [])]


@pytest.mark.parametrize("head", HEADS)
def test_a_detector_waits_for_its_matching_alone(tmp_path, head):
    boxes = [Boxes(torch.tensor([[4.0, 6, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, 1])), Boxes.none()]
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = DataLoader([(images, boxes)] * 2, batch_size=None, collate_fn=lambda batch: batch)
    for step in waits_of(detector(head), data, tmp_path):
        # what is wrong with boxes is looked for while they are on the CPU, which is all that there is here
        ours = [wait for wait in step if "targets.py" not in wait]
        assert len(ours) <= MATCHING[head], ours


# ---------------------------------------------------------------- on a device that is not there


class Copies(TorchDispatchMode):
    """Collects what is copied from the host to the device or back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, out) if isinstance(a, torch.Tensor) and (a.ndim or func is torch.ops.aten._to_copy.default)]
        if len({t.device.type for t in tensors}) > 1:
            self.found.append(str(func))
        return out


def pretended(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def moved(module: nn.Module) -> nn.Module:
    """Its parameters and buffers on a pretended CUDA device: shapes without values."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(pretended(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = pretended(buffer)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_copied_to_a_device_during_a_step_and_no_value_asked_of_it(kind, monkeypatch):
    module, data = build(kind, "uint8")
    if kind == "lejepa":  # a generator of a device needs that device
        monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    batch = next(iter(data))
    with FakeTensorMode(), Copies() as copies:
        batch = [pretended(x) for x in batch] if isinstance(batch, list) else pretended(batch)
        if kind == "distill":
            moved(module.guide)
        loss = moved(module).train().training_step(batch, 0)  # reading a value, or counting what a mask picks, raises
        assert loss.device.type == "cuda"
    assert copies.found == []


def test_a_copy_would_be_noticed():
    with FakeTensorMode(), Copies() as copies:
        torch.tensor([1.0, 2.0], device="cuda")
        torch.ones(3, device="cuda") + torch.arange(3).to("cuda")
    assert len(copies.found) == 2
