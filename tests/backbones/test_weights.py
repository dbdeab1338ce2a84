"""Weights from every usual wrapping; whole or not at all."""

import pickle

import pytest
import safetensors.torch
import timm
import torch

from visiontune import backbones
from visiontune.errors import UserError


def vit(**more):
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | more
    size = args.pop("image_size", 32)
    return backbones.create("vit_tiny_patch16_224", image_size=size, args=args)


def same(a, b, without=()):
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x if not k.startswith(tuple(without) or ("\0",)))


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    "DataParallel": lambda s: {"model": prefixed(s, "module.")},
    "Lightning": lambda s: {"state_dict": prefixed(s, "backbone."), "hyper_parameters": {"lr": 0.1}},
    "encoder": lambda s: {"state_dict": prefixed(s, "encoder.") | {"projector.0.weight": torch.ones(2, 2)}},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "MoCo": lambda s: {"state_dict": prefixed(s, "module.base_encoder.")},
    "deep": lambda s: {"checkpoint": {"net": prefixed(s, "a.b.c.")}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_usual_wrappings(tmp_path, wrapping, suffix):
    source, target = vit(), vit()
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](source.state_dict()), path)
    assert not same(source, target)
    report = backbones.load_weights(target, path)
    assert same(source, target)
    assert report.matched == len(source.state_dict())
    assert (report.resized, report.missing, report.by_order) == ([], [], False)


def test_safetensors(tmp_path):
    source, target = vit(), vit()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbones.load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_of_student_and_teacher_the_teacher_is_taken(tmp_path):
    student, teacher, target = vit(), vit(), vit()
    state = {"student": prefixed(student.state_dict(), "module.backbone."), "teacher": prefixed(teacher.state_dict(), "backbone.")}
    torch.save(state, tmp_path / "dino.pth")
    report = backbones.load_weights(target, tmp_path / "dino.pth")
    assert same(teacher, target)
    assert "teacher" in report.source


def test_a_file_laid_out_as_facebookresearch_mae_is_known_by_its_decoder(tmp_path):
    source, target = vit(), vit()
    state = source.state_dict() | {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pred.weight": torch.zeros(4, 16),
        "decoder_embed.bias": torch.zeros(16),
    }
    torch.save({"model": state}, tmp_path / "mae.pth")
    report = backbones.load_weights(target, tmp_path / "mae.pth")
    assert same(source, target)
    assert report.layout == "mae"
    assert len(report.ignored) == 3


def test_a_classifier_is_left_out_on_either_side(tmp_path):
    source, target = timm.create_model("test_resnet", num_classes=7), timm.create_model("test_resnet", num_classes=3)
    before = target.get_classifier().weight.clone()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    report = backbones.load_weights(target, tmp_path / "w.pt")
    assert same(source, target, without=["fc."])
    assert target.get_classifier().weight.equal(before)
    assert sorted(report.ignored) == ["fc.bias", "fc.weight"]
    headless = timm.create_model("test_resnet", num_classes=0)
    torch.save(headless.state_dict(), tmp_path / "h.pt")
    backbones.load_weights(target, tmp_path / "h.pt")
    assert same(headless, target, without=["fc."])


def test_position_embeddings_and_patches_are_resized_and_named(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "w.pt")
    report = backbones.load_weights(vit(image_size=64), tmp_path / "w.pt")
    assert report.resized == ["pos_embed (1, 17, 32) -> (1, 65, 32)"]
    report = backbones.load_weights(vit(patch_size=16, image_size=64), tmp_path / "w.pt")
    assert any(r.startswith("patch_embed.proj.weight") for r in report.resized)


