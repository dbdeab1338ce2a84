"""Shards, against the `webdataset` package both ways, and the order that reads neighbours together."""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest
import torch
import webdataset

from visiontune.data import shard_index
from visiontune.data import shards as module
from visiontune.data.decode import BrokenPicture, decode_whole
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder, TrainOrder
from visiontune.data.shard_order import ShardShuffle
from visiontune.data.shard_writer import write_shards
from visiontune.data.shards import is_shards, open_shards, read_member
from visiontune.data.table import Members, PictureTable
from visiontune.errors import UserError


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def tar(path, members: dict[str, bytes], old: bool = True) -> None:
    """`old`: as if written a minute ago; what is younger than two seconds is never trusted to be unchanged."""
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    if old:
        os.utime(path, (time.time() - 60,) * 2)


def table_of(counts: list[int]) -> PictureTable:
    """A table of shards with these numbers of pictures, without any file."""
    shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    zeros = np.zeros(len(shard), dtype=np.int64)
    members = Members(tuple(f"{i}.tar" for i in range(len(counts))), shard, zeros, zeros)
    return PictureTable.of("", [b""] * len(shard), members=members)


@pytest.fixture
def three(tmp_path):
    """Three shards of five labelled pictures each."""
    for s in range(3):
        members = {}
        for i in range(5):
            members |= {f"{i}.cls": str(i % 2).encode(), f"{i}.png": png(10 * s + i)}
        tar(tmp_path / f"part-{s}.tar", members)
    return tmp_path


def values(table: PictureTable) -> list[int]:
    return [int(decode_whole(read_member(table, i))[0, 0, 0]) for i in range(len(table))]


ALL = [10 * s + i for s in range(3) for i in range(5)]


# ---------------------------------------------------------------- against webdataset


def test_webdataset_reads_what_is_written(pictures, tmp_path):
    source = list_pictures(pictures / "train", labelled=True)
    written = write_shards(source, tmp_path / "out", shard_bytes=40_000, processes=1)
    files = sorted(str(f) for f in (tmp_path / "out").glob("*.tar"))
    assert written.shards == len(files) > 2
    assert all(os.path.getsize(f) <= 40_000 for f in files)
    number = {os.fsdecode(source.name(i)): i for i in range(len(source))}
    met = []
    for sample in webdataset.WebDataset(files, shardshuffle=False):
        name = json.loads(sample["json"])["path"]
        assert sample["png"] == (pictures / "train" / name).read_bytes()
        assert int(sample["cls"]) == source.label(number[name])
        met.append(name)
    assert sorted(met) == sorted(number)
    assert met != sorted(met)  # a mix
    assert (tmp_path / "out" / "classes.txt").read_text() == "lying\nstanding\n"


def test_what_webdataset_writes_is_read(tmp_path):
    images = {f"a.b/{i:03d}": np.full((8, 8, 3), i, np.uint8) for i in range(40)}
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=15, verbose=0) as writer:
        for i, (key, image) in enumerate(images.items()):
            writer.write({"__key__": key, "png": image, "cls": i % 3, "json": {"i": i}, "depth.png": 255 - image})
    for path in (tmp_path, tmp_path / "train-*.tar", tmp_path / "train-{000000..000002}.tar"):
        table = open_shards(str(path), key="data.train", labelled=True)
        assert values(table) == list(range(40))
        assert table.labels.tolist() == [i % 3 for i in range(40)]
        assert table.classes == ("0", "1", "2")
    assert table.path(16) == f"{tmp_path}/train-000001.tar/a.b/016.png"


def test_long_names_and_other_members_are_read_as_webdataset_does(tmp_path):
    name = "folder-" * 30 + "/" + "é" * 30
    others = {"notes.txt": b"x", "._1.png": b"junk", "./2.PNG": png(2), "3.npy": b"", "3.jpg": png(3)}
    tar(tmp_path / "a.tar", {f"{name}.png": png(1), **others})
    table = open_shards(str(tmp_path), key="data.train", labelled=False)
    assert values(table) == [1, 2, 3]
    assert table.path(0) == f"{tmp_path}/a.tar/{name}.png"
    keys = [s["__key__"] for s in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False) if "txt" not in s]
    assert keys == [name, "./2", "3"]


