import csv
import multiprocessing
import os
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from visiontune.data import parallel
from visiontune.data.broken import Broken, count_causes
from visiontune.data.datamodule import PictureData
from visiontune.data.folder import list_pictures
from visiontune.data.inspect import inspect
from visiontune.data.loader import Pictures, auto_workers, collate, make_loader
from visiontune.data.order import EvalOrder, TrainOrder
from visiontune.data.sample import sample_folder
from visiontune.data.views import Augment, CenterCrop, Views
from visiontune.errors import UserError


@pytest.fixture
def numbered(tmp_path):
    """Twenty pictures, each of one grey: its number."""
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def numbers(batch):
    return batch["images"][0][:, 0, 0, 0].tolist()


def test_the_sample_is_the_real_digits():
    train, test = (list_pictures(f"sample:digits/{p}", labelled=True) for p in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    from sklearn.datasets import load_digits

    first = np.asarray(Image.open(sample_folder("digits/train") / "0" / "0000.png"))
    assert np.array_equal(first, (load_digits().images[0] * 255 / 16).round().astype(np.uint8))
    with pytest.raises(UserError, match="did you mean 'digits/train'"):
        sample_folder("sample:digit/train")


def test_collate_gives_uint8_channels_last_without_a_copy():
    items = [([[np.full((4, 6, 3), i, np.uint8)] * 2], i, []) for i in range(3)]
    batch = collate(items)
    assert [tuple(v.shape) for v in batch["images"]] == [(3, 3, 4, 6)] * 2
    assert batch["images"][0].dtype == torch.uint8
    assert batch["images"][0].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"].tolist() == [0, 1, 2]


def test_a_broken_picture_is_replaced_in_training_and_left_out_in_evaluation(numbered):
    (numbered / "01.png").write_bytes(b"")
    table = list_pictures(numbered)
    whole = CenterCrop((8, 8))
    replaced = [Pictures(table, whole, replace=True, seed=s)[(1, e)] for s in range(6) for e in range(2)]
    chosen = [int(views[0][0][0, 0, 0]) for views, _, _ in replaced]
    assert chosen[::2] == chosen[1::2]  # the same one in every epoch
    assert len(set(chosen)) > 1  # another one with another seed
    assert 1 not in chosen
    assert replaced[0][2] == [(str(numbered / "01.png"), "empty file")]
    batch = next(iter(make_loader(Pictures(table, whole), EvalOrder(4, 4), workers=0)))
    assert numbers(batch) == [0, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_deleted_meanwhile_is_broken(numbered, workers):
    table = list_pictures(numbered)
    loader = make_loader(Pictures(table, CenterCrop((8, 8)), replace=True), TrainOrder(20, 2, 0, lambda: 0), workers=workers)
    iterator = iter(loader)
    first = next(iterator)
    last = int(list(TrainOrder(20, 2, 0, lambda: 0))[-1][0][0])
    os.remove(numbered / f"{last:02d}.png")
    rest = list(iterator)
    assert [b["broken"] for b in rest if b["broken"]] == [[(str(numbered / f"{last:02d}.png"), "file is gone")]]
    assert sum(len(b["labels"]) for b in [first, *rest]) == 20


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_repeats_show_each_steps_pictures_that_often_in_other_crops_wherever_a_run_goes_on(numbered, accumulate, workers):
    table = list_pictures(numbered)
    size = 8 // accumulate

    def steps(first):
        order = TrainOrder(20, 8, 3, lambda: first, accumulate, repeats=3)
        dataset = Pictures(table, Augment(Views.of({"jitter": 1.0, "brightness": 0.5}), (4, 4)), seed=3, replace=True, repeats=3)
        loader = make_loader(dataset, order, workers=workers)
        assert len(loader) == 6 * accumulate
        batches = [b["images"][0] for b in loader]
        assert all(len(b) == size for b in batches)
        return [torch.cat(batches[i : i + accumulate]) for i in range(0, len(batches), accumulate)]

    whole = steps(0)
    assert len(whole) == 6
    assert not torch.equal(whole[0], whole[1])  # other brightness
    order = TrainOrder(20, 8, 3, lambda: 0, accumulate)
    shown = sorted({int(key[0]) for batch in list(order)[: 2 * accumulate] for key in batch})
    assert len(shown) == 16
    for first in (1, 2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(steps(first), whole[first:], strict=True))


def test_a_file_is_read_and_decoded_once_for_all_repeats(numbered, monkeypatch):
    from visiontune.data import decode, loader

    count = []
    read, whole = loader.read_bytes, decode.Picture._decode
    monkeypatch.setattr(loader, "read_bytes", lambda table, index: (count.append(index), read(table, index))[1])
    monkeypatch.setattr(decode.Picture, "_decode", lambda *way, **more: (count.append("decoded"), whole(*way, **more))[1])
    augment = Augment(Views.of({"views": 2, "flip": 0.5}), (8, 8))
    views, _, _ = Pictures(list_pictures(numbered), augment, repeats=4)[(3, 0)]
    assert [len(v) for v in views] == [2] * 4
    assert count == [3, "decoded"]


# ---------------------------------------------------------------- broken pictures


def test_the_account_lists_each_picture_once_with_its_cause(tmp_path):
    file = tmp_path / "broken.csv"
    account = Broken(file, limit=0.5, total=100)
    account.note([("a,b.jpg", "empty file"), ("c\n.jpg", "cut off: half of it"), ("caf\udce9.jpg", "empty file")])
    account.note([("a,b.jpg", "empty file")])
    again = Broken(file, limit=0.5, total=100)  # a resumed run
    again.note([("a,b.jpg", "empty file"), ("d.jpg", "file is gone")])
    with file.open(newline="", errors="surrogateescape") as opened:
        rows = list(csv.reader(opened))
    assert [r[0] for r in rows] == ["path", "a,b.jpg", "c\n.jpg", "caf\udce9.jpg", "d.jpg"]
    assert again.summary() == "2 empty file, 1 cut off, 1 file is gone"
    assert count_causes([]) == ""


def _account(file, rank):
    account = Broken(Path(file), limit=1, total=100)
    for i in range(40):
        account.note([(f"{i}.jpg", "empty file"), (f"{rank}-{i}.jpg", "empty file")])
    assert len(account.causes) >= 80


def test_several_processes_share_one_account(tmp_path):
    file = tmp_path / "broken.csv"
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_account, args=(str(file), r)) for r in range(3)]
    for r in ranks:
        r.start()
    for r in ranks:
        r.join()
        assert r.exitcode == 0
    with file.open() as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["path", "cause", "met"]
    paths = [r[0] for r in rows[1:]]
    assert len(paths) == len(set(paths)) == 160


