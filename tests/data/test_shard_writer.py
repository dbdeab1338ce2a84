"""Pictures packed into shards."""

import json
import os
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.data.test_shards import png, table_of, tar, three, values  # noqa: F401 (three is a fixture)
from visiontune.data.decode import decode_whole
from visiontune.data.folder import list_pictures
from visiontune.data.read import read_bytes
from visiontune.data.shard_writer import write_shards
from visiontune.data.shards import read_member
from visiontune.errors import UserError


def test_shrunk_pictures_have_the_short_side_and_small_ones_keep_their_bytes(tmp_path):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    wide = cv2.resize(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8), (400, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    Image.fromarray(wide).save(photos / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(wide).save(photos / "wide.png")
    Image.fromarray(wide[:50]).save(photos / "small.png")
    np.save(photos / "array.npy", np.zeros((200, 300), np.float32))
    written = write_shards(list_pictures(photos), tmp_path / "out", size=100, processes=1)
    assert (written.pictures, written.shrunk, written.classes) == (4, 2, 0)
    table = list_pictures(tmp_path / "out")
    samples = webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False)
    found = {json.loads(s["json"])["path"]: s for s in samples}
    assert found["small.png"]["png"] == (photos / "small.png").read_bytes()
    assert found["array.npy"]["npy"] == (photos / "array.npy").read_bytes()
    turned, straight = (decode_whole(found[n]["jpg"]) for n in ("turned.jpg", "wide.png"))
    assert (turned.shape, straight.shape) == ((133, 100, 3), (100, 133, 3))
    exact = cv2.resize(wide, (133, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(straight.astype(int) - exact).mean() < 3
    assert np.abs(turned.astype(int) - np.rot90(exact, -1)).mean() < 4
    assert len(table) == 4


def test_the_same_pictures_give_the_same_bytes_with_any_helpers(pictures, tmp_path):
    source = list_pictures(pictures / "train", labelled=True)
    for name, processes in (("a", 1), ("b", 2)):
        write_shards(source, tmp_path / name, size=16, shard_bytes=50_000, processes=processes)
    files = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert files == sorted(f.name for f in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    write_shards(source, tmp_path / "c", size=16, seed=1, processes=1)
    assert (tmp_path / "a" / files[-1]).read_bytes() != (tmp_path / "c" / "shard-000000.tar").read_bytes()


def test_labels_and_names_survive_the_way_through_shards(pictures, tmp_path):
    source = list_pictures(pictures / "train", labelled=True)
    write_shards(source, tmp_path / "once", processes=1)
    once = list_pictures(tmp_path / "once", labelled=True)
    assert once.classes == source.classes
    write_shards(once, tmp_path / "twice", processes=1)  # shards of shards: shuffled once more, or smaller
    twice = list_pictures(tmp_path / "twice", labelled=True)

    def content(table, read):
        return Counter((read(i), table.label(i)) for i in range(len(table)))

    files = content(source, lambda i: read_bytes(source, i))
    assert content(once, lambda i: read_member(once, i)) == content(twice, lambda i: read_member(twice, i)) == files


def test_broken_pictures_are_left_out_and_listed(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        (photos / f"{i}.png").write_bytes(png(i))
    (photos / "half.png").write_bytes(png(9)[:50])
    (photos / "empty.jpg").write_bytes(b"")
    written = write_shards(list_pictures(photos), tmp_path / "out", processes=1)
    assert (written.pictures, written.broken) == (4, 2)
    rows = (tmp_path / "out" / "broken.csv").read_text().splitlines()
    assert rows[0] == "path,cause"
    assert sorted(row.split(",")[0] for row in rows[1:]) == [f"{photos}/empty.jpg", f"{photos}/half.png"]
    assert sorted(values(list_pictures(tmp_path / "out"))) == [0, 1, 2, 3]
    for i in range(4):
        (photos / f"{i}.png").unlink()
    with pytest.raises(UserError, match="no picture can be read: .*empty.jpg"):
        write_shards(list_pictures(photos), tmp_path / "none", processes=1)
    assert not os.listdir(tmp_path / "none")


def test_nothing_is_left_of_a_run_that_failed_and_other_files_are_not_touched(pictures, tmp_path):
    source = list_pictures(pictures / "train")

    def stop(done):
        if done > 20:
            assert not list((tmp_path / "out").glob("*.tar"))  # no half set that looks whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, tmp_path / "out", shard_bytes=30_000, processes=1, progress=stop)
    assert not os.listdir(tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty .it holds mine.txt.; name a new folder, or empty this one"):
        write_shards(source, tmp_path / "out")
    with pytest.raises(UserError, match="cannot write"):
        write_shards(source, tmp_path / "out" / "mine.txt")
    with pytest.raises(UserError, match="size is 0"):
        write_shards(source, tmp_path / "new", size=0)


def test_the_summary_says_what_and_where(pictures, tmp_path):
    written = write_shards(list_pictures(pictures / "val", labelled=True), tmp_path / "out", size=16, processes=1)
    text = "\n".join(written.lines())
    assert f"16 pictures in 1 shard ({written.bytes / 1e6:.1f} MB) in {tmp_path / 'out'}, 16 of them shrunk" in text
    assert "2 classes" in text
    assert "broken" not in text
    assert "1,234 broken" in "\n".join(replace(written, broken=1234).lines())
