"""From a backbone's feature maps to those of strides 8, 16 and 32, all of one width, which detection heads look at.

B pictures, H x W pixels. Strides are powers of two; every map covers the same pixels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDES = (8, 16, 32)


def make_pyramid(
    strides: Sequence[int], widths: Sequence[int], width: int, *, mixed_later: bool = False
) -> "FeaturePyramid | SimplePyramid | OwnMaps":
    """One that fits: for maps of several strides, or for the single one of a plain ViT.

    With `mixed_later` nothing is done to maps of strides 8, 16 and 32 where the backbone has them: the head's first part is a pyramid.
    """
    if mixed_later and set(STRIDES) <= set(strides):
        return OwnMaps(strides, widths)
    return FeaturePyramid(strides, widths, width) if len(strides) > 1 else SimplePyramid(strides[0], widths[0], width)


class FeaturePyramid(nn.Module):
    """Top-down: what the coarse maps know is added to the finer ones.

    Source: FPN (arXiv 1612.03144), section 3: a lateral convolution of 1x1, the coarser map doubled by its nearest neighbour and added, a
    convolution of 3x3. Each convolution has a layer norm behind it, as in ViTDet (arXiv 2203.16527), since timm's families give maps of any
    scale, normed or not. A stride that the backbone has not is made from the nearest: coarser ones by a convolution of stride 2, finer
    ones by doubling.

    Args:
        strides: of the backbone's maps, rising from 8 or more.
        widths: their channels.
        width: of what comes out; a multiple of 32.
    """

    def __init__(self, strides: Sequence[int], widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.given, self.widths = tuple(strides), (width,) * len(STRIDES)
        made = [f"{s} from {max(strides) if s > max(strides) else 'coarser ones'}" for s in STRIDES if s not in strides]
        self.notes = ["pyramid: top-down (FPN)" + (f"; made here: stride {', '.join(made)}" if made else "")]
        self.all = tuple(2**i for i in range(3, round(math.log2(max(*strides, STRIDES[-1]))) + 1))
        self.lateral = nn.ModuleDict({str(s): _normed(nn.Conv2d(d, width, 1, bias=False)) for s, d in zip(strides, widths, strict=True)})
        coarser = [s for s in self.all if s > max(strides)]
        self.down = nn.ModuleDict({str(s): _normed(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)) for s in coarser})
        self.out = nn.ModuleDict({str(s): _normed(nn.Conv2d(width, width, 3, padding=1, bias=False)) for s in STRIDES})
        _kaiming(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`(B, widths[i], H / strides[i], W / strides[i])` -> `(B, width, H / s, W / s)` for s of 8, 16, 32."""
        x = {s: self.lateral[str(s)](m) for s, m in zip(self.given, maps, strict=True)}
        for s in self.all[1:]:
            if str(s) in self.down:
                x[s] = self.down[str(s)](x[s // 2])
        for fine, coarse in reversed(list(pairwise(self.all))):
            doubled = F.interpolate(x[coarse], scale_factor=2.0, mode="nearest")
            # an odd number of positions was rounded up at a stride beyond 32, and doubles to one too many
            x[fine] = x[fine] + doubled[..., : x[fine].shape[2], : x[fine].shape[3]] if fine in x else doubled
        return [self.out[str(s)](x[s]) for s in STRIDES]


class OwnMaps(nn.Module):
    """The backbone's maps of strides 8, 16 and 32 as they are.

    Args:
        strides: of the backbone's maps.
        widths: their channels.
    """

    def __init__(self, strides: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.which = [list(strides).index(s) for s in STRIDES]
        self.widths = tuple(widths[i] for i in self.which)
        self.notes = ["pyramid: none; the head mixes the backbone's own maps"]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`(B, widths[i], H / strides[i], W / strides[i])` -> those with stride 8, 16 and 32."""
        return [maps[i] for i in self.which]


class SimplePyramid(nn.Module):
    """From one map, enlarged by transposed convolutions and shrunk by pooling, each stride by itself.

    Source: ViTDet (arXiv 2203.16527), section 3 and the authors' code: transposed convolutions of 2x2 that halve the channels, layer norm
    and GELU between two of them, max pooling; then convolutions of 1x1 and 3x3 with layer norms.

    Args:
        stride: of the map.
        dim: its channels.
        width: of what comes out; a multiple of 32.
    """

    def __init__(self, stride: int, dim: int, width: int) -> None:
        super().__init__()
        self.widths = (width,) * len(STRIDES)
        self.notes = [f"pyramid: all of one map of stride {stride} (ViTDet)"]
        self.levels = nn.ModuleList(_level(stride, s, dim, width) for s in STRIDES)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """`[(B, dim, H / stride, W / stride)]` -> `(B, width, H / s, W / s)` for s of 8, 16, 32."""
        return [level(maps[0]) for level in self.levels]


def _level(stride: int, to: int, dim: int, width: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    if stride < to:
        parts.append(nn.MaxPool2d(to // stride))
    while stride > to:
        if parts:
            parts += [LayerNorm2d(dim), nn.GELU()]
        half = max(1, dim // 2)
        parts.append(nn.ConvTranspose2d(dim, half, kernel_size=2, stride=2))
        stride, dim = stride // 2, half
    convolutions = [_normed(nn.Conv2d(dim, width, 1, bias=False)), _normed(nn.Conv2d(width, width, 3, padding=1, bias=False))]
    for convolution in convolutions:
        _kaiming(convolution)
    return nn.Sequential(*parts, *convolutions)


def _normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, LayerNorm2d(convolution.out_channels))


@torch.no_grad()
def _kaiming(part: nn.Module) -> None:
    """As torchvision's and Detectron2's pyramids start."""
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
