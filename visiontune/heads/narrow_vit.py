"""The narrow transformer behind an encoder that is thrown away after pretraining: MAE's decoder, I-JEPA's predictor.

B pictures, N tokens of which the last M are asked for, E width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class NarrowViT(nn.Sequential):
    """Pre-norm transformer blocks, `(B, N, E)` -> the last M tokens, `(B, M, E)`.

    Parameters are named as those of timm's and facebookresearch/mae's blocks. In the last block only the tokens that are asked for are
    carried on; the others are looked at and left. Same numbers, less work.

    Args:
        dim: E.
        depth: blocks.
        heads: of attention; divides E.
    """

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__(*[Block(dim, heads) for _ in range(depth)])

    def forward(self, x: Tensor, last: int) -> Tensor:  # type: ignore[override]
        *blocks, final = self
        for block in blocks:
            x = block(x)
        return final(x, last)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)  # eps: the authors'
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        last = last or x.shape[1]
        x = x[:, -last:] + self.attn(self.norm1(x), last)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, last: int) -> Tensor:
        if last == x.shape[1]:
            q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))  # (B, heads, N, E / heads)
        else:
            E, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
            q = self._split(F.linear(x[:, -last:], weight[:E], bias[:E]))  # (B, heads, M, E / heads)
            k, v = (self._split(part) for part in F.linear(x, weight[E:], bias[E:]).chunk(2, dim=-1))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
