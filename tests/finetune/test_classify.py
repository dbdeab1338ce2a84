import pytest
import torch
import torch.nn.functional as F

from visiontune import Classifier
from visiontune.errors import UserError


def classifier(**more):
    return Classifier("test_resnet", num_classes=4, **more)


def test_head_alone_is_trained_and_the_backbone_stays_bit_identical():
    module = classifier(tune="head").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    images, labels = torch.randint(0, 255, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 4
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    module.training_step([images, labels], 0).backward()
    optimizer.step()
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}


def test_full_trains_everything():
    module = classifier()
    module.training_step([torch.randn(4, 3, 32, 32), torch.arange(4)], 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_loss_is_cross_entropy_with_label_smoothing():
    module = classifier(label_smoothing=0.2).eval()
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0])
    expected = F.cross_entropy(module(images), labels, label_smoothing=0.2)
    assert module.training_step([images, labels], 0).item() == pytest.approx(expected.item())


def test_a_new_classifier_starts_from_about_equal_scores():
    scores = classifier().eval()(torch.randn(8, 3, 32, 32)).softmax(dim=1)
    assert (scores - 0.25).abs().max() < 0.1


def test_accuracy_counts_every_picture_once_whatever_the_batches():
    module = classifier().eval()
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10) % 4
    for part in (slice(0, 7), slice(7, 10), slice(10, 10)):
        module.validation_step([images[part], labels[part]], 0)
    expected = (module(images).argmax(dim=1) == labels).float().mean()
    assert module.metrics.compute()["val/top1"].item() == pytest.approx(expected.item())


def test_an_unknown_way_to_tune_is_refused():
    with pytest.raises(UserError, match="tune: got 'some'; allowed: full, head"):
        classifier(tune="some")


def test_both_heads_of_a_distilled_model_are_trained_and_a_fitting_classifier_of_ones_own_stays():
    import timm

    module = Classifier("deit_tiny_distilled_patch16_224", num_classes=3, image_size=32, tune="head")
    trained = {n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad}
    assert trained == {"head", "head_dist"}
    own = timm.create_model("test_resnet", num_classes=4)
    before = own.get_classifier().weight.clone()
    assert torch.equal(Classifier(own, num_classes=4).backbone.get_classifier().weight, before)
