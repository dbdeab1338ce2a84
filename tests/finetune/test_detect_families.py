"""timm's families under a detection head, behind `-m slow`; six are in every run of the tests (`test_detect.py`)."""

import pytest
import torch

from visiontune import Detector
from visiontune.boxes import Boxes

# The smallest of each family, and pictures that it takes.
FAMILIES = {
    "beit_base_patch16_224": 224, "cait_xxs24_224": 224, "coat_tiny": 224, "coatnet_nano_rw_224": 224, "convformer_s18": 128,
    "convit_tiny": 224, "convnext_atto": 128, "convnextv2_atto": 128, "cspresnet50": 128, "davit_tiny": 128,
    "deit3_small_patch16_224": 224, "deit_tiny_patch16_224": 224, "densenet121": 128, "dla34": 128, "dm_nfnet_f0": 128,
    "edgenext_xx_small": 128, "efficientformer_l1": 224, "efficientformerv2_s0": 224, "efficientnet_b0": 128, "efficientvit_b0": 128,
    "efficientvit_m0": 224, "eva02_tiny_patch14_224": 224, "fastvit_t8": 128, "focalnet_tiny_srf": 128, "gcvit_xxtiny": 224,
    "ghostnet_050": 128, "hardcorenas_a": 128, "hgnet_tiny": 128, "hiera_tiny_224": 224, "hrnet_w18_small": 128,
    "inception_next_tiny": 128, "inception_v4": 160, "levit_128s": 224, "mambaout_femto": 128, "maxvit_pico_rw_256": 256,
    "mixer_s32_224": 224, "mnasnet_small": 128, "mobilenetv3_small_050": 128, "mobilenetv4_conv_small": 128, "mobileone_s0": 128,
    "mobilevit_xxs": 128, "mobilevitv2_050": 128, "mvitv2_tiny": 224, "nest_tiny": 224, "nextvit_small": 128, "nf_resnet26": 128,
    "pit_ti_224": 224, "poolformer_s12": 128, "pvt_v2_b0": 128, "regnetx_002": 128, "repghostnet_050": 128, "repvgg_a0": 128,
    "repvit_m0_9": 128, "res2net50_14w_8s": 128, "resmlp_12_224": 224, "resnet10t": 128, "rexnet_100": 128, "sequencer2d_s": 224,
    "skresnet18": 128, "starnet_s1": 128, "swin_tiny_patch4_window7_224": 224, "swinv2_tiny_window8_256": 256,
    "tf_efficientnet_lite0": 128, "tiny_vit_5m_224": 224, "tresnet_m": 128, "twins_svt_small": 224, "vgg11_bn": 128,
    "visformer_tiny": 224, "vit_small_patch14_reg4_dinov2": 112, "vit_tiny_patch16_224": 128, "vit_tiny_r_s16_p8_224": 224,
    "volo_d1_224": 224, "vovnet39a": 128, "xception41": 128, "xcit_nano_12_p16_224": 224, "xcit_nano_12_p8_224": 224,
}  # fmt: skip


# D-FINE takes their own maps, which differ more than a pyramid's: some of each kind.
DETR_FAMILIES = (
    "beit_base_patch16_224", "coatnet_nano_rw_224", "convnext_atto", "davit_tiny", "deit_tiny_patch16_224", "densenet121",
    "efficientnet_b0", "eva02_tiny_patch14_224", "focalnet_tiny_srf", "hiera_tiny_224", "hrnet_w18_small", "levit_128s", "mambaout_femto",
    "maxvit_pico_rw_256", "mobilenetv4_conv_small", "mobilevitv2_050", "pvt_v2_b0", "regnetx_002", "repvit_m0_9", "resnet10t",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vgg11_bn", "vit_small_patch14_reg4_dinov2",
    "vit_tiny_patch16_224", "xcit_nano_12_p8_224",
)  # fmt: skip
SMALL = {"hidden": 64, "decoder_layers": 2, "queries": 50, "denoising": 20}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETR_FAMILIES)
def test_the_loss_of_a_fixed_batch_falls_in_five_steps_under_dfine(name):
    # Of the noised boxes, whose matches are fixed: those of the others, and how many learn, change from step to step.
    losses = losses_of_six_steps(name, FAMILIES[name], "denoising", head="dfine", head_args=SMALL)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items(), ids=FAMILIES)
def test_the_loss_of_a_fixed_batch_falls_in_five_steps(name, size):
    losses = losses_of_six_steps(name, size)
    assert losses[-1] < losses[0]


def losses_of_six_steps(name, size, *parts, **options):
    """All parts together, or some."""
    torch.manual_seed(0)
    module = Detector(name, num_classes=2, image_size=size, pyramid_width=32, freeze_batch_norms=False, **options).train()
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    targets = [Boxes(torch.tensor([[4.0, 6, 60, 80], [20, 20, 100, 100]]), torch.tensor([0, 1])), Boxes.none()]
    assert [tuple(m.shape[-2:]) for m in module.features(images)] == [(-(-size // 32) * 32 // s,) * 2 for s in (8, 16, 32)]
    optimizer, losses = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-4), []
    for _ in range(6):
        torch.manual_seed(0)  # D-FINE noises boxes
        found = module.head.loss(module.features(images), targets, (size, size))
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        losses.append(sum(found[part] for part in parts or found).item())
    assert torch.tensor(losses).isfinite().all()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    return losses
