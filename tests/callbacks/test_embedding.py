import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from visiontune import SimCLR
from visiontune.callbacks.embedding import SIGNS, EmbeddingWatch

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
HEALTHY = {
    "embedding/rank": 30.0,
    "embedding/spread": 0.6,
    "train/spread": 0.9,
    "train/teacher_entropy": 0.4,
    "train/teacher_marginal": 0.8,
}


def clean(n=24):
    images = torch.randint(0, 255, (n, 3, 64, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    broken = {"images": [], "labels": torch.empty(0, dtype=torch.int64), "broken": [("a.png", "empty file")]}
    return [{"images": [part], "labels": torch.full((len(part),), -1)} for part in images.split(16)] + [broken]


class Steps(L.Callback):
    def __init__(self):
        self.losses, self.draws = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.draws.append((torch.rand(1).item(), np.random.rand(), random.random()))


def watch_of(said=None, drawn=None, epochs=3, batches=clean):
    return EmbeddingWatch(
        batches,
        None,
        epochs=epochs,
        say=(said if said is not None else []).append,
        draw=lambda z, pictures, folder: drawn.append((z, pictures)) if drawn is not None else None,
    )


def train(*callbacks, epochs=3):
    L.seed_everything(0)
    module = SimCLR("test_resnet", image_size=64, projector_hidden=8, projector_out=4, optimizer="adamw", lr=1e-3)
    views = torch.randn(8, 2, 3, 64, 64)
    steps = Steps()
    trainer = L.Trainer(max_epochs=epochs, callbacks=[*callbacks, steps], **QUIET)
    trainer.fit(
        module, torch.utils.data.DataLoader(views, batch_size=4, collate_fn=lambda b: [x.contiguous() for x in torch.stack(b, dim=1)])
    )
    return steps, module


def test_a_watched_training_is_bit_identical_to_one_that_is_not():
    plain, module = train()
    watched, same = train(watch_of())
    assert plain.losses == watched.losses
    assert plain.draws == watched.draws
    state = same.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_it_looks_at_the_start_and_about_ten_times_and_draws_at_the_end():
    looks, drawn = [], []

    def batches():
        looks.append(1)
        return clean()

    watch = watch_of(drawn=drawn, epochs=25, batches=batches)
    train(watch, epochs=25)
    assert len(looks) == 1 + 12 + 1
    assert watch.start.keys() == watch.latest.keys() == {"embedding/rank", "embedding/spread"}
    assert watch.start != watch.latest
    ((z, pictures),) = drawn
    assert z.shape == (24, 96)
    assert [tuple(p.shape) for p in pictures] == [(3, 48, 96)] * 24
    assert all(0 <= float(p.min()) <= float(p.max()) <= 1 for p in pictures)


def test_pictures_that_cannot_be_read_are_left_to_the_training_to_tell():
    watch = watch_of(batches=lambda: clean()[-1:])
    train(watch)
    assert watch.latest == {}


def test_numbers_that_are_not_finite_are_not_measured():
    watch = watch_of()
    trainer = L.Trainer(**QUIET)
    assert watch._measure(trainer, torch.full((4, 2), float("nan"))) == {}


def test_healthy_numbers_are_not_warned_of():
    said = []
    watch = watch_of(said)
    # a random convnet, then what contrast makes of it; a narrow transformer under MAE; measured
    for start, now in (((150.0, 0.98), (24.0, 0.6)), ((4.7, 0.256), (3.8, 0.378)), ((8.2, 0.144), (29.2, 0.352))):
        watch.start = dict(zip(("embedding/rank", "embedding/spread"), start, strict=True))
        for _ in range(3):
            watch.warn(HEALTHY | dict(zip(watch.start, now, strict=True)), "after epoch 1")
    watch.warn({}, "after epoch 2")
    assert said == []


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("embedding/rank", 5.0),
        ("embedding/spread", 0.01),
        ("train/spread", 0.004),
        ("train/teacher_entropy", 0.999),
        ("train/teacher_marginal", 0.01),
    ],
)
def test_each_sign_of_collapse_is_told_once_with_value_meaning_and_cure(metric, value):
    said = []
    watch = watch_of(said)
    watch.start = {"embedding/rank": 150.0, "embedding/spread": 0.98}
    needed = next(s.in_a_row for s in SIGNS if s.metric == metric)
    for epoch in range(needed):
        assert said == []
        watch.warn(HEALTHY | {metric: value}, f"after epoch {epoch}")
    (warning,) = said
    assert warning.startswith(f"warning: collapse: {metric} is {value:.3g} after epoch {needed - 1}")
    assert "start again with a" in warning
    assert ("at the start" in warning) == metric.startswith("embedding/")

    again = watch_of(said)
    again.load_state_dict(watch.state_dict())
    again.warn(HEALTHY | {metric: value}, "after epoch 9")
    assert len(said) == 1
    assert again.said == {metric: warning.removeprefix("warning: ")}


def test_one_high_entropy_between_low_ones_is_no_collapse():
    said = []
    watch = watch_of(said)
    for value in (0.99, 0.5, 0.99, 0.5):
        watch.warn({"train/teacher_entropy": value}, "")
    assert said == []


class Pulled(SimCLR):
    """Two views pulled together with nothing to keep pictures apart: it collapses."""

    def training_step(self, batch, batch_idx):
        z = nn.functional.normalize(self.represent(torch.cat(self.views(batch))), dim=1)
        loss = (z - z.mean(dim=0).detach()).square().sum(dim=1).mean()
        self.record(loss=loss)
        return loss


def test_a_method_that_collapses_is_told_of():
    said = []
    L.seed_everything(0)
    module = Pulled("vit_tiny_patch16_224", image_size=32, backbone_args={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
                    optimizer="adamw", lr=1e-2, warmup_steps=0)  # fmt: skip
    images = torch.randint(0, 255, (32, 3, 32, 32), dtype=torch.uint8)
    watch = watch_of(said, epochs=20, batches=lambda: [{"images": [images], "labels": torch.zeros(32)}])
    views = torch.utils.data.DataLoader(images, batch_size=16, collate_fn=lambda b: [torch.stack(b), torch.stack(b)])
    L.Trainer(max_epochs=20, log_every_n_steps=1, callbacks=[watch], **QUIET).fit(module, views)
    assert any("embedding/spread" in s for s in said), watch.latest
