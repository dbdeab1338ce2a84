import pytest
import torch
import transformers
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tests.conftest import losses_on_one_batch
from visiontune import MAE
from visiontune.backbones import create, embed
from visiontune.backbones.positions import sincos_positions
from visiontune.errors import UserError
from visiontune.losses import patchify, pixel_loss
from visiontune.masking import Masking, random_masking, take

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
    assert {k: tuple(v.shape) for k, v in rows.items()} == dict.fromkeys(("original", "masked", "painted", "pasted"), (2, 3, *size))


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


@pytest.mark.parametrize("grid", [(4, 4), (14, 10)])
def test_positions_are_laid_out_as_in_the_implementation_of_transformers(grid):
    """But for the order of the halves: the authors' code, and so their weights, and lightly's, have the column first."""
    theirs = build_2d_sinusoidal_position_embedding(*grid, embed_dim=32, cls_token=True)
    assert torch.allclose(sincos_positions(32, grid, prefix=1)[0], theirs.roll(16, dims=1), atol=1e-6)


def test_the_loss_falls_and_reaches_every_trained_parameter():
    losses = losses_on_one_batch(mae().train(), torch.randn(4, 3, 32, 32))
    assert losses[-1] < losses[0]


def test_backbones_that_do_not_fit_are_told_what_does():
    with pytest.raises(UserError, match="resnet18; mae needs a plain vision transformer.*use method: spark"):
        MAE("resnet18", image_size=64)
    with pytest.raises(UserError, match="got swin_tiny_patch4_window7_224; mae needs a plain vision transformer.*use method: simmim"):
        MAE("swin_tiny_patch4_window7_224", backbone_args={"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 1]}, image_size=56)
    with pytest.raises(UserError, match="decoder_heads"):
        MAE(create("vit_tiny_patch16_224", image_size=32), image_size=32, decoder_dim=16, decoder_heads=3)


def test_a_size_that_patches_do_not_divide_is_told():
    with pytest.raises(UserError, match="image_size: got 36x36, which patches of 8x8 pixels do not divide"):
        mae(image_size=36)


def test_position_embeddings_of_a_trained_module_of_ones_own_stay():
    own = create("vit_tiny_patch16_224", image_size=32, args=SMALL)
    before = own.pos_embed.detach().clone()
    assert torch.equal(MAE(own, image_size=32, **DECODER).backbone.pos_embed, before)


FAMILIES = {
    "register tokens": ("vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "rotary positions, mixed": ("vit_small_patch16_rope_mixed_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "rotary and learned positions": ("eva02_tiny_patch14_224", {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "no class token": ("vit_tiny_patch16_224", {**SMALL, "class_token": False}),
    "two tokens": ("deit_tiny_distilled_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "pooling by attention": ("vit_base_patch16_siglip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_plain_vits_of_every_kind_see_visible_patches_in_their_places(kind):
    """Rotary and learned positions go with the patches: visible ones in any order give the same, and all of them the whole."""
    name, args = FAMILIES[kind]
    torch.manual_seed(0)
    module = MAE(name, image_size=(48, 64), backbone_args=args, **DECODER).eval()
    images, prefix = torch.randn(2, 3, 48, 64), module.backbone.num_prefix_tokens
    N = module.grid[0] * module.grid[1]
    everything = module.encode(images, random_masking(2, N, 0.0))
    whole = module.backbone.forward_features(images)
    assert torch.allclose(everything[:, prefix:].sum(1), whole[:, prefix:].sum(1), atol=1e-4)
    masking = random_masking(2, N, 0.5)
    turned = type(masking)(visible=masking.visible.flip(1), hidden=masking.hidden)
    a, b = module.encode(images, masking), module.encode(images, turned)
    assert torch.allclose(a[:, prefix:], b[:, prefix:].flip(1), atol=1e-5)
    module.training_step(images, 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_an_own_network_is_given_back_as_it_was():
    own = create("vit_base_patch16_siglip_224", image_size=32, args={"embed_dim": 32, "depth": 1, "num_heads": 2})
    before = {n: p.requires_grad for n, p in own.named_parameters()}, own.patch_drop
    module = MAE(own, image_size=32, **DECODER)
    left_out = [n for n, p in own.named_parameters() if not p.requires_grad]
    assert "pos_embed" in left_out
    assert any(n.startswith("attn_pool") for n in left_out)
    assert module.release() is own
    assert ({n: p.requires_grad for n, p in own.named_parameters()}, own.patch_drop) == before


@pytest.mark.parametrize("masking", ["random", "block"])
def test_other_masks_and_channels(masking):
    module = MAE("vit_tiny_patch16_224", image_size=32, channels=5, backbone_args=SMALL, masking=masking, **DECODER)
    loss = module.training_step(torch.randn(2, 5, 32, 32), 0)
    assert loss.isfinite()
    assert module.mask(torch.zeros(3, 5, 32, 32)).hidden.shape == (3, 12)


def test_the_loss_does_not_depend_on_what_is_painted_over_visible_patches():
    module, images = mae(), torch.randn(2, 3, 32, 32)
    masking = module.mask(images)
    encoded = module.encode(images, masking)
    everything = module.decode(encoded, masking, everything=True)
    hidden = module.decode(encoded, masking)  # visible ones are not even painted
    target = take(patchify(images, (8, 8)), masking.hidden)
    at = masking.mask.unsqueeze(-1)
    for other in (everything, torch.where(at, everything, torch.randn_like(everything))):
        assert pixel_loss(take(other, masking.hidden), target).item() == pytest.approx(pixel_loss(hidden, target).item(), abs=1e-6)


OF_TRANSFORMERS = {
    "backbone.cls_token": "vit.embeddings.cls_token",
    "backbone.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "backbone.blocks": "vit.layers",
    "backbone.norm": "vit.layernorm",
    "decoder_embed": "decoder.decoder_embed",
    "mask_token": "decoder.mask_token",
    "decoder_blocks": "decoder.decoder_layers",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
}


def weights_of_transformers(theirs: torch.nn.Module, ours: MAE) -> dict[str, torch.Tensor]:
    named, found = theirs.state_dict(), {}
    for name, _ in ours.named_parameters():
        other = name
        for mine, its in OF_TRANSFORMERS.items():
            if other.startswith(mine + ".") or other == mine or (mine + "." in other and "blocks" not in mine and "backbone" not in mine):
                other = other.replace(mine, its, 1)
        if "attn.qkv" in other:
            parts = [other.replace("attn.qkv", f"attention.{part}_proj") for part in "qkv"]
            found[name] = torch.cat([named[p] for p in parts])
        elif name != "backbone.pos_embed":
            found[name] = named[other]
    return found


def test_it_equals_the_implementation_of_transformers():
    """Same weights, same noise: the loss of `ViTMAEForPreTraining`, whose position embeddings are given it (built anew they are zero)."""
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64,
        layer_norm_eps=1e-6, mask_ratio=0.75, norm_pix_loss=True,
    )  # fmt: skip
    theirs, ours = transformers.ViTMAEForPreTraining(config).eval(), mae()
    with torch.no_grad():
        theirs.vit.embeddings.position_embeddings.copy_(ours.backbone.pos_embed)
        theirs.decoder.decoder_pos_embed.copy_(torch.cat([torch.zeros(1, 1, 16), ours.decoder_pos], dim=1))
    missing, unexpected = ours.load_state_dict(weights_of_transformers(theirs, ours), strict=False)
    assert (missing, unexpected) == (["mean", "std", "backbone.pos_embed"], [])
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    order = noise.argsort(dim=1)
    masking = Masking(visible=order[:, :4], hidden=order[:, 4:])
    ours.mask = lambda *_: masking
    out = theirs(images, noise=noise)
    assert out.mask.bool().equal(masking.mask)
    assert ours.training_step(images, 0).item() == pytest.approx(out.loss.item(), abs=1e-5)
    painted = ours.decode(ours.encode(images, masking), masking, everything=True)
    assert torch.allclose(painted, out.logits, atol=1e-4)


def test_a_run_says_what_came_of_the_decoder(tmp_path):
    module = mae()
    torch.save(module.backbone.state_dict(), tmp_path / "backbone.pt")
    assert "start at random" in module.load_rest(str(tmp_path / "backbone.pt"))[0]
    torch.save({"state_dict": module.state_dict()}, tmp_path / "last.ckpt")
    assert "19 tensors of decoder_blocks, decoder_embed" in module.load_rest(str(tmp_path / "last.ckpt"))[0]


def test_a_published_checkpoint_goes_on_with_its_decoder(tmp_path):
    """facebookresearch/mae's names: an encoder without prefix, `decoder_*` beside it, all under `model`."""
    torch.manual_seed(1)
    teacher = mae()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    state = {k.removeprefix("backbone."): v for k, v in teacher.state_dict().items() if k not in ("mean", "std")}
    state["decoder_pos_embed"] = torch.cat([torch.zeros(1, 1, 16), teacher.decoder_pos], dim=1)
    torch.save({"model": state}, tmp_path / "mae.pth")
    again = MAE("vit_tiny_patch16_224", image_size=32, backbone_args=SMALL, weights=str(tmp_path / "mae.pth"), **DECODER).eval()
    images, masking = torch.randn(2, 3, 32, 32), random_masking(2, 16, 0.75)
    a, b = (m.decode(m.encode(images, masking), masking) for m in (teacher, again))
    assert torch.equal(a, b)
    with pytest.warns(UserWarning, match=r"NOT loaded from .*mae.pth, they start at random; .*\(16, 32\), needed \(32, 32\)"):
        MAE(
            "vit_tiny_patch16_224", image_size=32, backbone_args=SMALL, weights=str(tmp_path / "mae.pth"), **(DECODER | {"decoder_dim": 32})
        )


def test_what_hides_nothing_or_is_no_option_is_told():
    with pytest.raises(UserError, match="mask_ratio: got 0.75 of 1x1 patches, which hides none; take a larger picture"):
        mae(image_size=8)
    with pytest.raises(UserError, match="MAE: masking: got 'blok'; expected one of 'random', 'block'"):
        MAE("vit_tiny_patch16_224", image_size=32, backbone_args=SMALL, masking="blok", **DECODER)
    with pytest.raises(UserError, match="MAE: decoder_depth: got 0; expected a number above 0"):
        MAE("vit_tiny_patch16_224", image_size=32, backbone_args=SMALL, **(DECODER | {"decoder_depth": 0}))
    assert mae().notes == ["mask: 12 of 16 patches hidden"]
