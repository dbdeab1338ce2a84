import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from visiontune import SimCLR
from visiontune.evaluate import embed_all, knn_predict, linear_probe
from visiontune.evaluate.linear import STRENGTHS, held_out


def clusters(n, seed=0, spread=0.6):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(42).normal(size=(4, 16))
    y = rng.integers(0, 4, n)
    return torch.from_numpy(centres[y] + spread * rng.normal(size=(n, 16))).float(), torch.from_numpy(y)


def test_knn_is_scikit_learns_with_the_same_weights():
    x, y = clusters(200, spread=1.5)
    z, _ = clusters(150, seed=1, spread=1.5)
    ours = knn_predict(x, y, z, k=15, temperature=0.07, chunk=64)
    theirs = KNeighborsClassifier(15, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y).predict(z)
    assert (ours.numpy() == theirs).mean() > 0.99  # ties in rounding apart


def test_the_linear_probe_finds_what_is_linear_and_repeats():
    x, y = clusters(300)
    z, truth = clusters(200, seed=1)
    first = linear_probe(x, y, z, truth, seed=3)
    assert first.top1 > 0.9
    assert first == linear_probe(x, y, z, truth, seed=3)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert linear_probe(x, shuffled, z, truth).top1 < 0.5


def test_embedding_a_folder_leaves_the_module_as_it_was():
    module = SimCLR("test_resnet", projector_hidden=8, projector_out=4).train()
    module.backbone.layer1.eval()
    modes = [m.training for m in module.modules()]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    images = torch.randint(0, 255, (6, 3, 64, 64), dtype=torch.uint8)
    batches = [{"images": [images[:4]], "labels": torch.arange(4)}, {"images": [], "labels": torch.empty(0, dtype=torch.int64)},
               {"images": [images[4:]], "labels": torch.arange(4, 6)}]  # fmt: skip
    x, y = embed_all(module, batches)
    assert x.shape == (6, module.face.width)
    assert y.tolist() == [0, 1, 2, 3, 4, 5]
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_the_linear_probe_is_scikit_learns_at_the_strength_that_it_chose():
    x, y = clusters(300, spread=2.0)
    z, truth = clusters(200, seed=1, spread=2.0)
    ours = linear_probe(x, y, z, truth)
    assert ours.C in STRENGTHS
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    theirs = LogisticRegression(C=ours.C, tol=1e-8, max_iter=10_000).fit((x - mean) / std, y)
    assert ours.top1 == pytest.approx(theirs.score((z - mean) / std, truth), abs=0.006)  # one picture at the border
    assert ours.logits.softmax(dim=1).numpy() == pytest.approx(theirs.predict_proba((z - mean) / std), abs=1e-3)


def test_the_held_out_part_has_every_class_of_more_than_one_picture_and_never_a_class_alone():
    y = torch.tensor([0] * 10 + [1] * 4 + [2] * 2)
    assert held_out(y).tolist() == [0, 1, 10, 14]
    assert held_out(torch.tensor([3, *y.tolist(), 4])).tolist() == [1, 2, 11, 15]
    assert len(held_out(torch.tensor([0, 0, 1]))) == 0
    assert len(held_out(torch.tensor([0, 0]))) == 0
    assert len(held_out(torch.tensor([0, 1, 2]))) == 0


def test_a_class_with_a_single_picture_leaves_the_strength_chosen_by_the_others():
    x, y = clusters(300, spread=2.0)
    z, truth = clusters(200, seed=1, spread=2.0)
    far, alone = torch.full((1, 16), 9.0), torch.tensor([4])  # a picture unlike all others, and its class
    found = linear_probe(torch.cat([x, far]), torch.cat([y, alone]), torch.cat([z, far]), torch.cat([truth, alone]))
    assert found.C < 0.2
    assert linear_probe(x, y, z, truth).C < 0.2
    assert found.logits.shape == (201, 5)
