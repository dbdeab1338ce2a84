"""The pictures of a run in a Trainer that is not ours."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.folder import list_pictures
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
