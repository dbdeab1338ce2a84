"""Boxes in pictures much larger than the network takes: tiles that overlap, each predicted by itself, and one answer from all of them.

D predictions of all tiles. Boxes are xyxy in pixels of the whole picture, outside a tile.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from visiontune.boxes import Boxes
from visiontune.errors import UserError

# Two tiles mean one object where what they see of it in the part that both see overlaps (IoU) this much.
AGREE = 0.5
# A piece that agrees with nothing is dropped where this share of it lies within a whole box of its class: slivers at an end are rough.
INSIDE = 0.7
ROWS = 1024  # predictions that are compared with all others at once, to bound memory


@dataclass(frozen=True)
class Tile:
    """A part of a picture: rows `top` to `bottom`, columns `left` to `right`."""

    top: int
    left: int
    bottom: int
    right: int


def tiles_of(height: int, width: int, size: tuple[int, int], *, overlap: float = 0.2) -> list[Tile]:
    """The fewest tiles that cover a picture, spread evenly, row after row.

    Args:
        height, width: of the picture.
        size: of a tile, `(height, width)`; cut to the picture's.
        overlap: the least share of a tile that the next one sees too. Objects up to that length are whole in one of them;
            with 0, those that an end cuts stay in pieces.

    Raises:
        UserError: for a share that is none, or half and more.

    >>> [(t.left, t.right) for t in tiles_of(100, 250, (100, 100), overlap=0.2)]
    [(0, 100), (75, 175), (150, 250)]
    """
    if not 0 <= overlap < 0.5:
        raise UserError(f"overlap: got {overlap:g}; expected a share of a tile from 0 to below 0.5")
    rows, columns = (_starts(length, min(length, side), overlap) for length, side in zip((height, width), size, strict=True))
    return [Tile(y, x, min(y + size[0], height), min(x + size[1], width)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    steps = math.ceil((length - side) / max(1, math.floor(side * (1 - overlap))))
    return [(length - side) * i // max(1, steps) for i in range(steps + 1)]


def predict_tiles(
    pixels: np.ndarray,
    predict: Callable[[Sequence[np.ndarray]], Sequence[Boxes]],
    *,
    size: tuple[int, int],
    overlap: float = 0.2,
    whole: bool = False,
    batch_size: int = 8,
    nms: float = 0.6,
    max_detections: int | None = None,
    border: float = 2.0,
) -> Boxes:
    """Boxes of a picture of any size.

    Args:
        pixels: the picture, `(H, W, C)`.
        predict: boxes with scores of pictures, each in its own pixels; of at most `batch_size` at once.
        size: of a tile, `(height, width)` in pixels of the picture.
        overlap: see `tiles_of`: about the length of the largest objects, as a share of a tile.
        whole: predict the whole picture, too, for objects larger than a tile.
        batch_size: tiles that are predicted at once.
        nms: largest overlap (IoU) of two predictions of one class in the end.
        max_detections: this many of the whole picture, those with the highest scores; None: all.
        border: a box that ends within so many pixels of a tile's end, where the picture goes on, is taken as cut there.

    Returns:
        boxes with scores, the highest first.

    Tiles beside the whole picture, and joining what is found twice: Akyon et al. 2022 (arXiv 2202.06934, SAHI), section 3. There boxes
    are matched by their overlap with the smaller one; here by what two tiles say of the part that both see, see `merge_tiles`.
    """
    height, width = pixels.shape[:2]
    tiles = tiles_of(height, width, size, overlap=overlap)
    if whole and len(tiles) > 1:
        tiles.append(Tile(0, 0, height, width))
    found: list[Boxes] = []
    for batch in _batches(tiles, batch_size):
        said = predict([pixels[t.top : t.bottom, t.left : t.right] for t in batch])
        found += [_moved(boxes.to("cpu"), t).clip(height, width) for boxes, t in zip(said, batch, strict=True)]
    boxes = merge_tiles(found, tiles, height, width, border=border)
    kept = batched_nms(boxes.xyxy, _scores(boxes), boxes.labels, nms)  # the highest scores first
    return boxes.take(kept if max_detections is None else kept[:max_detections])


def _batches(tiles: Sequence[Tile], batch_size: int) -> Iterator[list[Tile]]:
    rest = iter(tiles)
    while batch := list(islice(rest, batch_size)):
        yield batch


def _moved(boxes: Boxes, tile: Tile) -> Boxes:
    return replace(boxes, xyxy=boxes.xyxy.float() + torch.tensor([tile.left, tile.top] * 2), scores=_scores(boxes))


def _scores(boxes: Boxes) -> Tensor:
    return torch.zeros(0) if boxes.scores is None else boxes.scores.float()


def merge_tiles(found: Sequence[Boxes], tiles: Sequence[Tile], height: int, width: int, *, border: float = 2.0) -> Boxes:
    """One box of each object that a tile's end cut: the whole one of another tile where there is one, else the hull of its pieces.

    Two predictions of one class from two tiles are of one object if at least one of them is cut, and if both agree on the part of the
    picture that both tiles see: there they overlap (IoU) by `AGREE` or more. Neither scores nor the size of the pieces matter, so the whole
    box wins over a piece that is more certain. A piece that agrees with none, but lies within a whole box, goes. Boxes that no end cuts
    are left to non-maximum suppression.

    Args:
        found: predictions of each tile, in pixels of the picture.
        tiles: of the same number.
        height, width: of the picture.
        border: see `predict_tiles`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    counts = torch.tensor([len(f) for f in found])
    xyxy = torch.cat([torch.zeros(0, 4), *(f.xyxy for f in found)])
    labels = torch.cat([torch.zeros(0, dtype=torch.long), *(f.labels for f in found)])
    scores = torch.cat([torch.zeros(0), *(_scores(f) for f in found)])
    tile = torch.arange(len(found)).repeat_interleave(counts)
    ends = torch.tensor([[t.left, t.top, t.right, t.bottom] for t in tiles], dtype=torch.float).reshape(-1, 4)[tile]  # (D, 4)
    inner = ends != torch.tensor([0.0, 0.0, width, height])
    at_end = torch.cat([xyxy[:, :2] <= ends[:, :2] + border, xyxy[:, 2:] >= ends[:, 2:] - border], dim=1)
    cut = (at_end & inner).any(dim=1)

    pairs = [_same_object(rows, xyxy, labels, tile, ends) for rows in cut.nonzero().flatten().split(ROWS)]
    i, j = torch.cat([torch.zeros(2, 0, dtype=torch.long), *pairs], dim=1).numpy()
    D = len(xyxy)
    _, group = connected_components(coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(D, D)), directed=False)
    group = torch.from_numpy(group.astype(np.int64))
    has_whole = torch.zeros(D, dtype=torch.bool)  # there are at most D groups
    has_whole[group[~cut]] = True
    kept = ~cut
    pieces = cut & ~has_whole[group]
    which, its = np.unique(group[pieces].numpy(), return_inverse=True)
    hull, best, label = _hulls(xyxy[pieces].numpy(), scores[pieces].numpy(), labels[pieces].numpy(), its, len(which))
    alone = torch.from_numpy(np.bincount(its, minlength=len(which)) == 1)
    covered = torch.zeros(len(which), dtype=torch.bool)
    covered[alone] = _inside(hull[alone], label[alone], xyxy[kept], labels[kept])
    return Boxes(
        torch.cat([xyxy[kept], hull[~covered]]), torch.cat([labels[kept], label[~covered]]), torch.cat([scores[kept], best[~covered]])
    )


