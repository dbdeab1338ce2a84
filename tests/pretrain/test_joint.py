"""What all joint-embedding methods have in common, and what each promises besides."""

import lightning as L
import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import JOINT, MULTI_CROP, joint_views, make_joint
from visiontune import BYOL, DINO, Distill, MoCoV3, SimSiam
from visiontune.backbones import embed, embed_and_tokens, tokens
from visiontune.errors import UserError
from visiontune.heads.prototypes import Centring
from visiontune.heads.queue import Queue
from visiontune.module import Module
from visiontune.optim import cosine, linear

TAUGHT = [n for n in JOINT if n in ("mocov2", "mocov3", "byol", "dino", "ibot", "dinov2")]
# 64 pixels: grids of 8x8 patches, and of 4x4 after strides of 16
FAMILIES = {"test_vit": 32, "test_resnet": 64, "test_convnext": 64}


def losses_on_one_batch(module: Module, batch, steps: int = 6, lr: float = 1e-3) -> list[float]:
    """On one batch and one mask, after a first look in which running means and queues take what the batch gives; then they stand still."""
    if hasattr(module, "mask"):
        masks = module.mask(torch.cat(batch[:2]))
        module.mask = lambda *_: masks
    with torch.no_grad():
        module.training_step(batch, 0)
    for part in module.modules():
        if isinstance(part, Queue):
            part.add = lambda rows: None
        if isinstance(part, Centring):
            part.momentum = 1.0
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("name", JOINT)
def test_the_loss_falls_and_every_trained_parameter_has_a_gradient(name, backbone):
    torch.manual_seed(0)
    size = FAMILIES[backbone]
    module = make_joint(name, backbone, image_size=size).train()
    losses = losses_on_one_batch(module, joint_views(name, size))
    assert losses[-1] < losses[0], losses
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    if module.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())


