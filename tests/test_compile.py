"""Blocks are compiled one by one, each at most once for a kind of batch, and never again after the first epoch."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import VIT, make_joint
from visiontune import MAE, Classifier, backbones
from visiontune.build import compile_blocks


class Counting:
    """A backend that runs what it is given as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


class Watch(L.Callback):
    def __init__(self, backend: Counting) -> None:
        self.backend, self.by_step = backend, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.by_step.append(self.backend.graphs)


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def module_of(kind: str):
    if kind == "classifier":
        resnet = {"channels": [8, 8, 16, 16]}
        return Classifier("resnet10t", num_classes=2, image_size=32, backbone_args=resnet, ema=0.9)
    if kind == "mae":
        decoder = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
        return MAE(VIT["name"], image_size=32, backbone_args=VIT["args"], **decoder)
    return make_joint("dino", VIT["name"], image_size=32, backbone_args=VIT["args"])


@pytest.mark.parametrize("kind", ["classifier", "mae", "dino"])
def test_nothing_is_compiled_again_after_the_first_epoch(tmp_path, kind):
    torch.manual_seed(0)
    module, backend = module_of(kind), Counting()
    for encoder in module.encoders:
        compile_blocks(encoder, backend)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    views = [x] if kind == "mae" else [x, x, x[:, :, ::2, ::2]] if kind == "dino" else [x, y]
    data = DataLoader(TensorDataset(*views), batch_size=4)
    val = DataLoader(TensorDataset(x[:6], y[:6]), batch_size=4)  # its last batch is smaller
    watch = Watch(backend)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, callbacks=[watch], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data, val if kind == "classifier" else None)
    first, later = watch.by_step[:4], watch.by_step[4:]
    assert backend.graphs > 0
    assert first[1:] == [first[1]] * 3  # nothing from the second step on
    assert set(later) == {later[0]}
    assert later[0] == first[-1] or kind == "classifier"  # what is validated


def test_no_block_is_left_uncompiled_however_many_kinds_there_are():
    """By default torch compiles eight programs of the code that all modules share, and runs the ninth as it is."""
    network, backend = backbones.create("resnet10t", image_size=64, args={"channels": [8, 8, 16, 24]}), Counting()
    blocks = compile_blocks(network, backend)
    assert blocks == 4
    for _ in range(2):
        for mode in (True, False):
            for size in (64, 32):
                network.train(mode)(torch.randn(2, 3, size, size))
        assert backend.graphs == 4 * blocks
