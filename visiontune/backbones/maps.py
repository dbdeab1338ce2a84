"""Feature maps of known strides from any timm backbone: found by trying it on one blank picture, then taken from its own weights.

B pictures, C channels, D width, h x w grid. timm's `feature_info` is not asked: its strides and widths are not always true.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visiontune.backbones.create import spec_of
from visiontune.backbones.face import _as_map, is_plain_vit, undisturbed
from visiontune.errors import UserError

COARSEST = 32  # pictures are filled up to multiples of it, so that maps of strides 8, 16 and 32 lie on each other


@dataclass(frozen=True)
class Maps:
    """How to take feature maps from one backbone, and what comes out.

    Attributes:
        strides: pixels of a position, powers of two, rising.
        widths: D of each map.
        indices: which of timm's intermediate features they are; None: the last features alone, behind the backbone's last norm.
        nhwc: whether timm gives these maps as `(B, h, w, D)` though asked for `(B, D, h, w)`.
        patch: rows and columns of pixels that the height and width of a picture must be multiples of.
        notes: what was found and chosen, in words.
    """

    strides: tuple[int, ...]
    widths: tuple[int, ...]
    indices: tuple[int, ...] | None
    nhwc: bool
    patch: tuple[int, int]
    notes: tuple[str, ...]

    def take(self, backbone: nn.Module, images: Tensor) -> list[Tensor]:
        """Normalised `(B, C, H, W)` -> maps `(B, D_i, h_i, w_i)` with `h_i = filled(H) / strides[i]`, fine to coarse."""
        H, W = images.shape[-2:]
        into = filled(H, COARSEST), filled(W, COARSEST)
        h, w = filled(into[0], self.patch[0]), filled(into[1], self.patch[1])
        if (h, w) != (H, W):
            images = F.pad(images, (0, w - W, 0, h - H))
        raw = _intermediates(backbone, images, self.indices) if self.indices is not None else [_last(backbone, images)]
        maps = [m.permute(0, 3, 1, 2) for m in raw] if self.nhwc else raw
        return [_on_grid(m, (h, w), into, stride) for m, stride in zip(maps, self.strides, strict=True)]


def filled(pixels: int, multiple: int) -> int:
    """The next multiple.

    >>> filled(320, 32), filled(321, 32), filled(320, 14)
    (320, 352, 322)
    """
    return -(-pixels // multiple) * multiple


def find_maps(backbone: nn.Module, image_size: int | tuple[int, int], channels: int = 3) -> Maps:
    """Try a backbone and choose: the deepest map of each stride from 8 on where there are several, else its last features.

    Raises:
        UserError: if it has no map of features, or cannot take pictures of this size filled up to a multiple of 32.
    """
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch = _patch(backbone)
    H, W = (filled(filled(side, COARSEST), p) for side, p in zip((H, W), patch, strict=True))
    parameter = next(backbone.parameters())
    blank = torch.zeros(1, channels, H, W, device=parameter.device, dtype=parameter.dtype)
    name = spec_of(backbone).name
    with undisturbed(backbone), torch.no_grad():
        try:
            raw = _intermediates(backbone, blank, None) if hasattr(backbone, "forward_intermediates") else []
        except (RuntimeError, AttributeError, ValueError, TypeError, AssertionError):
            raw = []
        raw = [m for m in raw if isinstance(m, Tensor) and m.ndim == 4]
        nhwc = not all(_is_nchw(m, (H, W)) for m in raw)  # all: one alone may fit by chance
        found: dict[int, tuple[int, Tensor]] = {}
        for i, m in enumerate(raw):
            m = m.permute(0, 3, 1, 2) if nhwc else m
            found[_stride(m, (H, W))] = (i, m)  # a later map of the same stride replaces an earlier one
        if len(found) > 1:
            # Finer maps are of use only where there are none of 8 and coarser.
            strides = sorted(s for s in found if s >= 8) or [max(found)]
            indices = tuple(sorted(found[s][0] for s in strides))
            strides.sort(key=lambda s: found[s][0])
            if strides != sorted(strides):  # some families list theirs from coarse to fine
                raise UserError(f"backbone.name: got {name}, whose maps do not go from fine to coarse; take another backbone")
            maps = [found[s][1] for s in strides]
        else:
            indices, nhwc = None, False
            try:
                maps = [_last(backbone, blank)]
                strides = [_stride(maps[0], (H, W))]
            except (RuntimeError, AttributeError, ValueError, TypeError, AssertionError, ZeroDivisionError) as error:
                raise UserError(
                    f"backbone.name: got {name}, whose last features make no map of {H}x{W} pixels "
                    f"({(str(error) or type(error).__name__).splitlines()[0]}); take a multiple of {COARSEST} as data.image_size, or "
                    "another backbone"
                ) from error
    notes = _notes(name, maps, strides, (H, W), patch, several=indices is not None)
    return Maps(tuple(strides), tuple(m.shape[1] for m in maps), indices, nhwc, patch, notes)


def _patch(backbone: nn.Module) -> tuple[int, int]:
    """Of a plain ViT, whose pictures must be made of whole patches; other families are content with multiples of 32."""
    if not is_plain_vit(backbone):
        return 1, 1
    embedding: Any = backbone.patch_embed
    return embedding.patch_size[0], embedding.patch_size[1]


def _intermediates(backbone: Any, images: Tensor, indices: tuple[int, ...] | None) -> list[Tensor]:
    """Without what the family has behind the last of them."""
    chosen = None if indices is None else list(indices)
    return backbone.forward_intermediates(images, indices=chosen, stop_early=True, output_fmt="NCHW", intermediates_only=True)


def _last(backbone: Any, images: Tensor) -> Tensor:
    if not hasattr(backbone, "forward_intermediates"):
        return _as_map(backbone, backbone.forward_features(images), None)
    last, maps = backbone.forward_intermediates(images, indices=1, output_fmt="NCHW")
    return _as_map(backbone, last, maps[-1])


def _is_nchw(m: Tensor, size: tuple[int, int]) -> bool:
    """Positions are square, or nearly so where a family does not fill up: one stride must fit both sides."""
    down, across = size[0] / m.shape[2], size[1] / m.shape[3]
    return max(down, across) < 1.5 * min(down, across)


def _stride(m: Tensor, size: tuple[int, int]) -> int:
    """The nearest power of two."""
    return 2 ** round(math.log2(size[0] / m.shape[2]))


def _on_grid(m: Tensor, size: tuple[int, int], into: tuple[int, int], stride: int) -> Tensor:
    """A map over `size` pixels -> its values at the positions of `stride` pixels that cover `into`.

    Patches of 14 pixels, say, are read between their centres where those of 16 would have theirs.
    """
    h, w = -(-into[0] // stride), -(-into[1] // stride)
    if m.shape[-2:] == (h, w) and size == into:
        return m
    if size == into:
        return F.interpolate(m, size=(h, w), mode="bilinear", align_corners=False)
    # `scale_factor` is obeyed as it is: the right edge may end between two positions
    factors = (size[0] / m.shape[2] / stride, size[1] / m.shape[3] / stride)
    if factors != (1.0, 1.0):
        m = F.interpolate(m, scale_factor=factors, mode="bilinear", align_corners=False)
    m = m[..., :h, :w]
    return F.pad(m, (0, w - m.shape[3], 0, h - m.shape[2]), mode="replicate") if m.shape[-2:] != (h, w) else m


def _notes(
    name: str, maps: list[Tensor], strides: list[int], size: tuple[int, int], patch: tuple[int, int], *, several: bool
) -> tuple[str, ...]:
    listed = ", ".join(f"{m.shape[1]} at stride {s}" for m, s in zip(maps, strides, strict=True))
    what = "levels" if several else "its last features alone"
    notes = [f"pyramid: {name} gives {what}, channels: {listed}"]
    for m, s in zip(maps, strides, strict=True):
        if (cell := size[0] / m.shape[2]) != s:
            notes.append(f"pyramid: positions of {cell:g} pixels are read at stride {s}")
    if any(COARSEST % p for p in patch):
        notes.append(f"pyramid: pictures are filled up to multiples of {patch[0]}x{patch[1]} pixels")
    return tuple(notes)