def test_beyond_the_share_the_run_stops_with_the_list(tmp_path):
    account = Broken(tmp_path / "broken.csv", limit=0.1, total=100)
    account.add([(f"{i}.jpg", "empty file") for i in range(10)], got_any=True)
    with pytest.raises(
        UserError, match="11 of 100 pictures cannot be read.*10 empty file, 1 file is gone.*0.jpg.*broken.csv.*raise data.max_broken"
    ):
        account.add([("x.jpg", "file is gone")], got_any=True)
    account.note([(f"v{i}.jpg", "empty file") for i in range(50)])  # of a validation: listed, but no reason to stop
    resumed = Broken(tmp_path / "broken.csv", limit=0.1, total=100)  # some may have been repaired
    resumed.add([("1.jpg", "empty file")], got_any=True)
    assert len(resumed.causes) == 61
    few = Broken(None, limit=0.0, total=8)
    few.add([(f"{i}.jpg", "empty file") for i in range(5)], got_any=True)  # five are forgiven
    with pytest.raises(UserError):
        few.add([("6.jpg", "empty file")], got_any=True)


def test_processes_that_found_different_pictures_are_told(numbered):
    data = PictureData(list_pictures(numbered), CenterCrop((8, 8)), batch_size=4, workers=0, seed=0, broken=Broken(None, limit=1, total=20))

    class Strategy:
        def broadcast(self, _):
            return "21 pictures, 00000000"

        def reduce_boolean_decision(self, decision, all):
            return decision

    data.trainer = type("Trainer", (), {"world_size": 2, "strategy": Strategy()})()
    with pytest.raises(UserError, match="found different pictures.*20 pictures.*21 pictures"):
        data.setup("fit")


