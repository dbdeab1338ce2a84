import importlib.util
import warnings

import lightning as L
import pytest
import timm
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils.data import DataLoader, Dataset

from visiontune import Detector
from visiontune.boxes import Boxes, Letterbox
from visiontune.callbacks.memory import LargestBatch
from visiontune.errors import UserError

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
TINY = {"channels": [8, 8, 16, 16]}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES = {
    "resnet10t": TINY,
    "tf_efficientnet_lite0": {},
    "convnext_atto": {"depths": [1] * 4, "dims": [8, 16, 16, 32]},
    "swin_tiny_patch4_window7_224": {"window_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4},
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,
}
counted = pytest.mark.skipif(
    not any(importlib.util.find_spec(m) for m in ("faster_coco_eval", "pycocotools")), reason="needs faster-coco-eval"
)


def detector(name="resnet10t", **more) -> Detector:
    torch.manual_seed(0)
    given = {"num_classes": 2, "image_size": 64, "backbone_args": FAMILIES[name], "pyramid_width": 32, "freeze_batch_norms": False}
    return Detector(name, **given | more)


def batch(size=64, B=2):
    images = torch.randint(0, 255, (B, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = Boxes(torch.tensor([[4.0, 6, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, 1]))
    return images, [boxes, *[Boxes.none()] * (B - 1)]


class Things(Dataset):
    """Somebody's data set, as torchvision's tutorial has it."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i))
        if i == 3:
            return image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": i}
        return image, {"boxes": torch.tensor([[4.0, 6, 40, 30]]), "labels": torch.tensor([i % 2]), "image_id": i}


def loader(**more):
    return DataLoader(Things(), batch_size=4, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)), **more)


def trainer(path, **more):
    return L.Trainer(default_root_dir=path, **QUIET | {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False} | more)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_falls_on_one_batch(name):
    module, losses = detector(name).train(), []
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(6):
        loss = module.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


@counted
def test_a_plain_trainer_and_somebodys_loader_of_dictionaries(tmp_path):
    module = Detector("resnet10t", num_classes=2, image_size=64, pyramid_width=32, backbone_args=TINY, freeze_batch_norms=False, ema=0.9)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, loader(), loader())
    assert {f"val/{m}" for m in module.monitors} <= set(fit.callback_metrics)
    assert {"train/loss", "train/loss_classes", "train/loss_boxes"} <= set(fit.callback_metrics)
    found = fit.predict(module, loader())
    assert [len(part) for part in found] == [4, 4]
    assert all(isinstance(b, Boxes) and b.scores is not None for part in found for b in part)


def test_crowds_and_letterboxes_of_a_strangers_batch_come_as_far_as_validation():
    box = Letterbox.of(64, 64, (32, 32))
    batch = {"images": torch.zeros(1, 3, 32, 32), "boxes": [Boxes.none()], "crowd": [Boxes.none()], "letterbox": [box], "name": ["a"]}
    moved = move_data_to_device(detector().on_before_batch_transfer(batch, 0), torch.device("cpu"))
    assert (list(moved["letterbox"]), len(moved["crowd"]), moved["name"]) == ([box], 1, ["a"])
    module = detector(pyramid_width=64).eval()
    for pictures in (moved, [batch["images"]], batch["images"]):
        assert len(module.predict_step(module.on_before_batch_transfer(pictures, 0), 0)) == 1


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn"])
def test_a_checkpoint_gives_the_same_boxes(tmp_path, head):
    module = detector(head=head, head_args={"hidden": 32} if head == "faster_rcnn" else None, ema=0.9, score_threshold=0.0)
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    again = Detector.load_from_checkpoint(tmp_path / "c.ckpt")
    images = batch()[0]
    for a, b in zip(module.predict(images), again.predict(images), strict=True):
        assert torch.equal(a.xyxy, b.xyxy)
        assert torch.equal(a.labels, b.labels)


@counted
def test_the_mean_average_precision_of_perfect_boxes_is_1_and_counts_every_picture(monkeypatch, tmp_path):
    module = detector()
    things = Things()  # a data set has a length, and its items no end
    truth = iter([things[i][1] for i in range(len(things))])

    def perfect(images):
        targets = [next(truth) for _ in range(len(images))]
        return [Boxes(t["boxes"], t["labels"], torch.ones(len(t["labels"]))) for t in targets]

    monkeypatch.setattr(module, "predict", perfect)
    (values,) = trainer(tmp_path, num_sanity_val_steps=0).validate(module, loader(), verbose=False)
    assert values == {"val/map": 1.0, "val/map50": 1.0, "val/map75": 1.0}


def test_without_what_counts_precision_training_works_and_validation_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("visiontune.metrics.detection.COUNTERS", ())
    module = detector()
    trainer(tmp_path).fit(module, loader())
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        trainer(tmp_path).validate(module, loader(), verbose=False)


def test_boxes_are_judged_and_kept_by_the_averaged_weights(tmp_path):
    module = detector(ema=0.9, score_threshold=0.0)
    trainer(tmp_path).fit(module, loader())
    images = batch()[0]
    before = [b.xyxy for b in module.predict(images)]
    with torch.no_grad():
        for part in (module.backbone, module.pyramid, module.head):
            for parameter in part.parameters():
                parameter.zero_()
    assert all(torch.equal(a, b.xyxy) for a, b in zip(before, module.predict(images), strict=True))
    assert module.represent(images).abs().sum() > 0
    kept = module.release()
    assert kept is module.average["backbone"]
    assert all(p.requires_grad for p in kept.parameters())


def test_predict_leaves_modes_and_statistics_as_they_were():
    module = detector("tf_efficientnet_lite0").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    module.predict(batch()[0])
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_frozen_stages_and_batch_norms_stay_bit_identical(tmp_path):
    module = detector(freeze_stages=1, freeze_batch_norms=True, backbone_lr_factor=1.0, lr=0.01)
    before = {k: v.clone() for k, v in module.backbone.state_dict().items()}
    with pytest.warns(UserWarning, match="head.freeze_batch_norms: the backbone's batch norms have never seen a picture"):
        trainer(tmp_path).fit(module, loader())
    changed = {k for k, v in module.backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(".bn" in k or k.startswith(("conv1", "bn1", "layer1")) for k in changed)
    assert any(k.startswith("layer2") for k in changed)
    assert all(p.requires_grad for p in module.release().parameters())


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_frozen_backbone_stays_bit_identical_while_pyramid_and_head_learn(tmp_path, name, ema):
    module = detector(name, freeze_backbone=True, lr=0.01, ema=ema)
    before = {k: v.clone() for k, v in module.trained.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="head.freeze_batch_norms")  # of batch norms that would have to learn
        trainer(tmp_path).fit(module, loader())
    changed = {k for k, v in module.trained.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"pyramid", "head"}
    assert not module.backbone.training
    assert all(torch.equal(v, before[f"backbone.{k}"]) for k, v in module.kept.state_dict().items())
    assert all(p.requires_grad for p in module.release().parameters())


def test_more_stages_than_there_are_is_told():
    with pytest.raises(UserError, match="head.freeze_stages: got 9, but ResNet has 4"):
        detector(freeze_stages=9)


def test_the_backbone_learns_at_a_tenth_of_the_rate_in_few_groups(tmp_path):
    module = detector(lr=1e-3, warmup_steps=0)
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    groups = fit.optimizers[0].param_groups
    backbone = {id(p) for p in module.backbone.parameters()}
    assert len(groups) == 4
    for group in groups:
        inside = {id(p) in backbone for p in group["params"]}
        assert len(inside) == 1
        assert group["initial_lr"] == pytest.approx(1e-4 if inside == {True} else 1e-3)


def test_represent_is_the_backbones_embedding():
    module = detector().eval()
    images = batch()[0]
    backbone = module.backbone
    expected = backbone.forward_head(backbone.forward_features(module.normalize(images)), pre_logits=True)
    assert torch.equal(module.represent(images), expected)


def test_the_head_brings_its_own_limit_for_the_gradient_and_a_given_one_is_kept():
    assert detector().clip == 10.0
    assert detector(clip=3.0).clip == 3.0


def test_what_no_map_reaches_is_not_trained():
    module = detector("tf_efficientnet_lite0")
    left = {n for n, p in module.backbone.named_parameters() if not p.requires_grad}
    assert left == {"conv_head.weight", "bn2.weight", "bn2.bias"}
    own = Detector(timm.create_model("resnet10t", num_classes=5, **TINY), num_classes=2, image_size=64, pyramid_width=32)
    assert not any(p.requires_grad for p in own.backbone.fc.parameters())


def test_a_plain_vit_takes_any_size_of_picture():
    module = detector("vit_small_patch14_reg4_dinov2", score_threshold=0.0, pyramid_width=64)  # two channels a group norm's group
    for H, W in ((64, 64), (96, 128), (70, 100)):
        (found,) = module.predict(torch.zeros(1, 3, H, W, dtype=torch.uint8))
        assert (found.xyxy <= torch.tensor([W, H, W, H])).all()


def test_bfloat16_mixed_and_whole_train(tmp_path):
    for precision in ("bf16-mixed", "bf16-true"):
        module = detector()
        trainer(tmp_path, precision=precision).fit(module, loader())
        found = module.predict(batch()[0])
        assert all(b.xyxy.dtype == torch.float32 for b in found)


WRONG = {
    "width": ({"pyramid_width": 48}, "head.pyramid_width: got 48; .* a multiple of 32"),
    "head": ({"head": "yolo"}, "head.name: got 'yolo'; allowed: deimv2, dfine, faster_rcnn, fcos, retinanet, rtdetrv2"),
    "head_args": ({"head_args": {"radius": 2}}, "head.head_args: fcos refuses {'radius': 2}"),
    "num_classes": ({"num_classes": 0}, "num_classes: got 0; expected a number above 0"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_told(given, said):
    with pytest.raises(UserError, match=said):
        detector(**given)


def test_a_wrong_batch_is_told_before_it_moves_to_the_device():
    with pytest.raises(UserError, match="the label 2, but num_classes=2"):
        detector().on_before_batch_transfer((batch()[0][:1], [Boxes(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([2]))]), 0)
    with pytest.raises(UserError, match=r"batch: got dict; Detector expects \(images, targets\)"):
        detector().training_step({"images": 1}, 0)


def test_a_released_detector_trains_no_more():
    module = detector()
    module.release()
    with pytest.raises(UserError, match="release"):
        module.training_step(batch(), 0)


@counted
def test_what_is_found_in_a_crowd_counts_for_nothing_and_pixels_are_those_of_the_original(monkeypatch):
    module = detector()
    box = Letterbox.of(128, 256, (32, 32))  # an eighth
    true, crowd = (
        Boxes(torch.tensor([[8.0, 8.0, 80.0, 80.0]]), torch.tensor([0])),
        Boxes(torch.tensor([[100.0, 0.0, 256.0, 128.0]]), torch.tensor([0])),
    )
    said = Boxes(torch.cat([true.xyxy, torch.tensor([[120.0, 8.0, 200.0, 100.0]])]), torch.tensor([0, 0]), torch.tensor([0.5, 0.9]))
    monkeypatch.setattr(module, "predict", lambda images: [box.inside(said)])
    batch = {"images": torch.zeros(1, 3, 32, 32), "boxes": [box.inside(true)], "crowd": [box.inside(crowd)], "letterbox": [box]}
    module.validation_step(batch, 0)
    values = module.metric.compute()
    assert float(values["map"]) == pytest.approx(1)
    assert float(values["map_medium"]) == pytest.approx(1)  # 72 pixels of the original: there it is no small one
    assert values["map_small"].isnan()


@pytest.mark.parametrize("head", ["fcos", "faster_rcnn"])
def test_a_rehearsal_of_the_largest_batch_leaves_everything_as_it_was(head, monkeypatch):
    module = detector(head=head, pyramid_width=64).train()
    before, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    asked = []
    features = module.features
    monkeypatch.setattr(module, "features", lambda images: (asked.append(tuple(images.shape)), features(images))[1])
    LargestBatch((96, 64), 3, 5, say=asked.append, kinds=("cpu",)).on_train_start(trainer("."), module)
    assert asked[0] == (3, 3, 96, 64)
    assert "a batch of 3 at 96x64" in asked[-1]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())
