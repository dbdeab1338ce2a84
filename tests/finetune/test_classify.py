import re
from typing import ClassVar

import lightning as L
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from torch.utils.data import DataLoader, TensorDataset

from visiontune import Classifier
from visiontune.errors import UserError
from visiontune.finetune import average


def classifier(**more):
    return Classifier("test_resnet", num_classes=4, **more)


def test_head_alone_is_trained_and_the_backbone_stays_bit_identical():
    module = classifier(tune="head").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    images, labels = torch.randint(0, 255, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 4
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    module.training_step([images, labels], 0).backward()
    optimizer.step()
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}


def test_full_trains_everything():
    module = classifier()
    module.training_step([torch.randn(4, 3, 32, 32), torch.arange(4)], 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_loss_is_cross_entropy_with_label_smoothing():
    module = classifier(label_smoothing=0.2).eval()
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0])
    expected = F.cross_entropy(module(images), labels, label_smoothing=0.2)
    assert module.training_step([images, labels], 0).item() == pytest.approx(expected.item())


def test_a_new_classifier_starts_from_about_equal_scores():
    scores = classifier().eval()(torch.randn(8, 3, 32, 32)).softmax(dim=1)
    assert (scores - 0.25).abs().max() < 0.1


@pytest.mark.parametrize(("classes", "told"), [(1000, True), (4, False)])
def test_timms_classifier_is_left_out_and_where_it_would_fit_that_is_told(monkeypatch, classes, told):
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: made(name, **more))  # without fetching
    notes = Classifier("test_resnet", num_classes=classes, weights="timm").notes
    assert any(n.startswith("classifier: new; timm's has 1,000 classes, too, but nothing says that they are these") for n in notes) == told
    assert Classifier("test_resnet", num_classes=classes).notes == []


def test_accuracy_counts_every_picture_once_whatever_the_batches():
    module = classifier().eval()
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10) % 4
    for part in (slice(0, 7), slice(7, 10), slice(10, 10)):
        module.validation_step([images[part], labels[part]], 0)
    expected = (module(images).argmax(dim=1) == labels).float().mean()
    assert module.metrics.compute()["val/top1"].item() == pytest.approx(expected.item())


def test_an_unknown_way_to_tune_is_refused():
    with pytest.raises(UserError, match="tune: got 'some'; allowed: full, head"):
        classifier(tune="some")


def test_both_heads_of_a_distilled_model_are_trained_and_a_fitting_classifier_of_ones_own_stays():
    import timm

    module = Classifier("deit_tiny_distilled_patch16_224", num_classes=3, image_size=32, tune="head")
    trained = {n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad}
    assert trained == {"head", "head_dist"}
    own = timm.create_model("test_resnet", num_classes=4)
    before = own.get_classifier().weight.clone()
    assert torch.equal(Classifier(own, num_classes=4).backbone.get_classifier().weight, before)


