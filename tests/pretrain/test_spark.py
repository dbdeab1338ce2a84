from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from tests.conftest import CONV, losses_on_one_batch
from visiontune import SparK, build
from visiontune.backbones import create, levels
from visiontune.backbones.sparse import MaskedBatchNorm
from visiontune.errors import UserError
from visiontune.heads.unet import UNetDecoder

SMALL = {"image_size": 64, "decoder_dim": 32}


def spark(name="resnet10t", **more) -> SparK:
    torch.manual_seed(0)
    return SparK(name, **(SMALL | more)).eval()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_the_loss_falls_and_reaches_every_trained_parameter(name):
    losses = losses_on_one_batch(spark(name, image_size=96).train(), torch.randn(4, 3, 96, 96), lr=2e-3)
    assert losses[-1] < losses[0]


def test_what_is_behind_the_embedding_alone_is_not_trained_and_comes_back():
    """MobileNetV3 has a convolution behind its pooling, which no map sees."""
    module = spark("mobilenetv3_small_050")
    frozen = [n for n, p in module.backbone.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith("conv_head") for n in frozen)
    assert all(p.requires_grad for p in module.release().parameters())


def test_hidden_pixels_reach_nothing():
    module, images = spark(image_size=128), torch.randn(2, 3, 128, 128)
    masking = module.mask(images)
    hidden = masking.mask.view(2, 1, 4, 4).repeat_interleave(32, 2).repeat_interleave(32, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(module.decode(module.encode(images, masking)), module.decode(module.encode(other, masking)))


def test_the_share_of_visible_squares_is_what_was_asked_and_each_level_knows_it():
    module = spark(image_size=160, mask_ratio=0.6)
    images = torch.randn(3, 3, 160, 160)
    masking = module.mask(images)
    assert module.grid == (5, 5)
    assert masking.visible.shape[1] == 10
    maps = module.encode(images, masking)
    assert module.active.share == pytest.approx(0.4)
    assert len(maps) == 5
    for m in maps:
        assert module.active.map(tuple(m.shape[2:])).mean().item() == pytest.approx(0.4)


def test_mask_tokens_fill_hidden_positions_before_the_decoder():
    module = spark()
    images = torch.randn(2, 3, 64, 64)
    masking = module.mask(images)
    maps = module.encode(images, masking)
    seen = []
    module.projections[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    module.decode(maps)
    hidden = masking.mask.view(2, 2, 2)
    assert torch.allclose(seen[0].permute(0, 2, 3, 1)[hidden], module.mask_tokens[0].flatten().expand(int(hidden.sum()), -1))


def test_synchronising_batch_norms_keeps_the_masked_ones():
    """timm's (and torch's) conversion would put dense ones in their place."""
    module = spark("seresnet50")
    masked = [m for m in module.modules() if isinstance(m, MaskedBatchNorm)]
    recipe = SimpleNamespace(trainer=SimpleNamespace(sync_batchnorm=True))
    build.sync_batch_norms(module, recipe, None)
    assert [m for m in module.modules() if isinstance(m, MaskedBatchNorm)] == masked
    assert module.active.everywhere
    assert any(isinstance(m, nn.SyncBatchNorm) for m in module.decoder.modules())
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in module.backbone.modules())


def test_the_loss_does_not_depend_on_what_is_painted_over_visible_squares():
    module, images = spark(), torch.randn(2, 3, 64, 64)
    masking = module.mask(images)
    module.mask = lambda *_: masking
    painted = module.decode(module.encode(images, masking))
    hidden = masking.mask.view(2, 1, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3)
    losses = []
    for other in (painted, torch.where(hidden, painted, torch.randn_like(painted))):
        module.decode = lambda _, other=other: other
        losses.append(module.training_step(images, 0).item())
    assert losses[0] == losses[1]


def test_an_own_network_is_given_back_as_it_was_and_embeds_clean_pictures():
    own = create("resnet10t", image_size=64)
    kinds, names = [type(m) for m in own.modules()], list(own.state_dict())
    images = torch.randn(2, 3, 64, 64)
    before = own.eval()(images)
    module = SparK(own, **SMALL)
    assert list(own.state_dict()) == names
    module.training_step(images, 0)  # in evaluation mode: statistics stay
    assert torch.allclose(module.eval().represent(images), before, atol=1e-5)  # channels last: the order of sums
    assert module.release() is own
    assert [type(m) for m in own.modules()] == kinds
    assert torch.allclose(own(images), before, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", "use method: mae, ijepa or simmim"),
        ("mobilevit_xxs", "use method: simmim"),
        ("focalnet_tiny_srf", "mixes hidden positions into its map of .* by attention or pooling; use method: simmim"),
        ("swiftformer_xs", "mixes hidden positions into its map of .* by attention or pooling; use method: simmim"),
    ],
)
def test_backbones_that_mix_hidden_positions_in_are_told_what_fits_and_left_alone(name, why):
    own = create(name, image_size=64)
    kinds, state = [type(m) for m in own.modules()], {k: v.clone() for k, v in own.state_dict().items()}
    with pytest.raises(UserError, match=f"got {name}; spark needs a convnet.*{why}"):
        SparK(own, **SMALL)
    assert [type(m) for m in own.modules()] == kinds
    assert all(torch.equal(v, state[k]) for k, v in own.state_dict().items())