def fit(module: Module, tmp_path, steps: int, name: str, **more) -> L.Trainer:
    views = joint_views(name, 32, pictures=16)
    data = DataLoader(TensorDataset(*(views if isinstance(views, list) else [views])), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = L.Trainer(max_steps=steps, max_epochs=99, default_root_dir=tmp_path, enable_checkpointing=False, **quiet, **more)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_is_the_average_of_the_student_in_closed_form(tmp_path, name, accumulate):
    module = make_joint(name, "test_vit", image_size=32, lr=1e-2, total_steps=10)
    expected, shares = [p.detach().clone() for p in module.teacher.backbone.parameters()], []
    step = module.optimizer_step

    def watched(*args, **kwargs):
        step(*args, **kwargs)
        shares.append(0.9 if name == "mocov2" else cosine(len(shares), 10, 0.9, 1.0))
        for e, p in zip(expected, module.backbone.parameters(), strict=True):
            e.lerp_(p.detach(), 1 - shares[-1])

    module.optimizer_step = watched
    fit(module, tmp_path, 3, name, accumulate_grad_batches=accumulate)
    assert len(shares) == 3
    assert all(torch.allclose(e, p, atol=1e-6) for e, p in zip(expected, module.teacher.backbone.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(module.backbone.parameters(), module.teacher.backbone.parameters(), strict=True))


@pytest.mark.parametrize("name", JOINT)
def test_what_is_released_is_plain_timm_and_gives_the_embedding(tmp_path, name):
    module = make_joint(name, "test_vit", image_size=32, lr=1e-2, total_steps=10)
    fit(module, tmp_path, 2, name)
    module.eval()
    images = torch.randn(2, 3, 32, 32)
    embedding = module.represent(images)
    kept = module.release()
    assert torch.equal(embed(kept, images), embedding)
    assert kept is (module.teacher.backbone if name in ("dino", "ibot", "dinov2") else module.backbone)
    assert type(kept.patch_embed).__module__.startswith("timm")
    assert type(module.backbone.patch_embed).__module__.startswith("timm")
    assert kept.pretrained_cfg["mean"] == pytest.approx(module.mean.flatten().tolist())
    assert all(p.requires_grad for p in kept.parameters())


@pytest.mark.parametrize("name", JOINT)
def test_under_bf16_autocast_the_loss_is_near_that_of_fp32(name):
    """Within 2 %, or 0.02 where the loss itself is near nothing."""
    losses = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        module = make_joint(name, "test_vit", image_size=32).train()
        views = joint_views(name, 32)
        if hasattr(module, "mask"):
            masks = module.mask(torch.cat(views[:2]), torch.Generator().manual_seed(0))
            module.mask = lambda *_, masks=masks: masks
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            losses.append(module.training_step(views, 0))
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02, abs=0.02)


@pytest.mark.parametrize("name", [n for n in JOINT if n != "distill"])
def test_a_batch_of_too_few_views_is_told(name):
    module = make_joint(name, "test_vit", image_size=32)
    with pytest.raises(UserError, match=rf"{type(module).__name__}: expected batches of two .*views.* but got 1"):
        module.training_step(joint_views(name, 32)[0], 0)


def test_a_teacher_has_no_dropout_and_its_norms_see_the_batch():
    own = timm.create_model("test_resnet", num_classes=0, drop_path_rate=0.5)
    module = BYOL(own, image_size=32, **JOINT["byol"]).train()
    images = torch.randn(4, 3, 32, 32)
    norm = next(m for m in module.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    assert torch.equal(embed(module.teacher.backbone, images), embed(module.teacher.backbone, images))
    assert norm.training
    assert not torch.equal(norm.running_mean, before)
    module.eval()
    assert not any(m.training for m in module.teacher.modules())


def test_a_queue_is_a_ring_whose_oldest_rows_go_first():
    queue = Queue(5, 2)
    for batch in range(4):
        queue.add(torch.full((2, 2), float(batch)))
    assert queue.rows[:, 0].tolist() == [2, 3, 3, 1, 2]  # rows 5 and 6 of 8 began anew at the front
    queue.add(torch.arange(14.0).view(7, 2))
    assert sorted(queue.rows[:, 0].tolist()) == [4, 6, 8, 10, 12]


def test_mocov3_keeps_a_vits_patches_and_positions_and_gives_them_back():
    module = MoCoV3("test_vit", image_size=32, **JOINT["mocov3"])
    frozen = {n for n, p in module.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert all(p.requires_grad for p in module.release().parameters())
    free = MoCoV3("test_vit", image_size=32, freeze_patches=False, **JOINT["mocov3"])
    assert all(p.requires_grad for p in free.backbone.parameters())


def test_simsiams_predictor_keeps_its_learning_rate(tmp_path):
    module = SimSiam("test_resnet", image_size=32, lr=0.1, optimizer="sgd", warmup_steps=0, total_steps=8, **JOINT["simsiam"])
    trainer = fit(module, tmp_path, 6, "simsiam")
    rates = {id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert {rates[id(p)] for p in module.predictor.parameters()} == {0.1}
    assert max(rates[id(p)] for p in module.backbone.parameters()) < 0.05


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("dino", "adamw"), ("ibot", "adamw"), ("dinov2", "adamw"), ("swav", "adamw"), ("dino", "sgd"), ("swav", "sgd"), ("swav", "lars")],
)
def test_prototypes_stand_still_in_the_first_share_of_the_run(tmp_path, name, optimizer):
    for steps, still in ((2, True), (4, False)):
        settings = {"optimizer": optimizer, "lr": 1.0 if optimizer == "lars" else 1e-2, "weight_decay": 0.1, "total_steps": 10}
        module = make_joint(name, "test_vit", image_size=32, **settings)  # freeze_prototypes: 0.2
        weight = (module.prototypes if name == "swav" else module.head.prototypes).weight
        before = weight.detach().clone()
        fit(module, tmp_path, steps, name)
        assert torch.equal(weight, before) == still


def test_weight_decay_follows_its_schedule(tmp_path):
    module = DINO("test_vit", image_size=32, weight_decay=0.04, weight_decay_end=0.4, total_steps=10, **JOINT["dino"])
    trainer = fit(module, tmp_path, 6, "dino")
    decays = {g["weight_decay"] for g in trainer.optimizers[0].param_groups}
    assert decays == {0.0, cosine(5, 10, 0.04, 0.4)}
    assert linear(5, 10, 0.04, 0.4) == pytest.approx(0.22)


def test_distillation_keeps_the_teacher_out_of_checkpoints_and_moves_it_along():
    module = make_joint("distill", "test_vit", image_size=32)
    assert not any("guide" in k for k in module.state_dict())
    assert next(module.double().guide.parameters()).dtype == torch.float64
    assert not module.train().guide.training
    with pytest.raises(UserError, match=r"method.teacher: got 'resnet5o', which is no file or folder, and timm .* did you mean 'resnet50'"):
        Distill("test_vit", teacher="resnet5o")


def test_a_teacher_of_ones_own_brings_its_mean_and_is_asked_for_again_by_a_checkpoint(tmp_path):
    teacher = BYOL("test_resnet", image_size=32, mean=[0.1] * 3, std=[0.9] * 3, **JOINT["byol"]).release()
    module = Distill("test_vit", teacher=teacher, image_size=32, projector_hidden=8)
    assert module.guide_mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert module.guide_std.flatten().tolist() == pytest.approx([0.9] * 3)
    path = tmp_path / "distill.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "pytorch-lightning_version": "2.5.0"}, path)
    with pytest.raises(UserError, match=r"method.teacher: is empty; .*that module again: .*teacher=\.\.\."):
        Distill.load_from_checkpoint(path)
    assert Distill.load_from_checkpoint(path, teacher=teacher).guide is teacher


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_a_collapsed_projection_is_seen_where_the_mean_is_taken_out_of_the_loss(name):
    module = make_joint(name, "test_vit", image_size=32).train()
    for layer in module.projector:
        if isinstance(layer, torch.nn.Linear):
            last = layer
    with torch.no_grad():
        last.weight *= 1e-5
    last.register_forward_hook(lambda *args: args[2] + 1)  # a point, and next to nothing around it
    module.training_step(joint_views(name, 32), 0)
    assert module._sums["spread"].item() < 1e-3


def test_a_student_with_the_teachers_weights_and_adaptors_that_do_nothing_has_no_loss():
    teacher = timm.create_model("test_resnet", num_classes=0)
    module = Distill("test_resnet", teacher=teacher, image_size=64, mean=[0.4] * 3, std=[0.3] * 3).eval()
    module.backbone.load_state_dict(teacher.state_dict())
    module.guide_mean.fill_(0.4)
    module.guide_std.fill_(0.3)
    module.projector = torch.nn.Identity()
    torch.nn.init.dirac_(module.patch_projector.weight)
    torch.nn.init.zeros_(module.patch_projector.bias)
    assert module.training_step(torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8), 0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_embedding_and_tokens_of_one_forward_are_those_of_two(name):
    size = 224 if "swin" in name else 64
    args = {"img_size": size} if "vit" in name else {}
    model = timm.create_model(name, num_classes=0, **args).eval()
    images = torch.randn(1, 3, size, size)
    embedding, maps = embed_and_tokens(model, images)
    assert torch.allclose(embedding, embed(model, images), atol=1e-5)
    assert torch.allclose(maps, tokens(model, images), atol=1e-5)


def test_hidden_cells_do_not_reach_a_student_that_cannot_look_around_them():
    """A patch of a transformer sees its own pixels alone before attention: with all others' attention cut off, nothing leaks."""
    module = make_joint("ibot", "test_vit", image_size=32).eval()
    images = torch.randn(4, 3, 32, 32)
    masks = module.mask(images)
    changed = images + 5 * torch.nn.functional.interpolate(masks.hidden.unsqueeze(1).float(), size=(32, 32))
    outputs = []
    for x in (images, changed):
        with module.hiding(x, masks.hidden) as seen:
            outputs.append(embed_and_tokens(module.backbone, seen))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert masks.rows.shape == (2,)
    assert masks.hidden.flatten(1).sum(dim=1).gt(0).sum() == 2


def test_pictures_without_enough_cells_are_refused_with_a_way_out():
    for name in ("ibot", "dinov2"):
        with pytest.raises(UserError, match=r"data.image_size: got 32x32, of which resnet18 makes 1x1 cells.*method: dino"):
            make_joint(name, "resnet18", image_size=32)


def test_multi_crop_methods_take_two_views_alone(tmp_path):
    for name in MULTI_CROP:
        module = make_joint(name, "test_vit", image_size=32).train()
        assert torch.isfinite(module.training_step(joint_views(name, 32)[:2], 0))
