"""A small stem: strides, weights, what it is not for, and how it travels."""

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2dSame, StdConv2d
from torch import nn

from visiontune import SimCLR, SparK, backbones
from visiontune.errors import UserError
from visiontune.export import save_timm_folder
from visiontune.predict import load

AFTER = {  # strides of the levels on pictures of 64 pixels
    "resnet18": (1, 2, 4, 8), "resnet10t": (1, 2, 4, 8), "resnetblur50": (1, 2, 4, 8), "resnetrs50": (1, 2, 4, 8),
    "resnext26ts": (1, 2, 4, 8), "legacy_seresnet18": (1, 2, 4, 8), "densenet121": (1, 2, 4, 8), "resnetv2_50x1_bit": (1, 2, 4, 8),
    "test_nfnet": (1, 2, 4, 8), "convnext_nano_ols": (1, 2, 4, 8), "regnety_002": (1, 2, 4, 8, 16), "nf_regnet_b0": (1, 2, 4, 8, 16),
    "test_efficientnet": (1, 2, 4, 8, 16), "tf_mobilenetv3_small_minimal_100": (1, 2, 4, 8, 16), "repvgg_a0": (1, 2, 4, 8, 16),
    "vgg11": (1, 2, 4, 8, 16),
}  # fmt: skip


def small(name, **more):
    return backbones.create(name, stem="small", **more)


@pytest.mark.parametrize("name", AFTER)
def test_maps_are_2_to_4_times_as_fine_and_parameters_keep_their_names(name):
    model, timms = small(name), backbones.create(name)
    assert model.spec.stem == "small"
    assert backbones.describe(model, 64).strides == AFTER[name]
    assert model.state_dict().keys() == timms.state_dict().keys()
    assert model.training


def test_a_resnet_has_the_stem_of_cifar():
    model = small("resnet18")
    conv = model.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.weight.shape) == ((3, 3), (1, 1), (1, 1), (64, 3, 3, 3))
    assert isinstance(model.maxpool, nn.Identity)
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)  # He et al. 2015, by the fan-out, as timm draws it
    assert "kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in str(conv)
    grey = small("resnet18", channels=1)
    assert grey.conv1.weight.shape == (64, 1, 3, 3)


def test_convolutions_stay_of_their_kind_and_pad_evenly():
    assert type(small("resnetv2_50x1_bit").stem.conv) is StdConv2d
    conv = small("dm_nfnet_f0").stem.conv1
    assert isinstance(conv, ScaledStdConv2dSame)
    assert conv(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 16, 16)
    scaled, timms = small("nf_resnet26").stem.conv, backbones.create("nf_resnet26").stem.conv
    assert scaled.scale * 27**0.5 == pytest.approx(timms.scale * 147**0.5)  # gamma, whatever the kernel


def test_branches_are_joined_with_the_new_stride():
    from timm.utils import reparameterize_model

    model = small("repvgg_a0").eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(reparameterize_model(model)(images), model(images), atol=1e-5)


def test_it_trains_from_the_first_convolution_on():
    module = SimCLR("resnet10t", stem="small", image_size=32, backbone_args={"channels": [8, 8, 16, 16]}, projector_hidden=8)
    assert module.backbone.conv1[0].stride == (1, 1)
    module.training_step([torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)], 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_spark_hides_positions_of_the_finer_last_map():
    module = SparK("resnet10t", stem="small", image_size=32, backbone_args={"channels": [8, 8, 16, 16]}, decoder_dim=16)
    images = torch.randn(2, 3, 32, 32)
    assert module.mask(images).mask.shape == (2, 16)
    module.training_step(images, 0).backward()
    assert module.release().conv1[0].stride == (1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_convnext", r"it begins with patches of 4 pixels.*backbone.args: \{patch_size: 2\}"),
        ("test_vit", r"patches of 16 pixels.*backbone.args: \{patch_size: 4\}"),
        ("swin_tiny_patch4_window7_224", r"backbone.args: \{patch_size: 2\}"),
        ("edgenext_xx_small", "patches of 4 pixels, which do not overlap; take another convnet, such as resnet18"),
        ("mobilevit_xxs", "its positions attend to each other"),
        ("csatv2", "timm does not say which convolution is its first"),
        ("dla46x_c", "changes nothing in dla46x_c, whose stem has no stride"),
        ("inception_v3", r"small does not suit inception_v3 \("),
    ],
)
def test_what_it_is_not_for_is_told_with_a_cure(name, message):
    with pytest.raises(UserError, match=message):
        small(name)


def test_a_stem_does_not_go_with_weights_of_another(tmp_path):
    with pytest.raises(UserError, match="backbone.stem: got 'small', but timm's weights were made with timm's stem"):
        small("test_resnet", pretrained=True)
    model, timms = small("test_resnet"), backbones.create("test_resnet")
    for made, other in ((model, timms), (timms, model)):
        folder = tmp_path / made.spec.stem
        save_timm_folder(made, folder, made.spec, mean=[0.5] * 3, std=[0.5] * 3)
        with pytest.raises(UserError, match=f"got '{other.spec.stem}', but {folder} was made with the stem '{made.spec.stem}'"):
            backbones.load_weights(other, folder)
        backbones.load_weights(other, folder, partial=True)
    torch.save(timms.state_dict(), tmp_path / "plain.pt")
    assert "the file does not tell with which stem it was made" in backbones.load_weights(model, tmp_path / "plain.pt").lines()[1]


def test_a_module_of_ones_own_is_taken_as_it_is():
    with pytest.raises(UserError, match="a module of your own is taken as it is"):
        SimCLR(timm.create_model("test_resnet", num_classes=0), stem="small")
    assert SimCLR(small("test_resnet"), image_size=32).spec.stem == "small"
    with pytest.raises(UserError, match="backbone.stem: got 'smal'; allowed: timm, small"):
        SimCLR("test_resnet", stem="smal")


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "test_efficientnet", "regnety_002"])
def test_plain_timm_refuses_the_folder_and_ours_loads_it(tmp_path, name):
    """Of most families every tensor would fit: timm would build another network without a word."""
    model = small(name, num_classes=5).eval()
    save_timm_folder(model, tmp_path, model.spec, mean=[0.5] * 3, std=[0.5] * 3, num_classes=5, class_names=list("abcde"))
    with pytest.raises(TypeError, match="visiontune_stem"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(TypeError, match="visiontune_stem"):
        timm.create_model(f"local-dir:{tmp_path}")
    loaded, images = load(tmp_path), torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_a_checkpoint_remembers_its_stem(tmp_path):
    import lightning as L

    module = SimCLR("test_resnet", stem="small", image_size=32, total_steps=1)
    trainer = L.Trainer(max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = SimCLR.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.spec.stem == "small"
    assert again.face.strides == (1, 2, 4, 8)
