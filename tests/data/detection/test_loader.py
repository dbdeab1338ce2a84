import pickle

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from PIL import Image

from tests.data.detection.sets import write_set
from visiontune.boxes import Boxes, BoxList, Letterbox, LetterboxList
from visiontune.data.broken import Broken
from visiontune.data.detection.augment import BoxAugment
from visiontune.data.detection.datamodule import BoxData
from visiontune.data.detection.loader import BoxPictures, collate_boxes, make_box_loader
from visiontune.data.detection.order import SizedOrder, multi_scale, sizes_between
from visiontune.data.detection.read import read_boxes
from visiontune.data.detection.views import BOX_PIPELINES, BoxView
from visiontune.data.order import EvalOrder

N = 22
YOLOX = BoxView.of(BOX_PIPELINES["yolox"], {"mosaic": 0.6, "mixup": 0.5, "plain_end": 0.5, "albumentations": [{"RandomGamma": {"p": 0.5}}]})


@pytest.fixture
def made(tmp_path):
    """Twenty-two pictures of different shapes, a few of them empty."""
    rng = np.random.default_rng(0)
    things = {}
    for i in range(N):
        w, h = (int(x) for x in rng.integers(60, 120, 2))
        boxes = [(("cat", "dog")[i % 2], (5, 6, 25 + i, 40)), ("dog", (w - 20, h - 25, w, h))] if i % 5 else []
        things[f"{i:02d}.png"] = ((w, h), boxes)
    return write_set(tmp_path / "set", things)


@pytest.fixture
def table(made):
    return read_boxes(**made.coco)


def training(table, *, step=0, workers=0, view=YOLOX, epochs=4, batch_size=4, replace=True, **order):
    dataset = BoxPictures(table, (64, 96), augment=BoxAugment(view), seed=5, replace=replace, mixed_epochs=view.mixed_epochs(epochs))
    sizes = multi_scale((64, 96), view.sizes, seed=5)
    return make_box_loader(dataset, SizedOrder(len(table), batch_size, 5, lambda: step, sizes=sizes, **order), workers=workers)


def same(a, b):
    assert a.keys() == b.keys()
    assert torch.equal(a["images"], b["images"])
    assert torch.equal(a["index"], b["index"])
    assert a["broken"] == b["broken"]
    for x, y in zip(a["boxes"], b["boxes"], strict=True):
        assert torch.equal(x.xyxy, y.xyxy)
        assert torch.equal(x.labels, y.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_gives_each_picture_once_with_the_way_back(table, workers):
    batches = list(make_box_loader(BoxPictures(table, (64, 96)), EvalOrder(N, 4), workers=workers))
    assert [len(b["images"]) for b in batches] == [4, 4, 4, 4, 4, 2]
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(N))
    for batch in batches:
        assert batch["images"].shape[1:] == (3, 64, 96)
        assert batch["images"].dtype == torch.uint8
        for i, boxes, letterbox in zip(batch["index"].tolist(), batch["boxes"], batch["letterbox"], strict=True):
            torch.testing.assert_close(letterbox.outside(boxes).xyxy, table.boxes_of(i).xyxy, rtol=0, atol=1e-3)
            assert torch.equal(boxes.labels, table.boxes_of(i).labels)
            assert (letterbox.height, letterbox.width) == tuple(table.sizes[i])