def test_a_key_that_comes_again_is_another_picture(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for name, data in [("1.png", png(1)), ("1.cls", b"0"), ("2.cls", b"1"), ("2.png", png(2)), ("1.png", png(3)), ("1.cls", b"1\n")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    table = open_shards(str(tmp_path / "a.tar"), key="data.train", labelled=True)
    assert values(table) == [1, 2, 3]
    assert table.labels.tolist() == [0, 1, 1]


# ---------------------------------------------------------------- what are shards?


@pytest.mark.parametrize(
    ("files", "shards"),
    [
        (["a.tar", "b.tar", "notes.txt", "classes.txt"], True),
        (["a.tar", "1.jpg"], False),
        (["a.tar", "rose/1.jpg"], False),  # an archive beside what came out of it
        (["a.tar", "train/rose/1.jpg"], False),
        (["a.tar", "logs/x.txt"], True),
        (["1.jpg", "2.jpg"], False),
        ([".hidden.tar"], False),
        ([], False),
    ],
)
def test_a_folder_is_one_of_shards_or_of_pictures(tmp_path, files, shards):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert is_shards(str(tmp_path)) == shards


def test_files_and_patterns_are_shards(tmp_path):
    assert all(map(is_shards, ("a.tar", "x/train-*.tar", "train-{000..012}.tar", "old.tar.gz")))
    assert not any(map(is_shards, ("photos", "photos/1.jpg", "photos/*.jpg")))


def test_brace_ranges_are_written_out_as_webdataset_does():
    for pattern in ("{a,b}-{08..11}.tar", "{3..1}.tar", "x{8..11}", "x{098..101}", "plain", "x{a}y"):
        expected = list(webdataset.shardlists.expand_urls(pattern))
        assert list(module._braces(pattern)) == expected


def test_missing_shards_are_named_with_what_is_there(three):
    with pytest.raises(UserError, match=r"data.train: no shard .*part-3.tar, .*part-4.tar; .* holds part-0.tar, part-1"):
        open_shards(f"{three}/part-{{0..4}}.tar", key="data.train", labelled=False)
    with pytest.raises(UserError, match="there is no folder"):
        open_shards(f"{three}/nothing/*.tar", key="data.train", labelled=False)


# ---------------------------------------------------------------- labels


def test_class_names_come_from_a_file_or_are_the_numbers(three):
    assert open_shards(str(three), key="data.train", labelled=True).classes == ("0", "1")
    (three / "classes.txt").write_text("lying\nstanding\nsitting\n")
    table = list_pictures(three, labelled=True)
    assert table.classes == ("lying", "standing", "sitting")
    assert table.labels.tolist() == [0, 1, 0, 1, 0] * 3
    (three / "classes.txt").write_text("lying\n")
    with pytest.raises(UserError, match="has class 1, but .*classes.txt names 1 class, from 0"):
        open_shards(str(three), key="data.train", labelled=True)


def test_numbers_with_gaps_become_classes_without(tmp_path):
    tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"7", "2.png": png(2), "2.cls": b"3", "3.png": png(3), "3.cls": b"7"})
    table = open_shards(str(tmp_path), key="data.train", labelled=True)
    assert (table.classes, table.labels.tolist()) == (("3", "7"), [1, 0, 1])


def test_one_class_is_enough_where_that_is_said(tmp_path):
    tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"4", "2.png": png(2), "2.cls": b"4"})
    table = open_shards(str(tmp_path), key="data.val", labelled=True, fewest=1)
    assert (table.classes, table.labels.tolist()) == (("4",), [0, 0])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": png(1), "2.png": png(2)}, "no picture has a label; .*0017.cls"),
        ({"1.png": png(1), "2.png": png(2), "2.cls": b"1"}, "1 of 2 pictures have no label, such as .*/a.tar/1.png"),
        ({"1.png": png(1), "1.cls": b"cat", "2.png": png(2), "2.cls": b"1"}, "a.tar/1.cls holds b'cat', which is no class number"),
        ({"1.png": png(1), "1.cls": b"9" * 25}, "a.tar/1.cls holds"),
        ({"1.png": png(1), "1.cls": b"4"}, "all pictures .* are of class 4"),
    ],
)
def test_labels_that_cannot_work_are_told(tmp_path, members, message):
    tar(tmp_path / "a.tar", members)
    assert len(open_shards(str(tmp_path), key="data.val", labelled=False)) == len([m for m in members if m.endswith("png")])
    with pytest.raises(UserError, match=f"data.val: .*{message}"):
        open_shards(str(tmp_path), key="data.val", labelled=True)


# ---------------------------------------------------------------- shards that are not whole