@pytest.mark.parametrize("name", ["hgnetv2_b0", "convformer_s18"])
def test_activations_and_affine_layers_with_parameters_are_masked_too(name):
    """Their biases start at zero, and fill hidden positions as soon as they are trained."""
    module = spark(name)
    with torch.no_grad():
        for p in module.backbone.parameters():
            p.add_(0.05 * torch.randn_like(p))
    images = torch.randn(2, 3, 64, 64)
    masking = module.mask(images)
    for m in module.encode(images, masking):
        assert not (m * (1 - module.active.map(tuple(m.shape[2:])))).any()


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (32, "makes 1x1 positions.*try 64"),
        (33, "makes 2x2 positions.*whole squares.*try 64"),
        (72, "no whole multiple of its last one's 3x3.*try 64"),
    ],
)
def test_pictures_whose_squares_do_not_fit_the_strides_are_told(size, why):
    own = create("resnet10t", image_size=size)
    kinds = [type(m) for m in own.modules()]
    with pytest.raises(UserError, match=f"image_size: got {size}x{size}.*{why}"):
        SparK(own, image_size=size)
    assert [type(m) for m in own.modules()] == kinds


def test_making_it_changes_no_weight_no_statistic_and_no_random_state():
    own = create("seresnet50", image_size=64).train()
    state = {k: v.clone() for k, v in own.state_dict().items()}
    SparK(own, **SMALL)
    assert all(torch.equal(v, state[k]) for k, v in own.state_dict().items())
    assert own.training


def test_a_network_that_another_method_holds_is_not_taken_twice():
    own = create("resnet10t", image_size=64)
    module = SparK(own, **SMALL)
    with pytest.raises(UserError, match="still prepared by another method; call that method's release"):
        SparK(own, **SMALL)
    SparK(module.release(), **SMALL)


def test_one_visible_value_a_channel_is_refused_as_torch_does():
    module = spark(mask_ratio=0.75).train()
    with pytest.raises(ValueError, match="more than 1 visible value per channel"):
        module.training_step(torch.randn(1, 3, 64, 64), 0)  # one of 2x2 positions is visible in the last layers


def test_checkpointed_activations_give_the_same_gradients_and_the_mask_is_gone_afterwards():
    grads = []
    for checkpointed in (False, True):
        module = spark(image_size=96)
        module.backbone.set_grad_checkpointing(checkpointed)
        module.train()
        torch.manual_seed(1)
        module.training_step(torch.randn(4, 3, 96, 96), 0).backward()
        grads.append(torch.cat([p.grad.flatten() for p in module.backbone.parameters() if p.grad is not None]))
        assert not module.active.on
    assert torch.allclose(grads[0], grads[1], atol=1e-5)


def test_pictures_need_not_be_square_and_may_have_other_channels():
    module = SparK("resnet10t", image_size=(64, 96), channels=5, decoder_dim=32)
    loss = module.training_step(torch.randn(2, 5, 64, 96), 0)
    loss.backward()
    assert module.grid == (2, 3)
    assert loss.isfinite()


@pytest.mark.parametrize("stride", [8, 14, 7])
def test_the_decoder_ends_with_whole_pixels_for_any_stride(stride):
    decoder = UNetDecoder(32, stride, 3)
    maps = [torch.randn(2, 32, 2, 3)] + [None] * (len(decoder.widths) - 1)
    assert decoder(maps).shape == (2, 3, 2 * stride, 3 * stride)


@pytest.mark.slow
def test_blocks_compile_once_and_give_the_same_losses():
    """Other masks are other numbers in the same program."""
    from torch._dynamo.utils import counters

    from visiontune.build.modules import compile_blocks

    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = SparK(CONV["name"], image_size=64, backbone_args=CONV["args"], decoder_dim=32)
        if compiled:
            compile_blocks(module.backbone)
        torch.manual_seed(1)
        found, graphs = [], []
        for _ in range(4):
            loss = module.training_step(torch.randn(2, 3, 64, 64), 0)
            loss.backward()
            found.append(loss.item())
            graphs.append(counters["stats"]["unique_graphs"])
        losses.append(found)
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4)
    assert graphs[-1] == graphs[1] > 0


def test_no_position_is_visible_that_the_levels_do_not_share():
    """The networks' own layers see the mask at each resolution as whole squares of the coarsest one."""
    module = spark(image_size=128)
    images = torch.randn(1, 3, 128, 128)
    module.encode(images, module.mask(images))
    coarse = module.active.map((4, 4))
    for size in module.active.sizes:
        cell = size[0] // 4
        assert torch.equal(module.active.map(size), coarse.repeat_interleave(cell, 2).repeat_interleave(cell, 3))
    assert isinstance(module.backbone, nn.Module)
    assert len(levels(module.backbone, images)) == 5


@pytest.mark.parametrize("size", [64, 96])
def test_the_size_given_counts_and_not_the_one_that_timm_noted_for_a_module_of_ones_own(size):
    own = timm.create_model("resnet18", num_classes=0)  # its pretrained_cfg says 224
    module = SparK(own, image_size=size, decoder_dim=16)
    assert module.grid == (size // 32, size // 32)
    assert module.training_step(torch.randn(4, 3, size, size), 0).isfinite()
    assert module.spec.image_size == size


def test_a_released_module_does_not_train_on():
    module = spark()
    module.release()
    with pytest.raises(UserError, match=r"SparK: release\(\) has given its backbone back; make a new one"):
        module.training_step(torch.randn(2, 3, 64, 64), 0)


@pytest.mark.parametrize(
    ("option", "why"), [({"mask_ratio": 1.5}, "below 1"), ({"decoder_dim": 0}, "above 0"), ({"mask_ratio": "a"}, "above 0")]
)
def test_options_are_held_to_their_ranges_without_a_recipe_too(option, why):
    (name,) = option
    with pytest.raises(UserError, match=f"SparK: {name}: got .*; expected a number {why}"):
        spark(**option)
