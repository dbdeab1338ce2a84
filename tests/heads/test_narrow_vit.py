from functools import partial

import torch
from timm.models.vision_transformer import Block

from visiontune.heads.narrow_vit import NarrowViT


def test_it_equals_timms_blocks_with_the_same_weights_also_for_a_part_of_the_tokens():
    torch.manual_seed(0)
    ours = NarrowViT(16, depth=3, heads=4)
    theirs = torch.nn.Sequential(*[Block(16, 4, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)) for _ in range(3)])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 16)
    whole = theirs(x)
    assert torch.allclose(ours(x, last=9), whole, atol=1e-5)
    assert torch.allclose(ours(x, last=4), whole[:, -4:], atol=1e-5)
    assert torch.allclose(ours(x, last=1), whole[:, -1:], atol=1e-5)


def test_every_parameter_gets_the_gradient_of_the_whole():
    torch.manual_seed(0)
    ours = NarrowViT(16, depth=2, heads=2)
    x = torch.randn(2, 9, 16)
    (ours(x, last=9)[:, -4:] ** 2).sum().backward()
    whole = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    (ours(x, last=4) ** 2).sum().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-4) for a, p in zip(whole, ours.parameters(), strict=True))
