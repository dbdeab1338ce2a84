"""Figures of an embedding: what lies next to what, and a map of all of it. N pictures, D width."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visiontune.report import figures

# What the map may look like: fewer pictures than this have no neighbourhoods for UMAP to keep.
FEWEST_FOR_UMAP = 32


def draw(z: Tensor, pictures: list[Tensor], folder: Path) -> None:
    """`neighbours.png` and `map.png` from embeddings `(N, D)` and their pictures, N times `(C, h, w)` in [0, 1]."""
    images = [figures.as_image(p) for p in pictures]
    figures.neighbours(images, *nearest(z), folder / "neighbours.png")
    places, title = flatten(z)
    figures.picture_map(images, places, folder / "map.png", title=title)


def nearest(z: Tensor, queries: int = 8, k: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some rows of `z` (spread evenly over it), their `k` nearest others by cosine, `(Q, k)`, and those cosines, `(Q, k)`."""
    z = F.normalize(z.float(), dim=1)
    chosen = torch.linspace(0, len(z) - 1, min(queries, len(z))).round().long()
    cosine = z[chosen] @ z.T
    cosine[torch.arange(len(chosen)), chosen] = -2  # not itself; below any cosine
    top = cosine.topk(min(k, len(z) - 1), dim=1)
    return chosen.numpy(), top.indices.numpy(), top.values.numpy()


def flatten(z: Tensor) -> tuple[np.ndarray, str]:
    """Embeddings on a plane, `(N, 2)`, and by what: UMAP where it is installed, else principal components."""
    z = F.normalize(z.float(), dim=1)
    if len(z) >= FEWEST_FOR_UMAP:
        try:
            from umap import UMAP

            return UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(z.numpy()), "UMAP"
        except ImportError:
            pass  # an extra of the user's own: the title says what was drawn
    u, s, _ = torch.linalg.svd(z - z.mean(dim=0), full_matrices=False)
    share = float((s[:2] ** 2).sum() / (s**2).sum().clamp_min(1e-12))
    places = F.pad(u[:, :2] * s[:2], (0, 2 - min(2, len(s))))
    return places.numpy(), f"PCA: two directions of {min(z.shape)}, with {100 * share:.0f} % of the variance"
