"""Which patches are hidden. Pure functions, made on the device without waiting for it, sizes constant from step to step.

A mask is True where hidden. B pictures, N = h * w patches, K visible patches, T targets of A patches each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """One choice of visible patches for a batch.

    Attributes:
        visible: indices of visible patches, `(B, K)`, int64.
        hidden: indices of hidden patches, `(B, N - K)`, int64.
    """

    visible: Tensor
    hidden: Tensor

    @property
    def mask(self) -> Tensor:
        """`(B, N)`, bool, True where hidden."""
        B, N = self.visible.shape[0], self.visible.shape[1] + self.hidden.shape[1]
        return torch.zeros(B, N, dtype=torch.bool, device=self.visible.device).scatter_(1, self.hidden, True)


def random_masking(
    B: int,
    N: int,
    ratio: float = 0.75,
    *,
    visible: int | None = None,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Masking:
    """Hide a random `ratio` of `N` patches in each of `B` pictures, the same number in every picture.

    Source: He et al. 2022 (arXiv 2111.06377), section 3, "Masking": uniform sampling without replacement; the number of visible
    patches is `int(N * (1 - ratio))` as in the authors' code, but never below one; or `visible`, where that is given.

    Raises:
        ValueError: if `ratio` is not in [0, 1).
    """
    K = _visible(N, ratio) if visible is None else visible
    order = torch.rand(B, N, device=device, generator=generator).argsort(dim=1)
    return Masking(visible=order[:, :K], hidden=order[:, K:])


def block_masking(
    B: int,
    grid: tuple[int, int],
    ratio: float,
    *,
    block_scale: tuple[float, float] = (0.08, 0.4),
    block_aspect: tuple[float, float] = (0.3, 1 / 0.3),
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Masking:
    """Hide rectangles that overlap as they like until a `ratio` of the patches is hidden, the same number in every picture.

    Source: Bao et al. 2022, BEiT (arXiv 2106.08254), algorithm 1: blocks of at least 16 of 196 patches and at most what is still to
    be hidden, aspect ratios from 0.3 to its inverse. The authors draw until enough is hidden; here a constant number of blocks is
    drawn at once, all within `block_scale`, each patch gets the rank of the first one that covers it, and the lowest ranks are
    hidden. So the last block is cut to rows to make the number exact, and nothing waits for the device.

    Args:
        B: pictures.
        grid: rows and columns of patches.
        ratio: share of patches that are hidden.
        block_scale: area of a block, as a share of the picture.
        block_aspect: height through width of a block.
        device: where the mask is made.
        generator: of random numbers; None takes torch's own.

    Raises:
        ValueError: if `ratio` is not in [0, 1).
    """
    h, w = grid
    N = h * w
    K = _visible(N, ratio)
    blocks = 4 * max(1, round(1 / block_scale[0]))  # together about ten times the picture: enough to cover any ratio in practice
    rank = _first_cover(_rectangles((B, blocks), grid, block_scale, block_aspect, device, generator))  # (B, N)
    # within a block by rows, from above or below, and in a row at random
    rows = _coordinates(grid, device)[0] / h  # (N,)
    upwards = torch.rand(B, 1, device=device, generator=generator) < 0.5
    within = torch.where(upwards, 1 - 1 / h - rows, rows) + torch.rand(B, N, device=device, generator=generator) / h
    order = (rank + within.clamp(max=0.999)).argsort(dim=1)
    return Masking(visible=order[:, N - K :], hidden=order[:, : N - K])


def grid_masking(
    B: int,
    grid: tuple[int, int],
    cell: tuple[int, int],
    ratio: float,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Masking:
    """Hide a random `ratio` of cells of `cell` patches, aligned to the picture, the same number in every picture.

    Source: Xie et al. 2022, SimMIM (arXiv 2111.09886), section 3.2: squares of 32 pixels, whatever the patches of the network are;
    the number of hidden cells is rounded up as in the authors' code, but one stays visible.

    Raises:
        ValueError: if `ratio` is not in [0, 1), or the grid is no whole number of cells.
    """
    (h, w), (r, c) = grid, cell
    if h % r or w % c:
        raise ValueError(f"Expected `grid` to be a whole number of cells of {r}x{c} but got {h}x{w}.")
    _visible(h * w, ratio)
    cells = (h // r) * (w // c)
    M = min(cells - 1, -int(-cells * ratio // 1))
    order = torch.rand(B, cells, device=device, generator=generator).argsort(dim=1)
    hidden = torch.zeros(B, cells, dtype=torch.bool, device=device).scatter_(1, order[:, :M], True)
    mask = enlarge(hidden.view(B, h // r, w // c), grid).flatten(1)
    # a stable sort puts the visible ones first, each kind in its order: constant sizes without counting
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    K = (cells - M) * r * c
    return Masking(visible=order[:, :K], hidden=order[:, K:])


@dataclass(frozen=True)
class MultiBlock:
    """A context and what is to be predicted from it.

    Attributes:
        context: indices of the patches that the encoder sees, `(B, K)`, int64.
        targets: indices of the patches of each target block, `(B, T, A)`, int64; never among the context.
    """

    context: Tensor
    targets: Tensor


def multi_block_masking(
    B: int,
    grid: tuple[int, int],
    *,
    targets: int = 4,
    target_scale: float = 0.175,
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> MultiBlock:
    """Target blocks, and one large context block without them.

    Source: Assran et al. 2023, I-JEPA (arXiv 2301.08243), section 3: four targets of 15 to 20 % of the picture and aspect ratios
    from 0.75 to 1.5, a context of 85 to 100 % and aspect ratio 1, the patches of targets taken out of it. The authors draw the area
    and the (uniform) aspect ratio anew for each batch and cut the context to the shortest of the batch. Here each target has an
    aspect ratio of its own, uniform in its logarithm, and sizes are constant: a target has
    `A = round(target_scale * N)` patches (a rectangle whose last row may be cut), and the context `K = N - T * A`, which are there
    even when no two targets overlap: taken at random from the context block without the targets, then, where these are too few,
    from the rest that is no target.

    Args:
        B: pictures.
        grid: rows and columns of patches.
        targets: T.
        target_scale: area of a target, as a share of the picture; the middle of the authors' range.
        target_aspect: height through width of a target.
        context_scale: area of the context block, as a share of the picture.
        device: where the masks are made.
        generator: of random numbers; None takes torch's own.

    Raises:
        ValueError: if the targets could cover the whole picture.
    """
    (h, w), N, T = grid, grid[0] * grid[1], targets
    A = max(1, round(target_scale * N))
    K = N - T * A
    if K < 1:
        raise ValueError(f"Expected `targets` and `target_scale` to leave a context but got {T} targets of {A} of {N} patches.")

    # Rectangles of at least A patches: the height from the aspect ratio, the width to fit; then A of each in reading order, or against it.
    aspect = _log_uniform((B, T), target_aspect, device, generator)
    tall = (A * aspect).sqrt().round().clamp(-(-A // w), min(h, A))  # rows, so that no row is wider than the picture
    wide = (A / tall).ceil()
    top, left = _place((B, T), h - tall, generator), _place((B, T), w - wide, generator)
    y, x = _coordinates(grid, device)  # (N,) each
    inside = _inside(y, x, top, left, tall, wide)  # (B, T, N)
    at, backwards = torch.arange(N, device=device), torch.rand(B, T, 1, device=device, generator=generator) < 0.5
    place = torch.where(backwards, N - 1 - at, at)  # rows are cut from above or below: no corner is left out for good
    picks = (place + N * ~inside).argsort(dim=2)[..., :A]

    wanted = torch.zeros(B, N, dtype=torch.bool, device=device).scatter_(1, picks.flatten(1), True)
    context = _rectangles((B, 1), grid, context_scale, (1.0, 1.0), device, generator)[:, 0]  # (B, N)
    # first the context block, then what lies outside of it, last (never reached) the targets; at random within each
    rank = (~context).float() + 2.0 * wanted + torch.rand(B, N, device=device, generator=generator) * 0.99
    return MultiBlock(context=rank.argsort(dim=1)[:, :K], targets=picks)


@dataclass(frozen=True)
class HalfMasked:
    """A batch in which some pictures are masked and the others whole.

    Attributes:
        rows: indices of the R masked pictures, `(R,)`.
        indices: the M hidden cells of each, `(R, M)`.
        hidden: `(B, h, w)`, bool, True where hidden.
    """

    rows: Tensor
    indices: Tensor
    hidden: Tensor

    def take_hidden(self, maps: Tensor) -> Tensor:
        """Features `(B, D, h, w)` -> those of hidden cells, `(R, M, D)`."""
        return take(maps.flatten(2)[self.rows].transpose(1, 2), self.indices)


def half_masked(
    B: int, grid: tuple[int, int], ratio: float, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> HalfMasked:
    """Every second picture on average, drawn anew each time but always half of them (rounded up), hides `ratio` of its cells in blocks.

    Source: iBOT (arXiv 2111.07832), section 3.3: masked with probability one half, blocks as in BEiT; here of constant sizes.
    """
    R = (B + 1) // 2
    rows = torch.rand(B, device=device, generator=generator).argsort()[:R]
    masking = block_masking(R, grid, ratio, device=device, generator=generator)
    hidden = torch.zeros(B, *grid, dtype=torch.bool, device=device)
    hidden[rows] = masking.mask.view(R, *grid)
    return HalfMasked(rows=rows, indices=masking.hidden, hidden=hidden)


def enlarge(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, h, w)` -> `(B, *size)`: every cell as a block of its own size, for sizes that are whole multiples."""
    _, h, w = mask.shape
    return mask.repeat_interleave(size[0] // h, dim=1).repeat_interleave(size[1] // w, dim=2)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """`(B, N, D)`, `(B, K)` -> the tokens at `indices`, `(B, K, D)`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


# ---------------------------------------------------------------- rectangles on a grid, drawn without loops


def _visible(N: int, ratio: float) -> int:
    if not 0 <= ratio < 1:
        raise ValueError(f"Expected argument `ratio` to be in [0, 1) but got {ratio}.")
    return max(1, int(N * (1 - ratio)))


def _coordinates(grid: tuple[int, int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    h, w = grid
    at = torch.arange(h * w, device=device)
    return at // w, at % w


def _log_uniform(shape: tuple[int, ...], bounds: tuple[float, float], device: torch.device | str, generator: torch.Generator | None):
    low, high = bounds
    return low * (high / low) ** torch.rand(shape, device=device, generator=generator)


def _place(shape: tuple[int, ...], room: Tensor, generator: torch.Generator | None) -> Tensor:
    """A corner anywhere from 0 to `room`."""
    return (torch.rand(shape, device=room.device, generator=generator) * (room + 1)).floor()


def _inside(y: Tensor, x: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    top, left, tall, wide = (v.unsqueeze(-1) for v in (top, left, tall, wide))
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def _rectangles(
    shape: tuple[int, int],
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    device: torch.device | str,
    generator: torch.Generator | None,
) -> Tensor:
    """Rectangles of random area and aspect ratio, `(B, blocks, N)`, True inside."""
    h, w = grid
    area = h * w * (scale[0] + (scale[1] - scale[0]) * torch.rand(shape, device=device, generator=generator))
    ratio = _log_uniform(shape, aspect, device, generator)
    tall = (area * ratio).sqrt().round().clamp(1, h)
    wide = (area / ratio).sqrt().round().clamp(1, w)
    top, left = _place(shape, h - tall, generator), _place(shape, w - wide, generator)
    return _inside(*_coordinates(grid, device), top, left, tall, wide)


def _first_cover(inside: Tensor) -> Tensor:
    """`(B, blocks, N)` -> the number of the first block over each patch, `(B, N)`; of none, the number of blocks."""
    blocks = inside.shape[1]
    numbers = torch.arange(blocks, device=inside.device).view(1, blocks, 1)
    return torch.where(inside, numbers, blocks).amin(dim=1)
