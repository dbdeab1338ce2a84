"""What a GPU does otherwise. The same bodies run on the CPU where it can do the same, so that they are tried where there is no GPU."""

import csv
import json
import signal

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import run_command
from tests.pretrain.test_strangers import KINDS, build
from tests.test_compile import Counting
from tests.test_fit import killed, losses, write
from tests.test_waits import HEADS, detector
from visiontune import Classifier
from visiontune.benchmark.waits import noted
from visiontune.boxes import Boxes
from visiontune.build import compile_blocks
from visiontune.fit import main

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", CUDA]
# Lightning makes bf16 of fp16 on a CPU.
PRECISIONS = [("cpu", "bf16-mixed"), *(pytest.param("cuda", p, marks=pytest.mark.gpu) for p in ("bf16-mixed", "16-mixed"))]


class Steps(L.Callback):
    """Losses, and after the first two steps, which set things up, what waits for the device."""

    def __init__(self, device: str) -> None:
        self.device, self.losses, self.waits = torch.device(device), [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.within = noted(self.device)
        self.found = self.within.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.within.__exit__(None, None, None)
        self.losses.append(outputs["loss"].detach().float())
        self.waits.append(self.found)


def trained(module, data, device: str, precision: str, tmp_path, epochs: int = 2) -> Steps:
    steps = Steps(device)
    trainer = L.Trainer(
        max_epochs=epochs, precision=precision, accelerator=device, devices=1, logger=False, callbacks=[steps], log_every_n_steps=1000,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    return steps


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
@pytest.mark.parametrize("kind", ["mae", *(pytest.param(k, marks=pytest.mark.gpu) for k in KINDS if k != "mae")])
def test_no_step_waits_for_the_device(tmp_path, kind, device, precision):
    torch.manual_seed(0)
    module, data = build(kind, "uint8")
    module.clip = 1.0 if precision == "bf16-mixed" else None  # clipped in fp16, torch's scaler asks what it found
    module.optimizer_name = "adamw"
    assert trained(module, data, device, precision, tmp_path).waits[2:] == [[], []]


def things() -> DataLoader:
    boxes = [Boxes(torch.tensor([[4.0, 6, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, 1])), Boxes.none()]
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return DataLoader([(images, boxes)] * 2, batch_size=None, collate_fn=lambda batch: batch)


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
@pytest.mark.parametrize("head", ["fcos", *(pytest.param(h, marks=pytest.mark.gpu) for h in HEADS if h != "fcos")])
def test_a_detector_begins_with_the_loss_of_fp32_and_stays_finite(tmp_path, head, device, precision):
    found = {}
    for each in (precision, "32-true"):
        module = detector(head)
        torch.manual_seed(0)
        found[each] = torch.stack(trained(module, things(), device, each, tmp_path).losses)
    assert found[precision].isfinite().all()
    # samples and noised boxes are drawn, and matches of a network that knows nothing turn on digits that are rounded
    assert found[precision][0].item() == pytest.approx(found["32-true"][0].item(), rel=0.05 if head == "fcos" else 0.2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_convnet_trains_compiled_channels_last_and_fused(tmp_path, device):
    first = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Classifier("resnet10t", num_classes=2, image_size=32, backbone_args={"channels": [8, 8, 16, 16]}, lr=1e-3)
        if compiled:
            assert compile_blocks(module.backbone, Counting() if device == "cpu" else "inductor") == 4
        x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        data = DataLoader(TensorDataset(x, torch.arange(16) % 2), batch_size=8)
        losses = torch.stack(trained(module, data, device, "bf16-mixed", tmp_path).losses)
        assert losses.isfinite().all()
        first[compiled] = losses[0].item()
        assert module.trainer.optimizers[0].defaults["fused"]
        convolutions = [m for m in module.backbone.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
        assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    assert first[True] == pytest.approx(first[False], rel=0.02)


def on(device: str) -> list[str]:
    return [f"trainer.accelerator={device}", "trainer.devices=1"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_was_killed_goes_on_with_the_numbers_of_the_unbroken_one_and_tells_its_memory(tmp_path, recipes, device):
    recipe = recipes["mae"] | {"epochs": 2}
    path = write(tmp_path / "r.yaml", recipe)
    assert main([path, *on(device), "--out", str(tmp_path / "whole")]) == 0
    assert killed(4, [path, *on(device), "--out", str(tmp_path / "broken")]).returncode == -signal.SIGKILL
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    assert losses(tmp_path / "broken") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6 if device == "cpu" else 1e-2)
    result = json.loads((tmp_path / "broken/result.json").read_text())
    assert result["peak_memory_bytes"] > 4 * result["parameters"]  # weights at least
    if device == "cuda":
        assert result["peak_memory_bytes"] < torch.cuda.get_device_properties(0).total_memory


@pytest.mark.gpu
def test_backbones_are_benchmarked_on_it(tmp_path):
    done = run_command(
        "visiontune", "benchmark", "sample:digits/train", "--val", "sample:digits/test", "--backbones", "test_resnet", "test_vit",
        "--weights", "random", "--probe", "knn", "--device", "cuda", "--seconds", "0.1", "--out", str(tmp_path / "which"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "which/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 2
    assert all(float(row["images_per_second"]) > 0 and float(row["peak_memory_bytes"]) > 0 for row in rows)