def test_a_shard_that_was_cut_off_gives_its_whole_pictures_and_a_note(three):
    with tarfile.open(three / "part-1.tar") as whole:
        members = {m.name: m for m in whole}
    data = (three / "part-1.tar").read_bytes()
    inside, between = members["3.png"].offset_data + 20, members["3.cls"].offset
    for end, kept in ((inside, 3), (between, 3), (len(data) // 10240 * 10240 - 10240, None)):
        (three / "part-1.tar").write_bytes(data[:end])
        table = open_shards(str(three), key="data.train", labelled=False)
        if kept is not None:
            assert values(table) == ALL[: 5 + kept] + ALL[10:]
        assert any("part-1.tar is cut off or damaged at byte" in note for note in table.notes)


def test_a_picture_whose_label_was_cut_off_is_left_out(tmp_path):
    tar(tmp_path / "a.tar", {"1.bmp": png(1), "1.cls": b"0", "2.bmp": png(2), "2.cls": b"1", "3.bmp": png(3), "3.cls": b"1"})
    with tarfile.open(tmp_path / "a.tar") as whole:
        os.truncate(tmp_path / "a.tar", whole.getmember("3.cls").offset + 512)
    assert values(open_shards(str(tmp_path), key="data.train", labelled=True)) == [1, 2]


def test_a_damaged_header_ends_a_shard_with_a_note(three):
    with tarfile.open(three / "part-2.tar") as whole:
        at = whole.getmember("2.cls").offset
    data = bytearray((three / "part-2.tar").read_bytes())
    data[at : at + 100] = b"\xff" * 100
    (three / "part-2.tar").write_bytes(data)
    table = open_shards(str(three), key="data.train", labelled=False)
    assert values(table) == ALL[:12]
    assert any(f"part-2.tar is cut off or damaged at byte {at:,}" in note for note in table.notes)


def test_files_that_are_no_plain_tar_are_named_together(three):
    (three / "part-0.tar").write_bytes(gzip.compress((three / "part-0.tar").read_bytes()))
    (three / "part-1.tar").write_bytes(b"<html>not found</html>" * 99)
    (three / "part-2.tar").write_bytes(b"")
    with pytest.raises(UserError, match="part-0.tar is compressed.*gzip -d.*part-1.tar is no tar file.*part-2.tar is empty"):
        open_shards(str(three), key="data.train", labelled=False)
    with pytest.raises(UserError, match="is compressed"):
        open_shards(str(shutil.copy(three / "part-0.tar", three / "x.tar.gz")), key="data.train", labelled=False)


def test_shards_without_pictures_are_told(tmp_path):
    tar(tmp_path / "a.tar", {"1.txt": b"x", "1.cls": b"0"})
    with pytest.raises(UserError, match="data.train: no picture in the 1 shard of"):
        open_shards(str(tmp_path), key="data.train", labelled=False)


def test_broken_pictures_are_reported_by_shard_and_member(three):
    members = {f"{i}.png": png(i) for i in range(5)} | {"2.png": png(2)[:40]}
    tar(three / "part-1.tar", members)
    table = open_shards(str(three), key="data.train", labelled=False)
    views = Pictures(table, lambda picture, rng: [picture.whole()])
    broken = [b for batch in make_loader(views, EvalOrder(15, 5), workers=0) for b in batch["broken"]]
    assert [path for path, _ in broken] == [f"{three}/part-1.tar/2.png"]


def test_a_shard_that_changed_after_it_was_listed_has_a_cause(three):
    table = open_shards(str(three), key="data.train", labelled=False)
    (three / "part-2.tar").unlink()
    os.truncate(three / "part-1.tar", 6000)
    with pytest.raises(BrokenPicture, match="its shard is gone"):
        read_member(table, 12)
    with pytest.raises(BrokenPicture, match="shorter than it was"):
        read_member(table, 9)
    assert read_member(table, 4) == png(4)


# ---------------------------------------------------------------- the index


def test_tars_joined_into_one_file_are_told(three, tmp_path):
    folder = tmp_path / "joined"
    folder.mkdir()
    parts = sorted(three.glob("*.tar"))[:2]
    (folder / "a.tar").write_bytes(b"".join(p.read_bytes() for p in parts))
    assert "a.tar goes on after its end mark" in " ".join(open_shards(str(folder), key="k", labelled=False).notes)


def _noted(read):
    """`list_shard` that notes which shards it was asked for."""
    list_shard = shard_index.list_shard
    return lambda place: read.append(place[1]) or list_shard(place)


def test_only_shards_that_changed_are_read_again(three, monkeypatch):
    read = []
    monkeypatch.setattr(shard_index, "list_shard", _noted(read))

    def opened():
        read.clear()
        return open_shards(str(three), key="data.train", labelled=True)

    assert values(opened()) == ALL
    assert read == ["part-0.tar", "part-1.tar", "part-2.tar"]
    first = opened()
    assert not read
    assert "unchanged" in first.notes[0]
    os.utime(three / "part-1.tar", (time.time() - 30,) * 2)
    assert opened().names.tobytes() == first.names.tobytes()
    assert read == ["part-1.tar"]
    tar(three / "part-1.tar", {"x.cls": b"1", "x.png": png(99)})
    assert values(opened()) == [*ALL[:5], 99, *ALL[10:]]
    assert read == ["part-1.tar"]
    assert opened().labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    (three / "part-0.tar").rename(three / "part-9.tar")
    assert values(opened()) == [99, *ALL[10:], *ALL[:5]]
    assert read == ["part-9.tar"]
    assert first.path(14).endswith("part-2.tar/4.png")  # a table that is open keeps its listing


def test_a_shard_that_was_just_written_is_not_trusted(three, monkeypatch):
    tar(three / "part-0.tar", {"1.png": png(1)}, old=False)
    open_shards(str(three), key="data.train", labelled=False)
    read = []
    monkeypatch.setattr(shard_index, "list_shard", _noted(read))
    open_shards(str(three), key="data.train", labelled=False)
    assert read == ["part-0.tar"]


def test_a_damaged_index_is_made_again(three):
    open_shards(str(three), key="data.train", labelled=False)
    for file in (shard_index.cache_folder() / "index").glob("*.visiontune-shards"):
        file.write_bytes(file.read_bytes()[:-200])
    assert values(open_shards(str(three), key="data.train", labelled=False)) == ALL


def test_processes_that_start_together_see_the_same(three):
    code = f"from visiontune.data.shards import *; t = open_shards({str(three)!r}, key='k', labelled=True); print(t.fingerprint())"
    several = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in several}
    assert len(said) == 1
    assert "15 pictures" in said.pop()


def test_many_shards_are_listed_by_helpers_alike(three, monkeypatch):
    alone = open_shards(str(three), key="data.train", labelled=False)
    monkeypatch.setattr(shard_index, "ALONE_BYTES", 0)
    helped = open_shards(str(three / "part-*.tar"), key="data.train", labelled=False)
    assert helped.fingerprint() == alone.fingerprint()
    assert helped.members.start.tolist() == alone.members.start.tolist()


def test_arrays_are_mapped_and_the_table_pickles(three):
    table = open_shards(str(three), key="data.train", labelled=True)
    for array in (table.names, table.offsets, table.labels, table.members.shard, table.members.start, table.members.size):
        assert not array.flags.owndata
        assert not array.flags.writeable
    again = pickle.loads(pickle.dumps(table))
    assert values(again) == ALL
    assert values(table.take([14, 3])) == [3, 24]


def test_more_shards_than_are_kept_open_are_read(tmp_path):
    for i in range(70):
        tar(tmp_path / f"{i:02d}.tar", {"1.png": png(i), "2.png": png(i)})
    table = open_shards(str(tmp_path), key="data.train", labelled=False)
    assert values(table) == np.repeat(range(70), 2).tolist()
    assert values(table)[::7] == np.repeat(range(70), 2).tolist()[::7]


@pytest.mark.parametrize("labelled", [False, True])
def test_workers_and_none_give_the_same_pictures(three, labelled):
    table = open_shards(str(three), key="data.train", labelled=labelled)
    batches = []
    for workers in (0, 2):
        order = TrainOrder(15, 4, 7, lambda: 0, shuffle=ShardShuffle(table, 7, block=2, window=8))
        data = Pictures(table, _first_pixels, seed=7, replace=True)
        batches.append(list(make_loader(data, order, workers=workers)))
    assert len(batches[0]) == len(batches[1]) == 3
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["images"][0], b["images"][0])
        assert torch.equal(a["labels"], b["labels"])
    shown = [int(v) for batch in batches[0] for v in batch["images"][0][:, 0, 0, 0]]
    assert len(set(shown)) == 12
    assert set(shown) < set(ALL)


def _first_pixels(picture, rng):
    return [picture.whole()[:4, :4] + rng.integers(1, dtype=np.uint8)]
