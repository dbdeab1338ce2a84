import pytest
import torch

from visiontune import MAE
from visiontune.backbones import create, embed
from visiontune.errors import UserError
from visiontune.masking import random_masking
from visiontune.pretrain.mae import sincos_positions

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def mae(image_size=32, mask_ratio=0.75, **args) -> MAE:
    torch.manual_seed(0)
    return MAE("vit_tiny_patch16_224", image_size=image_size, backbone_args=SMALL | args, mask_ratio=mask_ratio, **DECODER).eval()


def test_what_lies_under_hidden_patches_does_not_reach_the_encoder():
    module, images = mae(), torch.randn(2, 3, 32, 32)
    masking = random_masking(2, 16, 0.75)
    hidden = masking.mask.reshape(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(module.encode(images, masking), module.encode(other, masking))


@pytest.mark.parametrize(
    "args", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 4}, {"reg_tokens": 2, "no_embed_class": True}]
)
def test_dropping_tokens_equals_hiding_them_from_attention(args):
    module, images = mae(**args), torch.randn(2, 3, 32, 32)
    masking = random_masking(2, 16, 0.5)
    vit, P = module.backbone, module.backbone.num_prefix_tokens
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    seen = torch.cat([torch.ones(2, P, dtype=torch.bool), ~masking.mask], dim=1)
    for block in vit.blocks:
        x = block(x, attn_mask=seen[:, None, None, :].expand(-1, -1, P + 16, -1))
    x = vit.norm(x)
    dropped = module.encode(images, masking)
    for b in range(2):
        kept = torch.cat([torch.arange(P), masking.visible[b] + P])
        assert torch.allclose(dropped[b], x[b, kept], atol=1e-5)


def test_a_mask_ratio_of_nearly_nothing_hides_nothing_and_the_encoder_is_timms():
    module, images = mae(), torch.randn(2, 3, 32, 32)
    masking = random_masking(2, 16, 0.0)
    out = module.encode(images, masking)[:, 1:]
    back = torch.empty_like(out).scatter_(1, masking.visible.unsqueeze(-1).expand_as(out), out)
    assert torch.allclose(back, module.backbone.forward_features(images)[:, 1:], atol=1e-5)


def test_the_embedding_is_the_mean_of_the_normed_patch_tokens_and_timm_agrees():
    module, images = mae(), torch.randn(2, 3, 32, 32)
    expected = module.backbone.forward_features(images)[:, 1:].mean(dim=1)
    assert torch.allclose(module.represent(images), expected, atol=1e-6)
    assert torch.allclose(embed(module.backbone, images), expected, atol=1e-6)


def test_painted_patches_stand_where_they_were_hidden():
    """A decoder that paints each patch's number shows whether order is kept."""
    module = mae()
    masking = random_masking(1, 16, 0.75)
    painted = module.decode(module.encode(torch.randn(1, 3, 32, 32), masking), masking)
    shuffled = type(masking)(visible=masking.visible.flip(1), hidden=masking.hidden.flip(1))
    again = module.decode(module.encode(torch.zeros(1, 3, 32, 32), shuffled), shuffled)
    assert painted.shape == again.shape == (1, 12, 8 * 8 * 3)
    images = torch.randn(1, 3, 32, 32)
    straight = module.decode(module.encode(images, masking), masking)
    flipped = module.decode(module.encode(images, shuffled), shuffled)
    assert torch.allclose(straight, flipped.flip(1), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 64), (48, 32)])
def test_pictures_need_not_be_square(size):
    module = mae(image_size=size)
    assert module.grid == (size[0] // 8, size[1] // 8)
    loss = module.training_step(torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8), 0)
    loss.backward()
    assert loss.isfinite()
    rows = module.pictures(torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8))
    assert {k: tuple(v.shape) for k, v in rows.items()} == dict.fromkeys(("original", "masked", "painted"), (2, 3, *size))


def test_every_trained_parameter_gets_a_gradient():
    module = mae()
    module.training_step(torch.randn(2, 3, 32, 32), 0).backward()
    lacking = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert not module.backbone.pos_embed.requires_grad


def test_positions_are_fixed_sines_with_zeros_for_the_class_token():
    module = mae()
    assert torch.equal(module.backbone.pos_embed, sincos_positions(32, (4, 4), 1))
    table = sincos_positions(8, (2, 3), 0)[0]
    assert torch.allclose(table[4, :2], torch.tensor([1.0, 0.01]).sin())  # row 1, column 1: the column's sines come first
    assert torch.allclose(table[5, :2], torch.tensor([2.0, 0.02]).sin())
    assert torch.allclose(table[5, 4:6], torch.tensor([1.0, 0.01]).sin())  # then the row's


def test_loss_falls_on_one_fixed_batch():
    module = mae().train()
    images, masking = torch.randn(4, 3, 32, 32), random_masking(4, 16, 0.75)
    module.mask = lambda _: masking
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = module.training_step(images, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_backbones_that_do_not_fit_are_told_what_does():
    with pytest.raises(UserError, match="resnet18; mae needs a plain vision transformer.*method: simclr"):
        MAE("resnet18", image_size=32)
    with pytest.raises(UserError, match="decoder_heads"):
        MAE(create("vit_tiny_patch16_224", image_size=32), image_size=32, decoder_dim=16, decoder_heads=3)


def test_a_size_that_patches_do_not_divide_is_told():
    with pytest.raises(UserError, match="image_size: got 36x36, which patches of 8x8 pixels do not divide"):
        mae(image_size=36)


def test_position_embeddings_of_a_trained_module_of_ones_own_stay():
    own = create("vit_tiny_patch16_224", image_size=32, args=SMALL)
    before = own.pos_embed.detach().clone()
    assert torch.equal(MAE(own, image_size=32, **DECODER).backbone.pos_embed, before)
