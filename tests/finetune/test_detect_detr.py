"""The DETR family on backbones of timm: what differs there from dense heads."""

import lightning as L
import pytest
import timm
import torch
from torch.utils.data import DataLoader

import visiontune
from tests.finetune.test_detect import FAMILIES, QUIET, Things, batch, loader
from visiontune import Detector
from visiontune.errors import UserError
from visiontune.export import save_detector_folder
from visiontune.heads.pyramid import OwnMaps, SimplePyramid

SMALL = {"hidden": 32, "decoder_layers": 2, "queries": 20, "denoising": 10}
HEADS = ("dfine", "deimv2", "rtdetrv2")


def detector(name="resnet10t", head="dfine", head_args=None, **more) -> Detector:
    torch.manual_seed(0)
    given = {"num_classes": 2, "image_size": 64, "backbone_args": FAMILIES[name], "pyramid_width": 32, "freeze_batch_norms": False}
    return Detector(name, head=head, head_args=SMALL | (head_args or {}), **given | more)


def trainer(path, **more):
    return L.Trainer(default_root_dir=path, **QUIET | {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False} | more)


@pytest.mark.parametrize(("name", "head"), [*((n, "dfine") for n in FAMILIES), ("resnet10t", "deimv2"), ("resnet10t", "rtdetrv2")])
def test_the_loss_of_one_batch_falls_in_five_steps(name, head):
    module, losses = detector(name, head).train(), []
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(6):
        torch.manual_seed(0)  # the noised boxes
        loss = module.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_convnets_and_swin_give_their_own_maps_and_a_plain_vit_a_simple_pyramid():
    widths = {"resnet10t": (8, 16, 16), "swin_tiny_patch4_window7_224": (16, 32, 64)}
    for name, expected in widths.items():
        module = detector(name)
        assert isinstance(module.pyramid, OwnMaps)
        assert module.pyramid.widths == expected
        assert [m.shape[1] for m in module.features(batch()[0])] == list(expected)
    module = detector("vit_tiny_patch16_224")
    assert isinstance(module.pyramid, SimplePyramid)


@pytest.mark.parametrize("head", HEADS)
def test_the_backbones_modules_stay_timms_with_their_activations(head):
    """transformers replaces batch norms of its backbones by others, which in timm's efficientnets and regnets drop the activation."""
    name = "tf_efficientnet_lite0"
    own = timm.create_model(name, num_classes=0)
    before = [type(m) for m in own.modules()]
    assert timm.layers.BatchNormAct2d in before
    module = Detector(own, num_classes=2, image_size=64, head=head, head_args=SMALL)
    assert [type(m) for m in module.backbone.modules()] == before
    fresh = timm.create_model(name, num_classes=0)
    fresh.load_state_dict(own.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(module.backbone.eval().forward_features(images), fresh.eval().forward_features(images), rtol=1e-3, atol=1e-3)
    assert not any("timm" in type(m).__module__ for m in module.head.modules())


@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_gives_the_same_boxes(tmp_path, head):
    module = detector(head=head, ema=0.9, score_threshold=0.0)
    assert module.clip == 0.1
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    assert {"train/loss_classes", "train/loss_boxes", "train/loss_overlaps", "train/loss_denoising"} <= set(fit.callback_metrics)
    fit.save_checkpoint(tmp_path / "c.ckpt")
    again = Detector.load_from_checkpoint(tmp_path / "c.ckpt")
    for a, b in zip(module.predict(batch()[0]), again.predict(batch()[0]), strict=True):
        assert len(a) > 5
        assert torch.equal(a.xyxy, b.xyxy)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_trains(tmp_path, precision):
    module = detector()
    trainer(tmp_path, precision=precision).fit(module, loader())
    assert all(p.isfinite().all() for p in module.parameters())
    assert all(b.xyxy.dtype == torch.float32 for b in module.predict(batch()[0]))


class Empty(Things):
    def __getitem__(self, i):
        return super().__getitem__(i)[0], {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def test_pictures_without_any_box_and_of_changing_sizes_train(tmp_path):
    module = detector(score_threshold=0.0)
    data = DataLoader(Empty(), batch_size=4, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)))
    trainer(tmp_path).fit(module, data)
    for size in (64, 96, 80):
        images, targets = batch(size)
        images = images[..., : size - 8]
        sum(module.train().head.loss(module.features(images), targets, tuple(images.shape[-2:])).values()).backward()
        found, _ = module.predict(images)
        assert (found.xyxy <= torch.tensor([size - 8, size, size - 8, size])).all()


def test_the_head_learns_faster_than_the_backbone_and_what_has_one_dimension_does_not_decay(tmp_path):
    module = detector(lr=1e-3, warmup_steps=0, weight_decay=1e-4)
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    rates = {id(p): g["initial_lr"] for g in fit.optimizers[0].param_groups for p in g["params"]}
    assert {rates[id(p)] for p in module.backbone.parameters() if p.requires_grad} == {1e-3 * 0.1}
    assert {rates[id(p)] for p in module.head.parameters() if p.requires_grad} == {1e-3}
    decays = {id(p): g["weight_decay"] for g in fit.optimizers[0].param_groups for p in g["params"]}
    assert all(decays[id(p)] == 0 for p in module.head.parameters() if p.requires_grad and p.ndim == 1)


WRONG = {
    "size": ({"size": "xl"}, "head.size: got 'xl'; expected one of 'n', 's', 'm', 'l'"),
    "queries": ({"queries": 0}, "head.queries: got 0; expected a number above 0"),
    "hidden": ({"hidden": 40}, "head.hidden: got 40; .* a multiple of 32"),
    "unknown": ({"layers": 2}, "head.head_args: dfine refuses"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_told(given, said):
    with pytest.raises(UserError, match=said):
        detector(head_args=given)


def test_what_is_exported_loads_whole_with_its_options(tmp_path):
    module = detector(head="rtdetrv2", score_threshold=0.0)
    options = {"head": "rtdetrv2", "head_args": SMALL, "pyramid_width": 32, "score_threshold": 0.0}
    names, statistics = ("a", "b"), {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_detector_folder(module.trained, tmp_path / "model", module.spec, options=options, class_names=names, **statistics)
    again = visiontune.load(tmp_path / "model").detector
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(again.predict(images)[0].xyxy, module.predict(images)[0].xyxy, atol=1e-2)
