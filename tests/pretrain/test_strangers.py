"""The modules in other people's projects: a plain DataLoader, a plain Trainer, checkpoints of their own."""

import lightning as L
import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import JOINT, MULTI_CROP, make_joint
from visiontune import IJEPA, MAE, Classifier, SimCLR, SimMIM, SparK
from visiontune.errors import UserError

KINDS = ["mae", "simmim", "spark", "ijepa", "classifier", *JOINT]
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def images(kind: str) -> torch.Tensor:
    x = torch.randint(0, 255, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return x if kind == "uint8" else x.float() / 127.5 - 1


def loader(*tensors) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=8)


def trainer(tmp_path, epochs=2, **more) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return L.Trainer(max_epochs=epochs, default_root_dir=tmp_path, **quiet, **more)


def build(kind: str, pictures: str):
    x, y = images(pictures), torch.arange(16) % 4
    if kind == "mae":
        decoder = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
        return MAE("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, lr=1e-3, **decoder), loader(x, y)
    if kind == "ijepa":
        predictor = {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, "target_scale": 0.15}
        return IJEPA("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, lr=1e-3, **predictor), loader(x, y)
    if kind == "simmim":
        return SimMIM("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, mask_size=8, lr=1e-3), loader(x, y)
    if kind == "spark":
        small = {"channels": [8, 8, 16, 16], "output_stride": 8}
        return SparK("resnet10t", image_size=32, backbone_args=small, decoder_dim=16, lr=1e-3), loader(x, y)
    if kind in JOINT:
        small = [x.flip(3)[:, :, ::2, ::2]] * 2 if kind in MULTI_CROP else []
        views = [x] if kind == "distill" else [x, x.flip(3), *small]
        return make_joint(kind, "test_vit", image_size=32, optimizer="adamw", lr=1e-3), loader(*views)
    return Classifier("test_resnet", num_classes=4, lr=1e-3), loader(x, y)


@pytest.mark.parametrize("pictures", ["uint8", "float"])
@pytest.mark.parametrize("kind", KINDS)
def test_train_save_load_and_go_on(tmp_path, kind, pictures):
    module, data = build(kind, pictures)
    first = trainer(tmp_path)
    first.fit(module, data, data if kind == "classifier" else None)
    first.save_checkpoint(tmp_path / "c.ckpt")

    again = type(module).load_from_checkpoint(tmp_path / "c.ckpt", **({"teacher": module.guide} if kind == "distill" else {}))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())
    assert all(isinstance(v, (int, float, str, bool, list, tuple, dict, type(None))) for v in again.hparams.values())
    more = trainer(tmp_path, epochs=3)
    more.fit(again, data, data if kind == "classifier" else None, ckpt_path=tmp_path / "c.ckpt")
    assert more.global_step == 6


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions(tmp_path, kind, precision):
    module, data = build(kind, "uint8")
    runner = trainer(tmp_path, epochs=1, precision=precision)
    runner.fit(module, data)
    assert runner.global_step == 2


def test_a_timm_module_of_ones_own_is_used_as_it_is_and_asked_for_again(tmp_path):
    own = timm.create_model("test_resnet", num_classes=0)
    module = SimCLR(own, projector_hidden=16, projector_out=8)
    assert module.backbone is own
    runner = trainer(tmp_path, epochs=1)
    x = images("uint8")
    runner.fit(module, loader(x, x))
    runner.save_checkpoint(tmp_path / "c.ckpt")
    other = timm.create_model("test_resnet", num_classes=0)
    SimCLR.load_from_checkpoint(tmp_path / "c.ckpt", backbone=other)
    assert all(torch.equal(v, own.state_dict()[k]) for k, v in other.state_dict().items())
    with pytest.raises((UserError, TypeError), match="backbone"):
        SimCLR.load_from_checkpoint(tmp_path / "c.ckpt")


@pytest.mark.parametrize("kind", ["mae", "simmim", "spark", "ijepa"])
def test_reports_show_the_same_masks_each_time_and_leave_training_alone(kind):
    module, _ = build(kind, "uint8")
    module.eval()
    first, again = (module.pictures(images("uint8")[:8], torch.Generator().manual_seed(0)) for _ in range(2))
    assert list(first) == (["original", "context", "targets"] if kind == "ijepa" else ["original", "masked", "painted", "pasted"])
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert all(v.shape == (8, 3, 32, 32) for v in first.values())
    clean = module.represent(images("uint8"))
    module.pictures(images("uint8")[:8])
    assert torch.equal(module.represent(images("uint8")), clean)


def test_uint8_and_its_normalised_float_are_the_same_picture():
    module, _ = build("simclr", "uint8")
    module.eval()
    x = images("uint8")
    as_float = (x.float() / 255 - module.mean) / module.std
    assert torch.allclose(module.represent(x), module.represent(as_float), atol=1e-5)


def test_batches_of_every_documented_form_are_understood():
    module, _ = build("simclr", "uint8")
    x, y = images("uint8"), torch.arange(16)
    assert [v.shape for v in module.views(x)] == [x.shape]
    assert len(module.views([x, x])) == 2
    assert len(module.views([x, y])) == 1
    assert len(module.views([[x, x], y])) == 2
    assert all(v.dtype == torch.float32 for v in module.views([x, x]))


def test_simclr_says_when_it_gets_one_view():
    module, _ = build("simclr", "uint8")
    with pytest.raises(UserError, match="two views"):
        module.training_step([images("uint8"), torch.arange(16)], 0)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_word(tmp_path):
    module, _ = build("mae", "float")
    runner = trainer(tmp_path, epochs=1, log_every_n_steps=1)
    x = images("float")
    x[0] = float("nan")
    with pytest.raises(UserError, match=r"loss.*nan.*step 0 is not finite; lower optim.lr"):
        runner.fit(module, loader(x))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_on_cuda_begins_with_the_loss_of_fp32_and_stays_finite(tmp_path, kind, precision):
    # Later losses part: fp16 skips its first steps until its scale fits, and batch norms over 16 pictures magnify rounding.
    losses = {}
    for p in (precision, "32-true"):
        torch.manual_seed(0)
        module, data = build(kind, "uint8")
        module.record = lambda p=p, **values: losses.setdefault(p, []).append(values["loss"].item())
        L.Trainer(max_epochs=2, precision=p, accelerator="gpu", devices=1, logger=False, default_root_dir=tmp_path).fit(module, data)
    assert losses[precision][0] == pytest.approx(losses["32-true"][0], rel=0.01)
    assert all(torch.tensor(losses[precision]).isfinite())
