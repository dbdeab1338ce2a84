"""What is timed is what is said to be."""

import pytest
import timm
import torch

from visiontune.benchmark.steps import Steps

CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3, channels=[4, 4, 8, 8])


def steps_of(network, precision="32-true"):
    return Steps(network, size=(32, 48), channels=3, device=CPU, precision=precision)


def test_a_step_of_inference_is_the_network_itself_in_evaluation_and_inference_mode(network):
    seen = []
    network.register_forward_hook(lambda module, images, out: seen.append((images[0], module.training, torch.is_inference_mode_enabled())))
    step = steps_of(network.train()).inference(4, False)
    scores = step()
    ((images, training, inference),) = seen
    assert images.shape == (4, 3, 32, 48)
    assert (training, inference) == (False, True)
    assert torch.equal(scores, network(images))
    assert step() is not scores
    assert seen[-1][0] is images  # made once, before the clock runs


def test_a_training_step_trains_everything_and_changes_no_weight(network):
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as a probe leaves it
    weights = {k: v.clone() for k, v in network.named_parameters()}
    mean = network.bn1.running_mean.clone()
    step = steps_of(network).training(4, False)
    seen = dict.fromkeys(weights)
    for name, parameter in network.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.update({name: float(p.grad.abs().sum())}))
    step()
    assert network.training
    assert all(v is not None for v in seen.values())
    assert any(v > 0 for v in seen.values())
    assert all(torch.equal(p, weights[k]) for k, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())
    assert not torch.equal(network.bn1.running_mean, mean)


def test_channels_last_is_of_pictures_and_network_and_can_be_taken_back(network):
    steps = steps_of(network)
    steps.inference(2, True)()
    assert network.layer4[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    steps.inference(2, False)()
    assert network.layer4[0].conv1.weight.is_contiguous()


@pytest.mark.parametrize(
    ("precision", "weights", "scores"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_precisions_are_those_of_a_trainer(network, precision, weights, scores):
    steps = steps_of(network, precision)
    assert steps.inference(2, False)().dtype == scores
    assert network.conv1[0].weight.dtype == weights
    steps.training(2, False)()