# ---------------------------------------------------------------- a look before training


def test_a_folder_is_looked_through_before(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b/copy.png")
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b/copy2.png")
    shutil.copy(tmp_path / "a/2.png", tmp_path / "a/copy.png")
    Image.fromarray(np.zeros((9, 90, 3), np.uint8)).save(tmp_path / "a/tiny.png")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    for processes in (1, 2):
        found = inspect(list_pictures(tmp_path, labelled=True), processes=processes)
        path = [os.path.relpath(found.table.path(i), tmp_path) for i in range(len(found.table))]
        assert [(path[i], cause) for i, cause in found.broken] == [("a/empty.png", "empty file")]
        assert [[path[i] for i in group] for group in found.duplicates] == [
            ["a/1.png", "b/copy.png", "b/copy2.png"],
            ["a/2.png", "a/copy.png"],
        ]
        assert (found.copies, found.across_classes()) == (3, 1)
        assert [(path[i], h, w) for i, h, w in found.tiny] == [("a/tiny.png", 9, 90)]
        assert sorted(found.sizes.tolist()) == [9] + [40] * 7
    found.write_csv(tmp_path / "found.csv")
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["problem"] for r in rows] == ["broken"] + ["duplicate"] * 3 + ["tiny"]
    assert "duplicates in several classes: 1 groups" in "\n".join(found.lines(32))


# ---------------------------------------------------------------- cores


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4.0),
        (
            "4:cpu,cpuacct:/slurm\n3:memory:/x",
            {"cpu,cpuacct/slurm/cpu.cfs_quota_us": "250000", "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quotas_of_control_groups_are_found(tmp_path, cgroup, files, cores):
    (tmp_path / "proc").write_text(cgroup + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    found = list(parallel._quotas(tmp_path / "proc", tmp_path / "fs"))
    assert (min(found) if found else None) == cores


def test_workers_come_with_a_reason(monkeypatch):
    from visiontune.data import loader

    monkeypatch.setattr(loader, "available_cores", lambda: 32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert auto_workers(4) == (7, "32 cores for 4 training process(es), one core each left to the training loop, at most 16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert auto_workers(1)[0] == 1
    assert parallel.available_cores() >= 1


class Sums(L.LightningModule):
    """Adds up the grey of the validation pictures over all processes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.total = torch.zeros(2)

    def training_step(self, batch, _):
        return self.weight.sum() * 0

    def validation_step(self, batch, _):
        images = batch[0] if isinstance(batch, list) else batch
        self.total += torch.tensor([float(images[:, 0, 0, 0].float().sum()) if len(images) else 0.0, len(images)])

    def on_validation_epoch_end(self):
        total = self.trainer.strategy.reduce(self.total, reduce_op="sum")
        assert total.tolist() == [190.0, 20.0], total

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_evaluation_is_exact_over_two_processes(numbered, tmp_path):
    """Twenty pictures over two processes in batches of three: none twice, none left out, none to fill up."""
    from tests.conftest import run_command  # noqa: F401 (the script below runs as a user's would)

    script = f"""
import lightning as L
from tests.data.test_loader import Sums
from visiontune.data.broken import Broken
from visiontune.data.datamodule import PictureData
from visiontune.data.folder import list_pictures
from visiontune.data.views import CenterCrop
if __name__ == "__main__":
    table = list_pictures({str(numbered)!r})
    data = PictureData(table, CenterCrop((8, 8)), val=table, batch_size=6, workers=0, seed=0, broken=Broken(None, limit=1, total=20))
    data.labelled = True
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir={str(tmp_path)!r})
    trainer.fit(Sums(), data)
    print("exact")
"""
    import subprocess
    import sys

    from tests.conftest import ROOT

    file = tmp_path / "two.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, str(file)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.count("exact") >= 1, done.stderr[-3000:]
    assert done.returncode == 0
