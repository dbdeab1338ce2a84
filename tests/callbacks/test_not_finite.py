"""What a run says of numbers that are none."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from visiontune.callbacks.checkpoints import Checkpoints
from visiontune.callbacks.probe import Probe


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_a_probe_of_embeddings_that_are_not_finite_has_no_score(value):
    said, logged = [], []

    class Module(torch.nn.Module):
        device = torch.device("cpu")

        def represent(self, images):
            return images * torch.tensor([1.0, value])

    def batches():
        yield {"images": [torch.randn(8, 2) + torch.arange(8)[:, None] % 2], "labels": torch.arange(8) % 2}

    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    logger = SimpleNamespace(log_metrics=lambda scores, step: logged.append(scores))
    trainer = SimpleNamespace(precision_plugin=plugin, loggers=[logger], current_epoch=1, global_step=4)
    probe = Probe(batches, batches, every=1, epochs=2, seed=0, say=said.append)
    probe.on_train_epoch_end(trainer, Module())
    if value == 1.0:
        assert set(probe.latest) == {"knn_top1", "probe_top1"} <= logged[0].keys()
    else:
        assert said == ["warning: probe after epoch 2: the embeddings are not finite, so there is no score"]
        assert (probe.latest, logged) == ({}, [])


def test_a_validation_that_gives_no_number_is_told_and_never_the_best(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, steps_per_epoch=5, minutes=15, monitor="val/top1", pictures="", say=said.append)
    checkpoints._save = lambda *_: None
    trainer = SimpleNamespace(global_step=10, max_epochs=9)
    for value in (0.5, float("nan")):
        trainer.callback_metrics = {"val/top1": torch.tensor(value)}
        checkpoints.on_train_epoch_end(trainer, None)
    assert said == ["warning: val/top1 after epoch 2 is not a number (scores are not finite, or there is nothing to count)"]
    assert checkpoints.best == 0.5
