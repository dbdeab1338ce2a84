"""Transformers that see a part of a picture: without its hidden tokens (plain ViT), or with a mask token in their place.

B pictures, N patches, K visible ones, D width, h x w grid.
"""

from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from visiontune.backbones.face import fitting_masked_methods, is_plain_vit, undisturbed
from visiontune.backbones.install import Change
from visiontune.errors import UserError
from visiontune.masking import take


class KeepVisible(nn.Module):
    """Stands where timm's plain ViTs have their patch dropout, and keeps the patches that it is told to.

    timm takes rotary positions along there, so a family's own `forward_features` does all the rest.

    Args:
        prefix: class and register tokens, which stay.
        with_indices: whether the family wants the indices back too.
        instead_of: what was there before.
    """

    def __init__(self, prefix: int, *, with_indices: bool, instead_of: nn.Module | None) -> None:
        super().__init__()
        self.prefix, self.with_indices = prefix, with_indices
        self.instead_of = (instead_of,)  # in a tuple it is no part of the network
        self.visible: Tensor | None = None

    def forward(self, x: Tensor) -> Any:  # (B, prefix + N, D)
        if self.visible is not None:
            x = torch.cat([x[:, : self.prefix], take(x[:, self.prefix :], self.visible)], dim=1)
        return (x, self.visible) if self.with_indices else x


def let_patches_out(vit: Any, name: str, method: str) -> None:
    """Prepare a plain ViT for `forward_visible`.

    Raises:
        UserError: if it is none; says what suits it.
    """
    if not is_plain_vit(vit):
        raise UserError(
            f"backbone.name: got {name}; {method} needs a plain vision transformer (vit_*, deit_*, eva*), since it drops the hidden "
            f"patches from the encoder's sequence; for this backbone use {fitting_masked_methods(vit)}"
        )
    vit.patch_drop = KeepVisible(vit.num_prefix_tokens, with_indices=isinstance(vit, Eva), instead_of=vit.patch_drop)


def is_prepared(model: nn.Module) -> bool:
    """Whether a method changed it, and has not given it back."""
    return any(isinstance(part, Change | KeepVisible) for part in model.modules())


def release_patches(vit: Any) -> None:
    """Undo `let_patches_out`."""
    if isinstance(vit.patch_drop, KeepVisible):
        vit.patch_drop = vit.patch_drop.instead_of[0]


def forward_visible(vit: nn.Module, images: Tensor, visible: Tensor) -> Tensor:
    """`(B, C, H, W)`, `(B, K)` -> prefix tokens and visible patches after the last norm, `(B, prefix + K, D)`."""
    part: Any = vit.patch_drop
    part.visible = visible
    try:
        return vit.forward_features(images)
    finally:
        part.visible = None


class TokenMask:
    """What the changed patch embedding of a transformer puts a mask token over.

    Attributes:
        mask: `(B, h, w)`, bool, True where hidden, in the grid of the patch embedding; None for whole pictures.
        token: `(D,)`.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.token: Tensor | None = None


class MaskedTokens(Change):
    """A patch embedding whose hidden tokens are replaced. Source: SimMIM (arXiv 2111.09886), section 3.2."""

    token_mask: TokenMask
    layout: str  # of what it returns: NLC, NHWC or NCHW

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        out = super().forward(x, *rest, **named)  # type: ignore[misc]
        mask, token = self.token_mask.mask, self.token_mask.token
        if mask is None or token is None:
            return out
        shape = {"NLC": (-1, mask[0].numel(), 1), "NHWC": (*mask.shape, 1), "NCHW": (-1, 1, *mask.shape[1:])}[self.layout]
        token = token.to(out.dtype)
        return torch.where(mask.reshape(shape), token.view(-1, 1, 1) if self.layout == "NCHW" else token, out)


def patch_embedding(model: nn.Module, images: Tensor) -> tuple[nn.Module, str, tuple[int, int], int] | None:
    """The layer that turns pixels into tokens, its layout, grid and width; None where the family has none that can be changed."""
    layer = getattr(model, "patch_embed", None)
    if not isinstance(layer, nn.Module):
        return None
    seen: list[Any] = []
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        with undisturbed(model), torch.no_grad():
            model.forward_features(images)
    finally:
        hook.remove()
    out = seen[0] if len(seen) == 1 else None
    H, W = images.shape[-2:]
    if not isinstance(out, Tensor):
        return None
    if out.ndim == 4:
        for layout, (h, w), D in (("NCHW", out.shape[2:], out.shape[1]), ("NHWC", out.shape[1:3], out.shape[3])):
            if H % h == 0 and W % w == 0 and H // h == W // w:
                return layer, layout, (h, w), D
    if out.ndim == 3:
        N = out.shape[1]
        for p in range(1, min(H, W) + 1):  # patches are square in every family that gives a sequence here
            if H % p == 0 and W % p == 0 and (H // p) * (W // p) == N:
                return layer, "NLC", (H // p, W // p), out.shape[2]
    return None


def check_grid(name: str, size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of whole patches.

    Raises:
        UserError: if they do not fill the picture.
    """
    (H, W), (p, q) = size, patch
    if H % p or W % q:
        cure = f"a multiple of {p}" if p == q else f"multiples of {p} and {q}"
        raise UserError(f"data.image_size: got {H}x{W}, which {name} of {p}x{q} pixels do not divide; take {cure}")
    return H // p, W // q