def _hulls(xyxy: np.ndarray, scores: np.ndarray, labels: np.ndarray, its: np.ndarray, G: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of G groups the smallest box around its pieces, the highest of their scores, and their class, which is one."""
    low, high = np.full((G, 2), np.inf, dtype=np.float32), np.full((G, 2), -np.inf, dtype=np.float32)
    best, label = np.zeros(G, dtype=np.float32), np.zeros(G, dtype=np.int64)
    np.minimum.at(low, its, xyxy[:, :2])
    np.maximum.at(high, its, xyxy[:, 2:])
    np.maximum.at(best, its, scores)
    label[its] = labels
    return torch.from_numpy(np.concatenate([low, high], axis=1)), torch.from_numpy(best), torch.from_numpy(label)


def _inside(pieces: Tensor, labels: Tensor, whole: Tensor, whole_labels: Tensor) -> Tensor:
    """Which pieces, `(P,)`, lie within a whole box of their class."""
    within = []
    for a, its in zip(pieces.split(ROWS), labels.split(ROWS), strict=True):
        shared = (a[:, None, 2:].minimum(whole[None, :, 2:]) - a[:, None, :2].maximum(whole[None, :, :2])).clamp(min=0).prod(dim=2)
        area = (a[:, 2:] - a[:, :2]).prod(dim=1)
        within.append(((shared >= INSIDE * area[:, None]) & (its[:, None] == whole_labels[None])).any(dim=1))
    return torch.cat([torch.zeros(0, dtype=torch.bool), *within])


def _same_object(rows: Tensor, xyxy: Tensor, labels: Tensor, tile: Tensor, ends: Tensor) -> Tensor:
    """Which of all predictions are of the same object as those that are cut, `rows`: pairs, `(2, P)`."""
    # the part that both tiles see, (R, D)
    low, high = (f(ends[rows, None, s], ends[None, :, s]) for f, s in ((torch.maximum, slice(0, 2)), (torch.minimum, slice(2, 4))))

    def seen(boxes: Tensor) -> tuple[Tensor, Tensor]:
        return boxes[..., :2].maximum(low).minimum(high), boxes[..., 2:].minimum(high).maximum(low)

    (a1, a2), (b1, b2) = seen(xyxy[rows, None]), seen(xyxy[None])
    shared = (a2.minimum(b2) - a1.maximum(b1)).clamp(min=0).prod(dim=2)
    both = (a2 - a1).prod(dim=2) + (b2 - b1).prod(dim=2) - shared
    there = (low < high).all(dim=2) & (tile[rows, None] != tile[None]) & (labels[rows, None] == labels[None])
    i, j = (there & (shared > 0) & (shared >= AGREE * both)).nonzero(as_tuple=True)
    return torch.stack([rows[i], j])
