import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import losses_on_one_batch
from visiontune import IJEPA
from visiontune.backbones import create
from visiontune.errors import UserError
from visiontune.optim import linear

VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
MEAN = {"global_pool": "avg", "fc_norm": False}
PREDICTOR = {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2}


def ijepa(**more) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, **(PREDICTOR | more))


def test_pixels_outside_the_context_do_not_reach_the_encoder():
    module, images = ijepa().eval(), torch.randn(2, 3, 32, 32)
    masks = module.mask(images)
    seen = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, masks.context, True).view(2, 1, 8, 8)
    other = torch.where(seen.repeat_interleave(4, 2).repeat_interleave(4, 3), images, torch.randn_like(images))
    assert torch.equal(module.encode(images, masks), module.encode(other, masks))


def test_targets_are_the_averages_layer_normed_features_in_their_places():
    module, images = ijepa().eval(), torch.randn(2, 3, 32, 32)
    masks = module.mask(images)
    whole = F.layer_norm(module.teacher.backbone.forward_features(images)[:, 1:], (32,))
    targets = module.make_targets(images, masks)
    assert targets.shape == (2, 4, 11, 32)
    assert not targets.requires_grad
    for b in range(2):
        for t in range(4):
            assert torch.equal(targets[b, t], whole[b, masks.targets[b, t]])


def test_each_block_is_predicted_on_its_own_from_the_context():
    module, images = ijepa().eval(), torch.randn(2, 3, 32, 32)
    masks = module.mask(images)
    context = module.encode(images, masks)
    predicted = module.predict(context, masks)
    assert predicted.shape == (2, 4, 11, 32)
    alone = type(masks)(context=masks.context, targets=masks.targets[:, 2:3])
    assert torch.allclose(module.predict(context, alone), predicted[:, 2:3], atol=1e-5)


def test_positions_of_the_target_are_all_the_predictor_knows_of_it():
    module, images = ijepa().eval(), torch.randn(1, 3, 32, 32)
    masks = module.mask(images)
    turned = type(masks)(context=masks.context.flip(1), targets=masks.targets.flip(2))
    a, b = module.predict(module.encode(images, masks), masks), module.predict(module.encode(images, turned), turned)
    assert torch.allclose(a, b.flip(2), atol=1e-5)


def fit(module: IJEPA, tmp_path, steps: int, **more) -> L.Trainer:
    data = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = L.Trainer(max_steps=steps, max_epochs=99, default_root_dir=tmp_path, enable_checkpointing=False, **quiet, **more)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_target_follows_the_encoder_by_the_schedule_once_an_optimiser_step(tmp_path, accumulate):
    module = ijepa(momentum_start=0.9, total_steps=10, lr=1e-2)
    expected, shares = [p.detach().clone() for p in module.teacher.backbone.parameters()], []
    step = module.optimizer_step

    def watched(*args, **kwargs):
        step(*args, **kwargs)
        share = linear(len(shares), 10, 0.9, 1.0)
        shares.append(share)
        for e, p in zip(expected, module.backbone.parameters(), strict=True):
            e.lerp_(p.detach(), 1 - share)

    module.optimizer_step = watched
    fit(module, tmp_path, steps=3, accumulate_grad_batches=accumulate)
    assert shares == pytest.approx([0.9, 0.91, 0.92])
    for e, p in zip(expected, module.teacher.backbone.parameters(), strict=True):
        assert torch.allclose(e, p, atol=1e-7)
    assert not any(p.requires_grad for p in module.teacher.backbone.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(module.backbone.parameters(), module.teacher.backbone.parameters(), strict=True))


def test_the_embedding_is_the_targets_and_that_is_what_is_released(tmp_path):
    module = ijepa(lr=1e-2, total_steps=10, momentum_start=0.9)
    fit(module, tmp_path, steps=4)
    images = torch.randn(2, 3, 32, 32)
    module.eval()
    embedding = module.represent(images)
    kept = module.release()
    assert torch.equal(kept(images), embedding)
    assert not torch.allclose(module.backbone(images), embedding)
    assert type(kept.patch_drop) is torch.nn.Identity
    assert all(p.requires_grad for p in kept.parameters())


def test_the_target_has_no_dropout_while_the_encoder_trains():
    own = create("vit_tiny_patch16_224", image_size=32, args=VIT | MEAN | {"drop_path_rate": 0.5})
    module = IJEPA(own, image_size=32, **PREDICTOR).train()
    images = torch.randn(2, 3, 32, 32)
    masks = module.mask(images)
    assert module.backbone.training
    assert not module.teacher.backbone.training
    assert torch.equal(module.make_targets(images, masks), module.make_targets(images, masks))


def test_the_loss_falls_and_reaches_every_trained_parameter():
    losses = losses_on_one_batch(ijepa(), torch.randn(4, 3, 32, 32))
    assert losses[-1] < losses[0]


def test_half_precision_that_would_stop_the_average_is_refused(tmp_path):
    with pytest.raises(UserError, match="less than half precision can add up"):
        fit(ijepa(total_steps=2), tmp_path, steps=1, precision="bf16-true")


def test_what_was_frozen_before_stays_so_when_it_is_released():
    own = create("vit_tiny_patch16_224", image_size=32, args=VIT | MEAN)
    own.patch_embed.requires_grad_(False)
    kept = IJEPA(own, image_size=32, **PREDICTOR).release()
    assert {n for n, p in kept.named_parameters() if not p.requires_grad} == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match="got resnet10t; ijepa needs a plain vision transformer.*use method: spark"):
        IJEPA("resnet10t", image_size=64)
    with pytest.raises(UserError, match="targets, method.target_scale: got 8 of 0.175.*take fewer"):
        ijepa(targets=8)
    with pytest.raises(UserError, match="pools its 'token' for an embedding, and ijepa trains patch tokens alone"):
        IJEPA(create("vit_tiny_patch16_224", image_size=32, args=VIT), image_size=32, **PREDICTOR)
    with pytest.raises(UserError, match="method.predictor_dim: got 18; sine-cosine positions need a multiple of 4"):
        ijepa(predictor_dim=18)
    with pytest.raises(UserError, match="predictor_heads: got 3"):
        ijepa(predictor_heads=3)
