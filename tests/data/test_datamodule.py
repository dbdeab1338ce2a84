"""The pictures of a run in a Trainer that is not ours."""

import json
import os
import subprocess
import sys

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from tests.conftest import ROOT
from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.folder import list_pictures
from visiontune.data.order import TrainOrder
from visiontune.data.views import CenterCrop


class Recorder(L.LightningModule):
    """A stranger's module, which asks how many steps there will be before anything is restored."""

    def __init__(self, ask):
        super().__init__()
        self.ask, self.seen, self.weight = ask, {}, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        self.seen[self.trainer.global_step] = batch[0][:, 0, 0, 0].tolist()
        return self.weight.sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if not self.ask:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        assert steps == 3 * 6
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)]


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strangers_run_goes_on_where_its_checkpoint_was(tmp_path, ask, workers):
    (tmp_path / "photos").mkdir()
    for i in range(50):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "photos" / f"{i:02d}.png")
    table = list_pictures(tmp_path / "photos")

    def run(name, checkpoint=None, workers=0):
        keep = ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=3, callbacks=[keep], **quiet)
        data = PictureData(table, CenterCrop((8, 8)), batch_size=8, workers=workers, seed=5, broken=Broken(None, limit=1, total=len(table)))
        module = Recorder(ask)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return module.seen

    whole = run("whole")
    assert sorted(whole) == list(range(18))
    for step in (2, 6, 9):
        rest = run(f"rest{step}", str(tmp_path / "whole" / f"step={step}.ckpt"), workers)
        assert rest == {s: pictures for s, pictures in whole.items() if s >= step}


SCRIPT = """
import json, sys
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.data.test_datamodule import Recorder
from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.folder import list_pictures
from visiontune.data.views import CenterCrop

if __name__ == "__main__":
    folder, name, devices, workers, steps, checkpoint = sys.argv[1:]
    table = list_pictures(folder + "/photos")
    data = PictureData(
        table, CenterCrop((8, 8)), batch_size=8, workers=int(workers), seed=5, broken=Broken(None, limit=1, total=len(table))
    )
    keep = ModelCheckpoint(folder + "/" + name, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = L.Trainer(
        accelerator="cpu", devices=int(devices), strategy="ddp" if devices == "2" else "auto", max_epochs=3, max_steps=int(steps),
        callbacks=[keep], logger=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )
    module = Recorder(False)
    trainer.fit(module, data, ckpt_path=checkpoint or None)
    with open(f"{folder}/{name}.{trainer.global_rank}.json", "w") as file:
        json.dump(module.seen, file)
"""


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes_and_workers(tmp_path, first, then):
    (tmp_path / "photos").mkdir()
    for i in range(50):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "photos" / f"{i:02d}.png")
    (tmp_path / "run.py").write_text(SCRIPT)

    def run(name, devices, workers, steps, checkpoint=""):
        words = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), name, str(devices), str(workers), str(steps), str(checkpoint)]
        done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        seen: dict[str, list[int]] = {}
        for rank in range(devices):
            for step, pictures in json.loads((tmp_path / f"{name}.{rank}.json").read_text()).items():
                seen.setdefault(step, []).extend(pictures)
        return seen

    begun = run("begun", first, 1, 8)
    rest = run("rest", then, 0 if then == 2 else 2, -1, tmp_path / "begun" / "step=8.ckpt")
    assert sorted(map(int, begun)) == list(range(8))
    assert sorted(map(int, rest)) == list(range(8, 18))
    order = [step for epoch in range(3) for step in TrainOrder(50, 8, 5, lambda e=epoch: 6 * e)]
    assert [sorted((begun | rest)[str(s)]) for s in range(18)] == [sorted(i for i, _ in batch) for batch in order]
