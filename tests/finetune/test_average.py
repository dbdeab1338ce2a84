import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3

from visiontune import Classifier
from visiontune.finetune import average


def test_weights_and_running_statistics_follow_as_timms_average_does():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    ours, theirs = average.average_of(network), ModelEmaV3(copy.deepcopy(network), decay=0.9)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(4):
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        average.follow(ours, network, 0.9)
        theirs.update(network)
    for (name, a), b in zip(ours.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-6), name


def test_at_first_it_is_nearly_the_newest_then_an_average_of_many():
    assert [average.momentum_at(s, 0.9999) for s in (0, 1)] == [1 / 10, 2 / 11]
    assert average.momentum_at(10**9, 0.9999) == 0.9999
    momenta = [average.momentum_at(s, 0.99) for s in range(3000)]
    assert momenta == sorted(momenta)


def test_what_is_judged_is_what_is_kept():
    module = Classifier("test_resnet", num_classes=3, ema=0.99)
    with torch.no_grad():
        for p in module.backbone.parameters():
            p.add_(torch.randn_like(p))
    x = torch.randn(4, 3, 32, 32)
    scores = module.eval()(x)
    assert torch.equal(scores, module.average(x))
    assert not torch.allclose(scores, module.backbone(x))
    assert torch.equal(module.represent(x), module.average.forward_head(module.average.forward_features(x), pre_logits=True))
    released = module.release()
    assert torch.equal(scores, released.eval()(x))


def test_the_average_is_not_trained_and_always_in_evaluation():
    module = Classifier("test_resnet", num_classes=3, ema=0.99).train()
    assert not any(m.training for m in module.average.modules())
    assert not any(p.requires_grad for p in module.average.parameters())
    assert module.backbone.training


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_an_average_of_a_part(tune):
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = Classifier("vit_tiny_patch16_224", num_classes=3, image_size=32, backbone_args=args, tune=tune, ema=0.5)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(1.0)
    average.follow(module.average, module.backbone, 0.5)
    for (name, a), b in zip(module.average.named_parameters(), module.backbone.parameters(), strict=True):
        assert torch.allclose(a, b - 0.5 if b.requires_grad else b), name