def test_training_batches_depend_on_seed_and_key_alone_not_on_the_worker(table):
    epochs = [list(training(table, workers=w)) for w in (0, 2)]
    assert len(epochs[0]) == N // 4
    for a, b in zip(*epochs, strict=True):
        same(a, b)
    other = list(training(table, step=N // 4))  # the next epoch
    assert not any(
        a["images"].shape == b["images"].shape and torch.equal(a["images"], b["images"]) for a, b in zip(epochs[0], other, strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loader_started_at_a_step_goes_on_as_the_unbroken_one(table, accumulate):
    """Four epochs of which the last two are plain; stopped in each of them, sizes and mosaics and all."""
    per_epoch = N // 4
    words = {"accumulate": accumulate}
    whole = [batch for epoch in range(4) for batch in training(table, step=epoch * per_epoch, **words)]
    for step in (3, per_epoch + 1, 2 * per_epoch + 2, 4 * per_epoch - 1):
        resumed = list(training(table, step=step, **words))
        expected = whole[step * accumulate : (step // per_epoch + 1) * per_epoch * accumulate]
        assert len(resumed) == len(expected)
        for a, b in zip(resumed, expected, strict=True):
            same(a, b)


def test_the_last_epochs_are_without_mosaic_and_mixup(table):
    view = BoxView.of(BOX_PIPELINES["none"], {"mosaic": 1.0, "mixup": 1.0, "plain_end": 0.5})
    for epoch, mixed in ((0, True), (1, True), (2, False), (3, False)):
        for batch in training(table, step=epoch * (N // 4), view=view):
            plain = []
            for i, boxes in zip(batch["index"].tolist(), batch["boxes"], strict=True):
                expected = Letterbox.of(*table.sizes[i].tolist(), (64, 96)).inside(table.boxes_of(i)).xyxy
                plain.append(len(boxes) == len(expected) and torch.allclose(boxes.xyxy, expected, atol=0.6))  # whole pixels
            assert all(plain) != mixed


def test_two_processes_see_what_one_sees_each_its_half(table):
    one = list(training(table, view=BoxView(sizes=(0.5, 1.5))))
    halves = [list(training(table, view=BoxView(sizes=(0.5, 1.5)), rank=r, world_size=2)) for r in (0, 1)]
    for whole, first, second in zip(one, *halves, strict=True):
        assert torch.equal(whole["images"], torch.cat([first["images"], second["images"]]))
        assert torch.equal(whole["index"], torch.cat([first["index"], second["index"]]))


def test_sizes_of_batches_are_multiples_of_32_that_vary():
    assert sizes_between((640, 640), (0.7, 1.3)) == [(s, s) for s in range(448, 833, 32)]
    assert sizes_between((224, 224), (1.0, 1.0)) == [(224, 224)]
    assert all(h % 32 == w % 32 == 0 and abs(w / h - 2) < 0.34 for h, w in sizes_between((320, 640), (0.3, 2.0)))
    drawn = multi_scale((640, 640), (0.7, 1.3), seed=0)
    sizes = [drawn(e, b)[0] for e in range(3) for b in range(200)]
    assert set(sizes) == set(range(448, 833, 32))
    assert sizes[:200] != sizes[200:400]
    assert sizes == [drawn(e, b)[0] for e in range(3) for b in range(200)]


# ---------------------------------------------------------------- what cannot be read


def break_some(made):
    (made.images / "03.png").write_bytes(b"")
    whole = (made.images / "04.png").read_bytes()
    (made.images / "04.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    (made.images / "06.png").unlink()
    Image.new("RGB", (50, 50)).save(made.images / "07.png")
    return {"03.png": "empty file", "04.png": "cut off", "06.png": "file is gone", "07.png": "other size than annotated: 50x50"}


def told(batches):
    return {path.rpartition("/")[2]: cause for batch in batches for path, cause in batch["broken"]}


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_in_training_others_take_the_place_of_broken_pictures(made, table, mosaic):
    causes = break_some(made)
    view = BoxView(mosaic=mosaic, mixup=mosaic, plain_end=0)
    batches = list(training(table, view=view, batch_size=2))
    assert [len(b["images"]) for b in batches] == [2] * (N // 2)
    assert told(batches).keys() == causes.keys()
    assert all(told(batches)[name].startswith(cause) for name, cause in causes.items())
    indices = torch.cat([b["index"] for b in batches]).tolist()
    assert not {3, 4, 6, 7} & set(indices)
    again = list(training(table, view=view, batch_size=2, workers=1))
    for a, b in zip(batches, again, strict=True):
        same(a, b)


def test_in_validation_broken_pictures_are_left_out(made, table):
    causes = break_some(made)
    batches = list(make_box_loader(BoxPictures(table, (64, 96)), EvalOrder(N, 4), workers=0))
    assert torch.cat([b["index"] for b in batches]).tolist() == [i for i in range(N) if i not in (3, 4, 6, 7)]
    assert all(len(b["images"]) == len(b["boxes"]) == len(b["letterbox"]) == len(b["index"]) for b in batches)
    assert told(batches).keys() == causes.keys()


@pytest.mark.parametrize("replace", [False, True])
def test_a_batch_of_broken_pictures_alone_is_an_empty_one(made, table, replace):
    for file in made.images.iterdir():
        file.write_bytes(b"")
    dataset = BoxPictures(table, (64, 96), replace=replace)
    batch = collate_boxes([dataset[(0, 0)], dataset[(1, 0)]])
    assert batch["images"].shape == (0, 3, 1, 1)
    assert (list(batch["boxes"]), list(batch["letterbox"]), batch["index"].tolist()) == ([], [], [])
    assert len(batch["broken"]) >= 2


def test_crowds_are_not_learnt_from(table):
    table.crowd[:] = True
    batch = collate_boxes([BoxPictures(table, (64, 96))[(1, 0)]])
    assert len(batch["boxes"][0]) == 0
    assert len(table.boxes_of(1, crowd=True)) == 2


# ---------------------------------------------------------------- transport


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [2, 0, 3]])
def test_boxes_of_a_batch_travel_as_two_tensors_and_come_out_as_they_were(counts):
    rng = torch.Generator().manual_seed(0)
    boxes = BoxList(Boxes(torch.rand(n, 4, generator=rng), torch.arange(n)) for n in counts)
    for moved in (pickle.loads(pickle.dumps(boxes)), boxes.to("cpu")):
        assert isinstance(moved, BoxList)
        assert len(moved) == len(boxes)
        assert all(torch.equal(a.xyxy, b.xyxy) and torch.equal(a.labels, b.labels) for a, b in zip(moved, boxes, strict=True))
    if counts:
        assert len({b.xyxy.untyped_storage().data_ptr() for b in boxes.to("cpu")}) == 1


def test_a_batch_goes_to_a_device_as_lightning_moves_it():
    boxes = BoxList([Boxes(torch.rand(2, 4), torch.arange(2))])
    batch = {"images": torch.zeros(1, 3, 4, 4), "boxes": boxes, "letterbox": LetterboxList([Letterbox(1.0, 0.0, 0.0, 4, 4)])}
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved["boxes"][0].xyxy.is_meta
    assert list(moved["letterbox"]) == list(batch["letterbox"])
    assert isinstance(moved["boxes"][0], Boxes)


def test_a_mosaic_of_pictures_that_are_not_there_ends(made, table):
    for i in range(1, N):
        (made.images / f"{i:02d}.png").unlink()
    view = BoxView.of(BOX_PIPELINES["yolox"], {"mosaic": 1.0, "plain_end": 0.0})
    dataset = BoxPictures(table, (64, 64), augment=BoxAugment(view), seed=5, replace=True, mixed_epochs=1)
    item = dataset[0, 0]  # whose own picture is there
    assert item.pixels is None
    assert len(item.broken) > 3


def test_boxes_keep_their_precision_where_lightning_changes_that_of_a_batch(table):
    batch = next(iter(make_box_loader(BoxPictures(table, (64, 64)), EvalOrder(N, 4), workers=0)))
    for plugin, dtype in ((DoublePrecision(), torch.float64), (HalfPrecision("bf16-true"), torch.bfloat16)):
        changed = plugin.convert_input({**batch, "images": batch["images"].float()})
        assert changed["images"].dtype == dtype
        assert changed["boxes"][1].xyxy.dtype == torch.float32
        assert list(changed["letterbox"]) == list(batch["letterbox"])


# ---------------------------------------------------------------- with Lightning


class Seen(L.LightningModule):
    """Notes what comes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.validated = [], []

    def training_step(self, batch, _):
        self.trained.append(batch)
        return self.weight.sum()

    def validation_step(self, batch, _):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_gets_batches_and_broken_pictures_are_accounted_for(made, table, tmp_path):
    break_some(made)
    account = Broken(tmp_path / "broken.csv", limit=0.5, total=N)
    data = BoxData(table, YOLOX, (64, 96), val=table, epochs=2, batch_size=4, workers=1, seed=5, broken=account)
    module = Seen()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=2, num_sanity_val_steps=0, use_distributed_sampler=False,
                        reload_dataloaders_every_n_epochs=0, default_root_dir=tmp_path, **quiet)  # fmt: skip
    trainer.fit(module, data)
    assert data.steps_per_epoch == N // 4
    expected = [batch for epoch in range(2) for batch in training(table, step=epoch * (N // 4), epochs=2)]
    assert len(module.trained) == len(expected)
    for a, b in zip(module.trained, expected, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert "broken" not in a
    assert sum(len(b["index"]) for b in module.validated) == 2 * (N - 4)
    assert len(account.causes) == 4
    assert "other size than annotated" in (tmp_path / "broken.csv").read_text()


def test_too_many_broken_pictures_stop_a_run(made, table, tmp_path):
    from visiontune.errors import UserError

    for i in range(8):
        (made.images / f"{i:02d}.png").write_bytes(b"")
    account = Broken(None, limit=0.01, total=N)
    data = BoxData(table, BoxView(), (64, 96), epochs=3, batch_size=4, workers=0, seed=5, broken=account)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=3, use_distributed_sampler=False, default_root_dir=tmp_path, **quiet)
    with pytest.raises(UserError, match="of 22 pictures cannot be read, more than data.max_broken allows"):
        trainer.fit(Seen(), data)