SMALL = {
    "vit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "resnet10t": {"channels": [8, 8, 16, 16]},
    "swin_tiny_patch4_window7_224": {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
}


def small(name="resnet10t", **more):
    return Classifier(name, num_classes=3, image_size=32, backbone_args=SMALL[name], **more)


class Seen(L.Callback):
    """What a step leaves behind: which gradients there are, and whether batch norms moved."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, *rest):
        self.before = {k: v.clone() for k, v in module.backbone.state_dict().items()}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {n for n, p in module.backbone.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, module, *rest):
        changed = {k for k, v in module.backbone.state_dict().items() if not torch.equal(v, self.before[k])}
        self.steps.append((self.gradients, changed, len(trainer.optimizers[0].state)))


def fit(module, batches=6, watch=(), targets=None, size=8, **trainer):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (batches * size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(batches * size) % 3 if targets is None else targets
    loader = DataLoader(TensorDataset(images, labels), batch_size=size)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    L.Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=list(watch), **quiet, **trainer).fit(module, loader)


def test_the_head_is_trained_alone_for_its_share_of_the_steps_then_everything():
    module, seen = small(tune="head_then_full", head_share=0.5), Seen()
    fit(module, watch=[seen])
    head = {"fc.weight", "fc.bias"}
    everything = {n for n, _ in module.backbone.named_parameters()}
    statistics = {n for n, _ in module.backbone.named_buffers()}
    for gradients, changed, states in seen.steps[:3]:
        assert gradients == changed == head  # no gradient, decay or statistics of the rest
        assert states == 2
    for gradients, changed, states in seen.steps[3:]:
        assert gradients == everything
        assert statistics <= changed
        assert states == len(everything)


def test_the_backbone_that_joins_warms_up_from_there():
    module = small(tune="head_then_full", head_share=0.5, total_steps=100, warmup_steps=10, lr=1.0)
    module.configure_optimizers = Classifier.configure_optimizers.__get__(module)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    module._trainer = trainer
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    groups = schedule.optimizer.param_groups
    assert {g["late"] for g in groups} == {True, False}
    rates = {late: [f(s) for s in range(100)] for f, late in zip(schedule.lr_lambdas, (g["late"] for g in groups), strict=True)}
    assert rates[False].index(max(rates[False])) == 9
    assert 50 < rates[True].index(max(rates[True])) < 56
    assert rates[True][50] < 0.3


@pytest.mark.parametrize("name", SMALL)
def test_losses_fall_with_everything_on(name):
    torch.manual_seed(0)
    options = {"mixup": 0.1, "cutmix": 0.1, "erase": 0.1, "label_smoothing": 0.1, "ema": 0.9, "layer_decay": 0.8, "clip": 1.0}
    module = small(name, lr=3e-3, **options).train()
    images, labels = torch.randint(0, 255, (12, 3, 32, 32), dtype=torch.uint8), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    start = F.cross_entropy(module.eval()(images), labels).item()
    for _ in range(25):
        optimizer.zero_grad()
        module.train().training_step([images, labels], 0).backward()
        optimizer.step()
        average.follow(module.average, module.backbone, 0.5)
    assert F.cross_entropy(module.eval()(images), labels).item() < 0.8 * start


@pytest.mark.parametrize("name", SMALL)
def test_under_autocast_the_loss_is_near_that_of_fp32(name):
    module = small(name, label_smoothing=0.1).eval()
    module.train(name != "resnet10t")  # batch norms of eight pictures are not near each other in any precision
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    exact = module.training_step([images, labels], 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = module.training_step([images, labels], 0)
    assert near.dtype == torch.float32
    assert near.item() == pytest.approx(exact.item(), rel=0.02)


def test_gradients_are_clipped_with_a_fused_optimiser_under_bf16():
    class Norms(L.Callback):
        found: ClassVar[list[float]] = []

        def on_before_zero_grad(self, trainer, module, optimizer):
            norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
            if norms:
                self.found.append(torch.stack(norms).norm().item())
                assert optimizer.defaults["fused"]

    module = small(clip=1e-3)
    fit(module, watch=[Norms()], precision="bf16-mixed")
    assert len(Norms.found) >= 5
    assert Norms.found == pytest.approx([1e-3] * len(Norms.found), rel=1e-3)


def test_several_labels_a_picture():
    module = small(labels="multi", mixup=0.5, label_smoothing=0.1, ema=0.9)
    targets = (torch.rand(48, 3) > 0.5).float()
    fit(module, targets=targets)
    images = torch.randn(10, 3, 32, 32)
    module.eval().validation_step([images, targets[:10]], 0)
    module.validation_step([images[:0], targets[:0]], 0)
    assert set(module.metrics.compute()) == {f"val/{n}" for n in ("macro_ap", "micro_f1", "macro_f1", "auroc", "exact")}
    expected = F.binary_cross_entropy_with_logits(module(images), targets[:10])
    assert module.val_loss.compute().item() == pytest.approx(expected.item())
    assert module.monitors[0] == "macro_ap"
    assert "loss" in module.monitors


def test_mixed_and_smoothed_targets_of_several_labels_are_those_of_timm():
    """A share of one picture's labels and the rest of the other's, each smoothed towards a half."""
    module = small("vit_tiny_patch16_224", labels="multi", label_smoothing=0.2)
    logits, targets = torch.randn(4, 3), (torch.rand(4, 3) > 0.5).float()
    mixed = mixup_target(targets, 3, lam=0.3, smoothing=0.2, multi_label=True)
    ours = torch.lerp(targets.flip(0), targets, 0.3)
    assert module.loss(logits, ours).item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, mixed).item())


def test_rare_classes_count_as_much_where_weights_are_asked_for():
    counts = [60, 30, 10]
    module = small(class_weights="balanced", class_counts=counts)
    plain, logits, labels = small(), torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = (each * torch.tensor([100 / 3 / n for n in counts])[labels]).mean()
    assert module.loss(logits, labels).item() == pytest.approx(expected.item())
    assert plain.loss(logits, labels).item() == pytest.approx(each.mean().item())
    adjusted = small(logit_adjustment=2.0, class_counts=counts)
    shifted = logits + 2 * torch.tensor([0.6, 0.3, 0.1]).log()
    assert adjusted.loss(logits, labels).item() == pytest.approx(F.cross_entropy(shifted, labels).item(), rel=1e-5)
    assert torch.equal(adjusted.eval()(torch.zeros(1, 3, 32, 32)), adjusted.backbone(torch.zeros(1, 3, 32, 32)))  # in training alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_weights": "balanced"}, "head.class_weights: needs class_counts, the number of training pictures of each of the 3 classes"),
        ({"logit_adjustment": 1.0, "class_counts": [1, 2, 3], "labels": "multi"}, "for several take head.class_weights=balanced"),
        ({"logit_adjustment": 1.0, "class_counts": [1, 0, 3]}, "class '1' has no training picture"),
        (
            {"labels": "multi", "class_weights": "balanced", "class_counts": [4, 1, 2], "pictures": 4},
            "every training picture has class '0'",
        ),
        ({"class_weights": "balanced", "class_counts": [1, 2, 3], "labels": "multi"}, "needs pictures, the number of training pictures"),
        ({"class_weights": "some"}, "class_weights: got 'some'; expected one of 'none', 'balanced'"),
        ({"ema": 1.5}, "ema: got 1.5; expected a number below 1"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        small(**options)


def test_a_checkpoint_of_a_trainer_of_ones_own_brings_everything_back(tmp_path):
    options = {"tune": "lora", "ema": 0.9, "class_weights": "balanced", "class_counts": [3, 4, 5], "class_names": list("abc")}
    module = small("vit_tiny_patch16_224", lora_rank=2, **options)
    fit(module)
    module.trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "c.ckpt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), module.eval()(images))
    assert again.class_names == ("a", "b", "c")
    assert torch.equal(again.class_weights, module.class_weights)


def test_nothing_is_trained_after_release():
    module = small()
    module.release()
    with pytest.raises(UserError, match="release"):
        module.training_step([torch.randn(2, 3, 32, 32), torch.tensor([0, 1])], 0)


def test_an_average_refuses_a_precision_in_which_it_would_stand_still():
    with pytest.raises(UserError, match=r"the average of the weights \(head.ema\) follows"):
        fit(small(ema=0.9), precision="bf16-true")


def test_frozen_batch_norms_keep_their_statistics_from_the_first_step(tmp_path):
    module = Classifier("test_resnet", num_classes=2, image_size=32, freeze_batch_norms=True)
    before = {k: v.clone() for k, v in module.backbone.state_dict().items() if "running" in k}
    data = DataLoader(TensorDataset(torch.randint(0, 255, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, data)
    assert before
    assert all(torch.equal(module.backbone.state_dict()[k], v) for k, v in before.items())
