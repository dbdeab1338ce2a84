"""A step whose fp16 gradients are not finite leaves weights, averages of them and schedules alone, and a resumed run knows of it."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import make_joint
from visiontune import Classifier, optim

STEPS = 6


class Overflowing(torch.amp.GradScaler):
    """torch's own, which finds what is not finite in the steps that it is told: there the loss is scaled beyond all numbers."""

    def __init__(self, at: set[int], device: str) -> None:
        super().__init__(device, init_scale=8.0)
        self.at, self.steps = at, 0

    def scale(self, outputs):
        scaled = super().scale(outputs)
        self.steps += 1
        return scaled * float("inf") if self.steps - 1 in self.at else scaled


class Watch(L.Callback):
    """After each step: the learning rate of the next, and copies of what is trained and of what follows it."""

    def __init__(self, average) -> None:
        self.average = average
        self.rates, self.trained, self.followed, self.steps, self.decays = [], [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.steps.append(pl_module.step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(flat(pl_module.backbone))
        self.followed.append(flat(self.average(pl_module)))
        self.decays.append(trainer.optimizers[0].param_groups[0]["weight_decay"])


def flat(network):
    return torch.cat([p.detach().flatten().cpu() for p in network.parameters()])


def module_of(kind: str, **more):
    torch.manual_seed(0)
    if kind == "average":
        return Classifier("test_resnet", num_classes=2, ema=0.9, lr=0.01, total_steps=STEPS, warmup_steps=1, **more)
    return make_joint("byol", "test_vit", image_size=32, optimizer="adamw", lr=0.01, total_steps=STEPS, warmup_steps=1, **more)


AVERAGES = {"average": lambda m: m.average, "teacher": lambda m: m.teacher.backbone}


def trained(kind, tmp_path, at=(), *, steps=STEPS, resume=None, before=0, device="cpu", **more):
    """A module after `steps` steps under a scaler that overflows in those `at`, and what was seen of it."""
    module = module_of(kind, **more)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 2
    data = DataLoader(TensorDataset(*((x, y) if kind == "average" else (x, x.flip(3)))), batch_size=8)
    watch = Watch(AVERAGES[kind])
    scaler = Overflowing({step - before for step in at}, device)
    precision = MixedPrecision("16-mixed", device, scaler=scaler)
    precision.autocast_context_manager = lambda: torch.autocast(device, enabled=False)  # the scaler is what is tried here
    trainer = L.Trainer(
        max_epochs=steps, accelerator=device, devices=1, plugins=[precision], callbacks=[watch], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume)
    return trainer, module, watch


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("more", [{}, {"clip": 1.0}], ids=["fused", "clipped"])
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_averages_do_not_move_and_schedules_stand_still_once_for_each(tmp_path, device, kind, more):
    _, module, watch = trained(kind, tmp_path, at=(0, 3), device=device, **more)
    start = module_of(kind, **more)
    weights = [flat(start.backbone), *watch.trained]
    followed = [flat(AVERAGES[kind](start)), *watch.followed]
    for step in range(STEPS):
        left_out = step in (0, 3)
        assert torch.equal(weights[step], weights[step + 1]) == left_out
        assert torch.equal(followed[step], followed[step + 1]) == left_out
    factor = optim.cosine_with_warmup(STEPS, 1)
    # a step is known to be left out when the next one has been made
    assert watch.steps == [0, 1, 1, 2, 3, 3]
    assert watch.rates == pytest.approx([0.01 * factor(step) for step in watch.steps])
    assert module.skipped.count == 2


def test_the_average_of_taken_steps_is_that_without_a_scaler():
    network, taken, plain = (torch.nn.Linear(3, 3) for _ in range(3))
    plain.load_state_dict(taken.state_dict())
    optim.ema_update(taken, network, 0.9, torch.tensor(1.0))
    optim.ema_update(plain, network, 0.9)
    assert torch.allclose(taken.weight, plain.weight, atol=1e-7)
    optim.ema_update(taken, network, 0.9, torch.tensor(0.0))
    assert torch.allclose(taken.weight, plain.weight, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_weight_decay_follows_the_steps_that_were_made(tmp_path):
    _, _, watch = trained("average", tmp_path, at=(1,), weight_decay=0.1, weight_decay_end=0.5)
    assert watch.decays == pytest.approx([optim.cosine(step, STEPS, 0.1, 0.5) for step in (0, 1, 2, 2, 3, 4)])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("saved", [3, 4])
def test_a_resumed_run_goes_on_as_the_unbroken_one(tmp_path, saved):
    """Also where the step before the checkpoint was left out, of which the schedules have not heard yet."""
    at = (0, 2)
    whole = trained("average", tmp_path, at)[2]
    trainer, *_ = trained("average", tmp_path, at, steps=saved)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    _, module, rest = trained("average", tmp_path, at, resume=tmp_path / "c.ckpt", before=saved)
    assert rest.rates == whole.rates[saved:]
    assert rest.steps == whole.steps[saved:]
    assert all(torch.equal(a, b) for a, b in zip(rest.followed, whole.followed[saved:], strict=True))
    assert module.skipped.count == 2


def test_another_training_begins_without_the_steps_of_the_one_before(tmp_path):
    trainer, module, _ = trained("average", tmp_path, at=(0, 1), steps=3)
    module.setup("fit")  # the same trainer's second fit goes on counting
    assert module.skipped.count == 2
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.reset()
    assert trainer.global_step == 0
    module.setup("fit")
    assert (module.skipped.count, module.taken, module.step) == (0, None, 0)


def test_weights_of_a_checkpoint_begin_anew_without_its_steps(tmp_path):
    trainer, module, _ = trained("average", tmp_path, at=(0, 1), steps=3)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert module.skipped.count == 2
    assert Classifier.load_from_checkpoint(tmp_path / "c.ckpt").skipped.count == 0
