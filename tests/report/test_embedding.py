import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from visiontune.callbacks.metrics import steps_done
from visiontune.report import embedding, figures


def cloud(n=40, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_neighbours_are_scikit_learns_by_cosine():
    z = cloud()
    queries, near, cosines = embedding.nearest(z, queries=8, k=5)
    distances, theirs = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(z.numpy()).kneighbors(z.numpy()[queries])
    assert queries.tolist() == [0, 6, 11, 17, 22, 28, 33, 39]
    assert near.tolist() == theirs[:, 1:].tolist()
    assert np.allclose(cosines, 1 - distances[:, 1:], atol=1e-5)


def test_a_picture_is_not_its_own_neighbour_also_among_equal_ones():
    queries, near, _ = embedding.nearest(torch.ones(6, 3))
    assert all(q not in line for q, line in zip(queries, near, strict=True))


def test_the_plane_is_scikit_learns_pca_where_umap_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    z = cloud()
    places, title = embedding.flatten(z)
    pca = PCA(2).fit(torch.nn.functional.normalize(z, dim=1).numpy())
    assert np.allclose(np.abs(places), np.abs(pca.transform(torch.nn.functional.normalize(z, dim=1).numpy())), atol=1e-5)
    assert title == f"PCA: two directions of 6, with {100 * pca.explained_variance_ratio_.sum():.0f} % of the variance"


def test_few_grey_and_collapsed_pictures_are_drawn_too(tmp_path):
    for name, z, channels in (("few", cloud(2), 3), ("one", cloud(1), 3), ("grey", cloud(20), 1), ("same", torch.ones(20, 4), 5)):
        embedding.draw(z, [torch.rand(channels, 8, 12) for _ in z], tmp_path / name)
        assert {p.name for p in (tmp_path / name).iterdir()} == {"neighbours.png", "map.png"}


def test_a_row_lies_at_the_steps_that_had_been_made():
    """The last step of the first epoch of five is number 4; a look after it says 5."""
    assert [steps_done(r) / 5 for r in ({"step": "4", "train/a": "1"}, {"step": "5", "knn_top1": "1"}, {"step": "0"})] == [1, 1, 0.2]


def test_the_curves_wrap_into_lines_of_at_most_four_panels(tmp_path):
    rows = [{"step": str(s), "seconds": "1", "epoch": "0"} | {f"train/{c}": "0.5" for c in "abcdefg"[:5]} for s in range(3)]
    figures.curves(rows, tmp_path / "five.png", steps_per_epoch=1)
    figures.curves([{k: v for k, v in r.items() if k != "train/e"} for r in rows], tmp_path / "four.png", steps_per_epoch=1)
    five, four = (plt.imread(tmp_path / f"{n}.png").shape for n in ("five", "four"))
    assert five[0] > 1.8 * four[0]
    assert five[1] < 0.8 * four[1]
