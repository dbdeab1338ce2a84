"""Streams of pictures through a model."""

import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tests.predict.conftest import NAMES
from visiontune.errors import UserError
from visiontune.predict import load
from visiontune.predict.ahead import read_ahead
from visiontune.predict.predictor import NOT_FINITE

BROKEN = ("00.png", "07.png", "20.png")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_order_is_kept_and_broken_pictures_are_told_in_their_place(tuned, mixed, workers, batch_size):
    model, files = load(tuned), sorted(mixed.iterdir(), reverse=True)
    found = list(model.predict(files, batch_size=batch_size, workers=workers))
    assert [p.path for p in found] == [str(f) for f in files]
    assert {p.path.rsplit("/")[-1] for p in found if p.broken} == set(BROKEN)
    for p in found:
        if p.broken:
            assert "web page" in p.broken
            assert p.label == ""
            assert math.isnan(p.score)
            continue
        alone = torch.softmax(model(model.read(p.path)[None]), dim=1)[0].detach()
        assert p.label == NAMES[int(alone.argmax())]
        assert p.score == pytest.approx(float(alone.max()), abs=1e-5)


@pytest.mark.parametrize("more", [{}, {"labels": "multi", "thresholds": [0.5] * 4}])
def test_a_picture_of_which_the_network_makes_no_number_is_told_in_its_place(make_exported, mixed, more):
    model = load(make_exported(**more))
    files, plain = sorted(mixed.iterdir())[1:4], model.network.forward

    def forward(images):
        return plain(images).index_fill(0, torch.tensor([1]), float("nan"))

    model.network.forward = forward
    assert [p.broken for p in model.predict(files)] == ["", NOT_FINITE, ""]
    assert [p.label == "" for p in model.predict(files, top=1)] == [False, True, False]
    model.network.forward = plain
    model.embed = lambda images: torch.tensor([[1.0, 2.0], [3.0, float("inf")], [5.0, 6.0]])
    assert [(e.broken, e.vector.tolist()) for e in model.embeddings(files)] == [("", [1, 2]), (NOT_FINITE, []), ("", [5, 6])]


def test_a_folder_shards_and_files_give_the_same_scores(tuned, pictures, tmp_path):
    from visiontune.data.folder import list_pictures
    from visiontune.data.shard_writer import write_shards

    write_shards(list_pictures(pictures / "val"), tmp_path / "shards")
    model = load(tuned)
    files = sorted(str(f) for f in (pictures / "val").rglob("*.png"))
    by_file = {p.path: p.score for p in model.predict(files)}
    by_folder = {p.path: p.score for p in model.predict(pictures / "val")}
    assert by_file == by_folder
    by_shard = list(model.predict([tmp_path / "shards"]))
    assert len(by_shard) == 16
    assert all(".tar/" in p.path for p in by_shard)
    assert sorted(p.score for p in by_shard) == pytest.approx(sorted(by_file.values()), abs=1e-5)


def test_memory_holds_a_few_batches_however_many_paths_there_are(tuned, mixed):
    """The paths are taken no further than a few batches ahead of what was asked for."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield mixed / "01.png"

    predictions = load(tuned).predict(endless(), batch_size=4, workers=2)
    for _ in range(40):
        next(predictions)
    assert len(taken) <= 40 + 4 + 2 * 4 + 2
    predictions.close()


@pytest.mark.parametrize("threads", [0, 3])
def test_reading_ahead_ends_with_its_threads_when_nobody_asks_for_the_rest(threads):
    before = threading.active_count()
    ahead = read_ahead(lambda x: x * x, iter(range(1000)), threads=threads, ahead=10)
    assert [next(ahead) for _ in range(5)] == [0, 1, 4, 9, 16]
    ahead.close()
    assert threading.active_count() == before


def test_an_error_while_reading_is_raised_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda x: 1 // x, [1, 0], threads=2, ahead=4))


def test_temperature_softens_scores_and_leaves_labels(make_exported, tuned, mixed):
    plain, soft = load(tuned), load(make_exported(temperature=2.5))
    images = torch.stack([plain.read(mixed / f"{i:02d}.png") for i in (1, 2, 3)])
    torch.testing.assert_close(soft.scores(images), torch.softmax(plain(images) / 2.5, dim=1))
    assert [p.label for p in soft.predict(mixed)] == [p.label for p in plain.predict(mixed)]


def test_top_k_gives_the_k_most_likely_in_order(tuned, mixed):
    model = load(tuned)
    (found,) = model.predict(mixed / "03.png", top=3)
    scores = model.scores(model.read(mixed / "03.png")[None])[0]
    order = scores.argsort(descending=True)[:3].tolist()
    assert found.labels == tuple(NAMES[k] for k in order)
    assert found.scores == pytest.approx(scores[order].tolist(), abs=1e-5)
    for wrong in (0, 5):
        with pytest.raises(UserError, match=f"got top={wrong}; expected a number from 1 to 4"):
            model.predict(mixed, top=wrong)


def test_of_several_labels_all_that_reach_their_threshold_are_given(make_exported, mixed):
    thresholds = (0.9, 0.1, 0.5, 0.999)
    model = load(make_exported(labels="multi", thresholds=thresholds))
    found = [p for p in model.predict(mixed) if not p.broken]
    counts = set()
    for p in found:
        scores = torch.sigmoid(model(model.read(p.path)[None]))[0].tolist()
        expected = {name: s for name, s, t in zip(NAMES, scores, thresholds, strict=True) if s >= t}
        assert dict(zip(p.labels, p.scores, strict=True)) == pytest.approx(expected, abs=1e-5)
        assert list(p.scores) == sorted(p.scores, reverse=True)
        counts.add(len(expected))
    assert len(counts) > 1  # else the claim was not put to a test
    assert all(len(p.labels) == 2 for p in model.predict(mixed, top=2) if not p.broken)


def test_a_mirror_image_has_the_same_scores_with_tta_and_not_without(tuned, mixed, tmp_path):
    model = load(tuned)
    Image.fromarray(np.asarray(Image.open(mixed / "04.png"))[:, ::-1]).save(tmp_path / "mirrored.png")
    files = [mixed / "04.png", tmp_path / "mirrored.png"]
    one, other = (p.scores for p in model.predict(files, top=4, tta=True))
    assert one == pytest.approx(other, abs=1e-6)
    one, other = (p.scores for p in model.predict(files, top=4))
    assert one != pytest.approx(other, abs=1e-3)


def test_floats_are_taken_as_normalised(tuned, mixed):
    model = load(tuned)
    pixels = torch.stack([model.read(mixed / "05.png")])
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(pixels), model((pixels / 255 - mean) / std))


def test_a_backbone_has_embeddings_and_no_labels(make_exported, mixed):
    model = load(make_exported(num_classes=0))
    with pytest.raises(UserError, match="no classifier; give a fine-tuned run"):
        model.predict(mixed)
    found = list(model.embeddings(mixed, batch_size=4))
    assert [e.path.rsplit("/")[-1] for e in found if e.broken] == list(BROKEN)
    for e in (found[1], found[8]):
        expected = model.embed(model.read(e.path)[None])[0].detach().numpy()
        assert e.vector.dtype == np.float32
        np.testing.assert_allclose(e.vector, expected, atol=1e-5)