def test_three_channels_are_adapted_to_another_number(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    grey = backbones.create("test_resnet", channels=1)
    report = backbones.load_weights(grey, tmp_path / "w.pt")
    assert len(report.resized) == 1
    assert "1, 3, 3)" in report.resized[0]


def test_other_names_are_taken_by_order_only_if_every_shape_agrees(tmp_path):
    source, target = timm.create_model("test_resnet"), timm.create_model("test_resnet", num_classes=0)
    state = source.state_dict()
    torch.save({f"_layer{i}.{k.rsplit('.', 1)[1]}": v for i, (k, v) in enumerate(state.items())}, tmp_path / "w.pt")
    report = backbones.load_weights(target, tmp_path / "w.pt")
    assert same(target, source)
    assert report.by_order
    swapped = list(state.items())
    swapped[0], swapped[6] = swapped[6], swapped[0]
    torch.save({f"_layer{i}.{k.rsplit('.', 1)[1]}": v for i, (k, v) in enumerate(swapped)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="no name agrees"):
        backbones.load_weights(target, tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "are not in the file: blocks.2"),
        ({"depth": 1}, "of the file have no place: blocks.1"),
        ({"embed_dim": 64}, "have another shape"),
    ],
)
def test_a_backbone_that_is_not_whole_in_the_file_stays_as_it_was(tmp_path, change, message):
    torch.save(vit().state_dict(), tmp_path / "w.pt")
    target = vit(**change)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        backbones.load_weights(target, tmp_path / "w.pt")
    assert "backbone.partial: true" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_partial_loads_what_fits_and_lists_the_rest(tmp_path):
    source = vit()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    target = vit(depth=3)
    report = backbones.load_weights(target, tmp_path / "w.pt", partial=True)
    assert len(report.missing) == 12
    assert all(m.startswith("blocks.2") for m in report.missing)
    assert "NOT LOADED" in "\n".join(report.lines())
    assert torch.equal(target.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_a_name_that_contradicts_the_weights_is_told_with_both(tmp_path):
    from visiontune.export import save_timm_folder

    source = backbones.create("test_resnet", stem="small")
    save_timm_folder(source, tmp_path / "w", source.spec, mean=[0.5] * 3, std=[0.5] * 3)
    for target in (vit(), backbones.create("resnet18", stem="small"), backbones.create("resnet18")):
        wanted = f"backbone.name: got {target.spec.name}, but .*w was made as test_resnet.*Leave backbone.name out, or say test_resnet"
        with pytest.raises(UserError, match=wanted):
            backbones.load_weights(target, tmp_path / "w")


def test_another_architecture_is_told_with_examples_of_both_sides(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"it holds conv1.*needed cls_token"):
        backbones.load_weights(vit(), tmp_path / "w.pt")


class Surprise:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_files_that_are_no_weights_are_told_apart(tmp_path, capsys):
    (tmp_path / "notes.pth").write_text("these are my notes\n" * 9)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"x": Surprise()}))
    torch.save({"model": Surprise()}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("notes.pth", "begins with b'these are my notes"),
        ("empty.pt", "it is empty"),
        ("cut.safetensors", "not a weights file|holds no named tensors"),
        ("code.pt", "could run code|not a weights file"),
        ("code.pth", "could run code"),
        ("list.pt", "holds no named tensors"),
        ("missing.pt", "no file .*missing.pt; in .* there is .*code.pt"),
    ):
        with pytest.raises(UserError, match=message):
            backbones.load_weights(vit(), tmp_path / name)
    assert "never run" not in capsys.readouterr().out


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "something.txt").write_text("x")
    with pytest.raises(UserError, match="something.txt"):
        backbones.load_weights(vit(), tmp_path)


@pytest.mark.parametrize(("old", "new"), [((16, 64), (32, 32)), ((32, 64), (64, 128)), ((16, 64), (32, 128))])
def test_position_embeddings_of_pictures_that_are_not_square_keep_their_rows_and_columns(tmp_path, old, new):
    """The folder's config.json tells the grid: the same number of patches in another shape is resized, too."""
    from timm.layers import resample_abs_pos_embed

    from visiontune.export import save_timm_folder

    source, target = vit(image_size=old), vit(image_size=new)
    save_timm_folder(source, tmp_path / "w", source.spec, mean=[0.5] * 3, std=[0.5] * 3)
    report = backbones.load_weights(target, tmp_path / "w")
    grids = [[size[0] // 8, size[1] // 8] for size in (new, old)]
    expected = resample_abs_pos_embed(source.pos_embed, grids[0], old_size=grids[1], num_prefix_tokens=1)
    assert torch.equal(target.pos_embed, expected)
    assert len(report.resized) == 1
