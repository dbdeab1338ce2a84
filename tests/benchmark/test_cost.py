"""What is counted of a network: by hand, and as others have published it."""

import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn

from visiontune.benchmark.cost import count


def made_of_nothing(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    ("name", "published", "mega_activations"),
    # of timm's results/benchmark-infer-*.csv; its older ones add attention's products, 23.90 for the transformer
    [("resnet18", tv.ResNet18_Weights.IMAGENET1K_V1, 2.48), ("vit_base_patch16_224", tv.ViT_B_16_Weights.IMAGENET1K_V1, 16.49)],
)
def test_published_figures_are_met(name, published, mega_activations):
    found = count(made_of_nothing(name), (224, 224))
    assert found.parameters == published.meta["num_params"]
    assert found.macs / 1e9 == pytest.approx(published.meta["_ops"], rel=1e-3)
    assert found.activations / 1e6 == pytest.approx(mega_activations, abs=0.01)


def test_layers_are_counted_as_by_hand_and_norms_not():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Flatten(2), nn.Linear(24, 5, bias=False), nn.Flatten(), nn.Linear(40, 7),
    )  # fmt: skip
    found = count(network, (8, 12))
    first, grouped = 8 * 4 * 6, 8 * 4 * 6  # elements put out, of 8 channels of 4x6
    assert found.activations == first + grouped + 8 * 5 + 7
    assert found.macs == first * 3 * 9 + grouped * 1 * 9 + 8 * 24 * 5 + 40 * 7
    assert found.parameters == 8 * 3 * 9 + 2 * 8 + 8 * 9 + 24 * 5 + 40 * 7 + 7


def test_products_of_attention_are_multiplications_but_no_activations():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
            return nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])

    found = count(Attention(), (2, 3), channels=4)
    N, D = 6, 4
    assert found.macs == N * D * 3 * D + 2 * N * N * D
    assert found.activations == N * 3 * D


def test_counting_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).train()
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    count(network, (4, 4))
    assert [part.training for part in network] == [True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
