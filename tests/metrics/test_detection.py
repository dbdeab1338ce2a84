import contextlib
import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.metrics.pictures import random_pictures
from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.metrics import MeanAveragePrecision, coco_metrics
from visiontune.metrics.detection import areas_of

STATS = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar1", "mar10", "mar", "mar_small", "mar_medium", "mar_large")
K = 5


def reference(found, truth, crowd, areas=None):
    """pycocotools, as its authors call it; and its precision, `(T, R, K, A, L)`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x1, y1, x2, y2 = box.double().tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    annotations, results = [], []
    for i, (f, t, c) in enumerate(zip(found, truth, crowd, strict=True), 1):
        for boxes, is_crowd in ((t, 0), (c, 1)):
            for m in range(len(boxes)):
                area = areas_of(boxes.xyxy)[m] if areas is None or is_crowd else areas[i - 1][m]
                row = {"bbox": xywh(boxes.xyxy[m]), "area": float(area), "category_id": int(boxes.labels[m]) + 1, "iscrowd": is_crowd}
                annotations.append(row | {"id": len(annotations) + 1, "image_id": i})
        for m in range(len(f)):
            row = {"bbox": xywh(f.xyxy[m]), "category_id": int(f.labels[m]) + 1, "score": float(f.scores[m])}
            results.append(row | {"image_id": i})
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO()
        real.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(1, len(truth) + 1)],
            "annotations": annotations,
            "categories": [{"id": k} for k in range(1, K + 1)],
        }
        real.createIndex()
        counter = COCOeval(real, real.loadRes(results), "bbox")
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    return dict(zip(STATS, counter.stats, strict=True)), counter.eval["precision"]


@pytest.fixture(scope="module")
def pictures():
    return random_pictures(520, K=K)


@pytest.mark.parametrize("counter", ["faster_coco_eval", "pycocotools"])
def test_every_number_is_that_of_pycocotools(pictures, counter, monkeypatch):
    pytest.importorskip("pycocotools")
    pytest.importorskip(counter)
    monkeypatch.setattr("visiontune.metrics.detection.COUNTERS", (counter,))
    found, truth, crowd = pictures
    areas = [areas_of(t.xyxy) * 0.6 for t in truth]  # as of outlines
    expected, precision = reference(found, truth, crowd, areas)
    values = coco_metrics(found, truth, num_classes=K, crowd=crowd, area=areas)
    for name in STATS:
        assert values[name].item() == pytest.approx(expected[name], abs=5e-5), name
        assert 0.02 < expected[name] < 0.98
    for name, p in (("ap", precision[..., 0, 2]), ("ap50", precision[:1, ..., 0, 2])):
        own = [p[:, :, k].mean() if (p[:, :, k] > -1).all() else np.nan for k in range(K)]
        np.testing.assert_allclose(values[name].numpy(), own, atol=5e-5)
        assert np.isnan(own).tolist() == [False, False, False, True, False]


def test_what_a_crowd_covers_counts_for_nothing(pictures):
    found, truth, crowd = pictures
    with_crowd = coco_metrics(found, truth, num_classes=K, crowd=crowd)
    without = coco_metrics(found, truth, num_classes=K)
    assert with_crowd["map"] > without["map"] + 0.005
    assert with_crowd["mar"] == without["mar"]


def test_pictures_may_come_in_any_batches(pictures):
    found, truth, crowd = (x[:40] for x in pictures)
    metric = MeanAveragePrecision(K)
    for start, end in ((0, 13), (13, 13), (13, 14), (14, 40)):  # one of them is empty
        metric.update(found[start:end], truth[start:end], crowd=crowd[start:end])
    whole = coco_metrics(found, truth, num_classes=K, crowd=crowd)
    for name, value in metric.compute().items():
        torch.testing.assert_close(value, whole[name], equal_nan=True)
    metric.reset()
    assert metric.compute()["map"].isnan()


def square(x, side=40.0):
    return [x, 0.0, x + side, side]


@pytest.mark.parametrize(("limit", "expected"), [(100, 0.0), (150, 1.0)])
def test_the_limit_on_predictions_decides_which_of_them_count(limit, expected):
    """A hundred wrong boxes come before fifty right ones."""
    wrong, right = [square(5000.0 + i) for i in range(100)], [square(50.0 * i) for i in range(50)]
    found = Boxes(torch.tensor(wrong + right), torch.zeros(150, dtype=torch.long), torch.linspace(1, 0.1, 150))
    truth = Boxes(torch.tensor(right), torch.zeros(50, dtype=torch.long))
    values = coco_metrics([found], [truth], num_classes=1, max_detections=limit)
    assert values["mar"] == expected
    assert (values["map"] > 0) == (expected > 0)


def test_a_limit_below_ten_holds_for_every_number():
    truth = Boxes(torch.tensor([square(50.0 * i) for i in range(8)]), torch.zeros(8, dtype=torch.long))
    found = Boxes(truth.xyxy, truth.labels, torch.linspace(1, 0.1, 8))
    values = coco_metrics([found], [truth], num_classes=1, max_detections=4)
    assert values["mar1"].item() == pytest.approx(1 / 8)
    assert values["ap"].tolist() == [values["map"].item()]
    assert values["mar10"].item() == values["mar"].item() == pytest.approx(0.5)
    assert values["map"].item() == pytest.approx(0.5, abs=0.01)


def test_what_is_not_there_is_nan():
    one = Boxes(torch.tensor([square(0.0)]), torch.tensor([1]))
    values = coco_metrics([Boxes.none()], [one], num_classes=3)
    assert values["map"] == values["map_medium"] == values["mar"] == 0
    assert values["map_small"].isnan()
    assert values["map_large"].isnan()
    assert values["ap"].isnan().tolist() == [True, False, True]
    nothing = coco_metrics([Boxes.none()], [Boxes.none()], num_classes=3)
    assert all(v.isnan().all() for v in nothing.values())


def test_without_a_counter_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("visiontune.metrics.detection.COUNTERS", ())
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        MeanAveragePrecision(2)


SPLITS = (17, 24)  # the second process has fewer pictures, then none


def _share(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    values = []
    for split in SPLITS:
        metric = MeanAveragePrecision(K)
        part = slice(0, split) if rank == 0 else slice(split, 24)
        found, truth, crowd = (x[part] for x in random_pictures(24, K=K, absent=()))
        for i in range(0, len(truth), 5):
            metric.update(found[i : i + 5], truth[i : i + 5], crowd=crowd[i : i + 5])
        values.append(metric.compute())
        assert sum(map(len, metric.counts)) == len(truth), "after it each goes on with its own"
    torch.save(values, f"{out}{rank}")
    dist.destroy_process_group()


def test_two_processes_with_unequal_shares_find_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.spawn(_share, args=(str(tmp_path / "meet"), str(tmp_path / "out")), nprocs=2)
    found, truth, crowd = random_pictures(24, K=K, absent=())
    whole = coco_metrics(found, truth, num_classes=K, crowd=crowd)
    for rank in (0, 1):
        for values in torch.load(tmp_path / f"out{rank}"):
            for name, value in values.items():
                torch.testing.assert_close(value, whole[name], equal_nan=True)
