import pytest
import torch
import transformers

from tests.conftest import losses_on_one_batch
from visiontune import SimMIM
from visiontune.backbones import create
from visiontune.errors import UserError
from visiontune.masking import Masking

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
# With a layer that embeds separate patches, and with a stem of overlapping convolutions.
KINDS = {
    "vit": ("vit_tiny_patch16_224", 32, VIT),
    "swin": ("swin_tiny_patch4_window7_224", 32, SWIN),
    "swinv2": ("swinv2_tiny_window8_256", 32, SWIN),
    "pvt": ("pvt_v2_b0", 64, {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
    "coatnet": ("coatnet_nano_rw_224", 64, {}),
    "resnet": ("resnet10t", 64, {}),
}


def simmim(kind: str, **more) -> SimMIM:
    torch.manual_seed(0)
    name, size, args = KINDS[kind]
    return SimMIM(name, image_size=size, backbone_args=args, mask_size=size // 4, **more).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_hidden_squares_change_nothing(kind):
    module = simmim(kind)
    images = torch.randn(2, 3, *module.picture_size)
    masking = module.mask(images)
    hidden = masking.mask.view(2, 1, 4, 4).repeat_interleave(images.shape[2] // 4, 2).repeat_interleave(images.shape[3] // 4, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(module.paint_all(images, masking), module.paint_all(other, masking))


@pytest.mark.parametrize("kind", ["vit", "swin", "swinv2"])
def test_the_mask_token_stands_where_patches_are_hidden_and_nowhere_else(kind):
    module = simmim(kind)
    seen = []
    module.backbone.patch_embed.register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.randn(2, 3, *module.picture_size)
    masking = module.mask(images)
    module.paint_all(images, masking)
    module.backbone.patch_embed(images)
    masked, plain = (x.flatten(1, -2) for x in seen)  # (B, N, D)
    grid = module.patch_grid
    hidden = masking.mask.view(2, 4, 4).repeat_interleave(grid[0] // 4, 1).repeat_interleave(grid[1] // 4, 2).flatten(1)
    assert torch.equal(masked[hidden], module.mask_token.expand(int(hidden.sum()), -1))
    assert torch.equal(masked[~hidden], plain[~hidden])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_reaches_every_trained_parameter(kind):
    module = simmim(kind).train()
    losses = losses_on_one_batch(module, torch.randn(4, 3, *module.picture_size))
    assert losses[-1] < losses[0]


def test_it_equals_the_implementation_of_transformers():
    """The loss of `ViTForMaskedImageModeling`: L1 over hidden pixels, from the same painted picture."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8, encoder_stride=8
    )
    theirs = transformers.ViTForMaskedImageModeling(config).eval()
    ours = simmim("vit")
    images = torch.randn(2, 3, 32, 32)
    masking = ours.mask(images)
    ours.mask = lambda *_: masking
    out = theirs(images, bool_masked_pos=masking.mask)
    ours.paint_all = lambda *_: out.reconstruction
    assert ours.training_step(images, 0).item() == pytest.approx(out.loss.item(), abs=1e-5)
    # its head is ours: one convolution of 1x1 and a pixel shuffle
    assert [type(m) for m in ours.head] == [type(m) for m in theirs.decoder]
    assert [tuple(p.shape) for p in ours.head.parameters()] == [tuple(p.shape) for p in theirs.decoder.parameters()]


def test_the_loss_does_not_depend_on_what_is_painted_over_visible_squares():
    module, images = simmim("swin"), torch.randn(2, 3, 32, 32)
    masking = module.mask(images)
    module.mask = lambda *_: masking
    painted = module.paint_all(images, masking)
    hidden = masking.mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    losses = []
    for other in (painted, torch.where(hidden, painted, torch.randn_like(painted))):
        module.paint_all = lambda *_, other=other: other
        losses.append(module.training_step(images, 0).item())
    assert losses[0] == losses[1]


def test_with_nothing_hidden_the_network_is_timms():
    module, images = simmim("swin"), torch.randn(2, 3, 32, 32)
    nothing = Masking(visible=torch.arange(16).expand(2, 16), hidden=torch.empty(2, 0, dtype=torch.long))
    painted = module.paint_all(images, nothing)
    features = module.backbone.forward_features(images).permute(0, 3, 1, 2)
    assert torch.equal(painted, module.head(features))


def test_an_own_network_is_given_back_as_it_was_and_embeds_clean_pictures():
    own = create("swin_tiny_patch4_window7_224", image_size=32, args=SWIN)
    kinds, names = [type(m) for m in own.modules()], list(own.state_dict())
    images = torch.randn(2, 3, 32, 32)
    before = own.eval()(images)
    module = SimMIM(own, image_size=32, mask_size=8)
    assert list(own.state_dict()) == names
    module.training_step(images, 0)
    torch.testing.assert_close(module.eval().represent(images), before)
    assert module.release() is own
    assert [type(m) for m in own.modules()] == kinds
    assert all(p.requires_grad for p in own.parameters())


def test_squares_that_do_not_fit_and_backbones_without_a_grid_are_told():
    with pytest.raises(UserError, match="mask_size: got 12; pictures of 32x32 are whole numbers of squares of 2, 4, 8, 16 pixels"):
        SimMIM("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, mask_size=12)
    with pytest.raises(UserError, match="mask_size: got 4, which vit_.*'s patches of 8 pixels do not divide.*of 8, 16"):
        SimMIM("vit_tiny_patch16_224", image_size=32, backbone_args=VIT, mask_size=4)
    with pytest.raises(UserError, match="mask_size: got 32; pictures of 32x32 are whole"):
        SimMIM("vit_tiny_patch16_224", image_size=32, backbone_args=VIT)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "efficientvit_m0"])
def test_making_it_changes_no_statistic_and_leaves_no_mask_behind(name):
    own = create(name, image_size=64).train()
    state = {k: v.clone() for k, v in own.state_dict().items()}
    module = SimMIM(own, image_size=64, mask_size=16)
    assert all(torch.equal(v, state[k]) for k, v in own.state_dict().items())
    images = torch.randn(4, 3, 64, 64)
    module.training_step(images[:2], 0)
    own.eval()
    embedding = own(images)  # another number of pictures than were masked
    module.release()
    assert torch.equal(own(images), embedding)


def test_a_convnet_is_told_of_the_method_that_is_made_for_it():
    told = "method: spark is made for convnets"
    assert [kind for kind in ("resnet", "swin", "vit") if any(told in n for n in simmim(kind).notes)] == ["resnet"]
