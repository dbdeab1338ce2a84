import itertools
import mmap
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from visiontune.__main__ import main
from visiontune.data import index as index_module
from visiontune.data import walk as walk_module
from visiontune.data.folder import list_pictures
from visiontune.data.index import index_file, open_index
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.parts import few_labels
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError

NOW = time.time()


@pytest.fixture(autouse=True)
def _times_can_be_set(monkeypatch):
    """These tests set folders' times back, as nothing can do with the system's own note of a change."""
    monkeypatch.setattr(walk_module, "changed_ns", lambda found: found.st_mtime_ns)


def make(root, *names):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def age(root, seconds=1000.0):
    """As if nothing had changed for a while: what changed within two seconds is listed again."""
    for folder, _, _ in os.walk(root):
        if os.stat(folder).st_mtime > NOW - 10:
            os.utime(folder, (NOW - seconds, NOW - seconds))


def names(index):
    blob, ends = index.names.tobytes(), index.offsets.tolist()
    return [blob[a:b] for a, b in itertools.pairwise(ends)]


def test_a_folder_is_listed_sorted_at_any_depth_and_other_files_are_left(tmp_path):
    make(tmp_path, "b/2.PNG", "a/x/1.jpg", "a/0.jpeg", "a/notes.txt", "c.tif", "a-b/3.webp", ".hidden.jpg", ".thumbs/4.jpg")
    table = list_pictures(tmp_path)
    found = [table.path(i).removeprefix(f"{tmp_path}/") for i in range(len(table))]
    assert found == ["c.tif", "a/0.jpeg", "a/x/1.jpg", "a-b/3.webp", "b/2.PNG"]
    labelled = list_pictures(tmp_path, labelled=True)
    assert labelled.classes == ("a", "a-b", "b")
    assert labelled.labels.tolist() == [0, 0, 1, 2]
    assert labelled.path(0).endswith("a/0.jpeg")


def test_pictures_that_are_not_read_here_are_counted_and_told(tmp_path, capsys):
    phone = [f"b/IMG_{i}.HEIC" for i in range(3)]
    make(tmp_path, "a/1.jfif", "a/2.jpg", "a/raw/3.dng", *phone, "b/._IMG_0.HEIC", "b/4.png", "b/notes.txt", "b/raf")
    (tmp_path / "b" / "5.heic").mkdir()
    age(tmp_path)
    told = "3 files of .heic, 1 file of .dng left out, which are not read here; convert them to JPEG or PNG"
    for listed in (5, 0):
        found = open_index(str(tmp_path))
        assert (found.listed, names(found), found.left_out) == (listed, [b"a/1.jfif", b"a/2.jpg", b"b/4.png"], told)
    make(tmp_path, "a/raw/6.avif", "a/raw/7.dng")  # what other folders hold is known from before
    found = open_index(str(tmp_path))
    assert (found.listed, found.left_out) == (1, told.replace("1 file of .dng", "2 files of .dng, 1 file of .avif"))
    assert f"data.val: {found.left_out}" in list_pictures(tmp_path, key="data.val", labelled=True).notes
    assert main(["index", str(tmp_path)]) == 0
    assert f"index: {found.left_out}" in capsys.readouterr().out

    make(tmp_path / "phone", *phone)
    with pytest.raises(UserError, match="no picture in .*; it holds b; 3 files of .heic left out, .*; pictures end in .jpg"):
        list_pictures(tmp_path / "phone")
    assert open_index(str(tmp_path / "phone")).left_out.startswith("3 files of .heic left out")
    make(tmp_path / "plain", "1.jpg")
    assert open_index(str(tmp_path / "plain")).left_out == ""


def test_labels_are_taken_where_every_picture_has_one(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    assert list_pictures(tmp_path, labelled=None).classes == ("a", "b")
    make(tmp_path, "3.jpg")
    table = list_pictures(tmp_path, labelled=None)
    assert (len(table), table.labels) == (3, None)


def test_the_order_is_that_of_the_names_whatever_the_order_of_creation_and_the_number_of_processes(tmp_path, monkeypatch):
    files = [f"{d}/{i}.jpg" for d in ("x/y", "x", "z", "q/r/s") for i in range(5)]
    found = []
    for trial in range(3):
        shuffled = random.Random(trial).sample(files, len(files))
        make(tmp_path / str(trial), *shuffled)
        monkeypatch.setattr(walk_module, "ALONE_SECONDS", 0 if trial else 10)
        found.append(names(open_index(str(tmp_path / str(trial)), processes=1 + trial)))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 20


def test_an_unchanged_folder_is_opened_without_listing_anything(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "a/b/2.jpg", "c/3.jpg")
    age(tmp_path)
    first = open_index(str(tmp_path))
    assert first.listed == 4
    monkeypatch.setattr(os, "scandir", None)  # would be called to list
    again = open_index(str(tmp_path))
    assert again.listed == 0
    assert names(again) == names(first)


def test_only_folders_that_changed_are_listed_again(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "a/b/2.jpg", "c/3.jpg", "d/4.jpg")
    age(tmp_path)
    open_index(str(tmp_path))
    make(tmp_path, "a/b/9.jpg", "a/b/new/7.jpg")
    os.remove(tmp_path / "d" / "4.jpg")
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(os.fsdecode(path).removeprefix(f"{tmp_path}")), scandir(path))[1])
    found = open_index(str(tmp_path), processes=1)
    assert sorted(scanned) == ["/a/b", "/a/b/new", "/d"]
    assert names(found) == [b"a/1.jpg", b"a/b/2.jpg", b"a/b/9.jpg", b"a/b/new/7.jpg", b"c/3.jpg"]


def test_any_sequence_of_changes_gives_what_a_fresh_listing_gives(tmp_path):
    rng = random.Random(0)
    root = tmp_path / "photos"
    make(root, "a/0.jpg")
    folders = ["a"]
    for step in range(60):
        kind = rng.choice(["file", "file", "folder", "remove", "rename", "link", "swap"])
        where = rng.choice(folders)
        if kind == "file":
            make(root, f"{where}/{step}.jpg")
        elif kind == "folder":
            folders.append(f"{where}/{step}")
            make(root, f"{where}/{step}/x.png")
        elif kind == "link":
            os.symlink(root / rng.choice(folders), root / where / f"link{step}")
        else:
            files = [p for p in root.rglob("*.jpg") if not p.is_symlink()]
            if files and kind == "remove":
                os.remove(rng.choice(files))
            elif files:
                chosen = rng.choice(files)
                os.replace(chosen, chosen.with_name(f"moved{step}.jpg"))
        if step % 4 == 0:
            age(root, 2000 - step)
        kept = names(open_index(str(root)))
        assert kept == names(open_index(str(root), fresh=True)), step
    assert len(kept) > 10


def test_a_change_in_the_same_tick_as_the_listing_is_not_missed(tmp_path):
    make(tmp_path, "a/1.jpg")
    open_index(str(tmp_path))
    stamp = os.stat(tmp_path / "a")
    make(tmp_path, "a/2.jpg")
    os.utime(tmp_path / "a", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a clock too coarse to tell
    assert len(open_index(str(tmp_path))) == 2


def test_pictures_added_by_a_tool_that_sets_times_back_are_found(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("VISIONTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(walk_module, "RACY_NS", 0)
    make(tmp_path, "photos/a/1.jpg")
    os.utime(tmp_path / "photos" / "a", (NOW - 9000, NOW - 9000))
    time.sleep(0.05)
    assert len(open_index(str(tmp_path / "photos"))) == 1
    assert open_index(str(tmp_path / "photos")).listed == 0
    make(tmp_path, "photos/a/2.jpg")  # rsync -a, cp -a, tar and unzip do so
    os.utime(tmp_path / "photos" / "a", (NOW - 9000, NOW - 9000))
    assert len(open_index(str(tmp_path / "photos"))) == 2


def test_numbers_beyond_63_bits_are_no_obstacle(tmp_path, monkeypatch):
    make(tmp_path, "photos/a/1.jpg")
    stat = os.stat

    class Large:
        def __init__(self, found):
            self.found, self.st_ino, self.st_dev = found, found.st_ino + 2**63, 2**64 - 1

        def __getattr__(self, name):
            return getattr(self.found, name)

    monkeypatch.setattr(walk_module.os, "stat", lambda *a, **k: Large(stat(*a, **k)))
    assert len(open_index(str(tmp_path / "photos"))) == 1
    assert len(open_index(str(tmp_path / "photos"), fresh=True)) == 1


KILLED = """
import sys, time
from visiontune.data import walk
from visiontune.data.index import open_index

walk.ALONE_SECONDS = 0
walk._scan_all = lambda root, folders: time.sleep(60)
walk.ProcessPoolExecutor.submit = lambda pool, function, *rest, submit=walk.ProcessPoolExecutor.submit: submit(pool, time.sleep, 60)
print("ready", flush=True)
open_index(sys.argv[1], processes=3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="helpers are told by Linux when their parent dies")
def test_a_listing_that_was_killed_holds_up_nobody(tmp_path):
    make(tmp_path / "photos", *(f"{i}/{i}.jpg" for i in range(40)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, str(tmp_path / "photos")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        process.stdout.readline()
        time.sleep(2)  # its helpers are at work, and the lock is taken
        assert process.poll() is None
        process.kill()
    again = [sys.executable, "-m", "visiontune", "index", str(tmp_path / "photos")]
    found = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=40)
    assert "40 pictures" in found.stdout, found.stderr


def test_links_in_a_loop_end_and_each_folder_is_listed_once(tmp_path):
    make(tmp_path, "photos/a/1.jpg", "photos/b/2.jpg", "other/3.jpg", "other/deep/4.jpg")
    root = tmp_path / "photos"
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "across").symlink_to(root / "a")
    (root / "b" / "out").symlink_to(tmp_path / "other")
    (root / "b" / "again").symlink_to(tmp_path / "other" / "deep")
    (root / "self").symlink_to(root / "self")
    found = open_index(str(root))
    # `again` comes before `out`, so `deep` is listed there
    assert names(found) == [b"a/1.jpg", b"b/2.jpg", b"b/again/4.jpg", b"b/out/3.jpg"]
    assert set(found.header["not_followed"]) == {"a/up", "b/across"}
    assert "1 folders are listed under another name, by a link or a second mount: b/out/deep" in found.notes()[1]
    assert "2 links to folders that are listed elsewhere" in found.notes()[2]


def test_a_link_that_leads_elsewhere_than_before_is_noticed(tmp_path):
    make(tmp_path, "photos/1.jpg", "x/2.jpg", "y/3.jpg")
    (tmp_path / "photos" / "l").symlink_to(tmp_path / "current")
    (tmp_path / "current").symlink_to(tmp_path / "x")
    age(tmp_path)
    assert names(open_index(str(tmp_path / "photos"))) == [b"1.jpg", b"l/2.jpg"]
    os.remove(tmp_path / "current")
    (tmp_path / "current").symlink_to(tmp_path / "y")  # nothing inside of photos changed
    assert names(open_index(str(tmp_path / "photos"))) == [b"1.jpg", b"l/3.jpg"]


def test_a_folder_that_a_link_led_to_first_is_found_again_when_the_link_goes(tmp_path):
    make(tmp_path, "photos/a/1.jpg", "other/3.jpg", "other/deep/4.jpg")
    root = tmp_path / "photos"
    (root / "again").symlink_to(tmp_path / "other" / "deep")
    (root / "out").symlink_to(tmp_path / "other")
    age(root)
    age(tmp_path / "other")
    assert names(open_index(str(root))) == [b"a/1.jpg", b"again/4.jpg", b"out/3.jpg"]
    os.remove(root / "again")
    assert names(open_index(str(root))) == [b"a/1.jpg", b"out/3.jpg", b"out/deep/4.jpg"]


def test_a_dangling_link_with_a_pictures_name_is_kept_and_others_are_not(tmp_path):
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "folder.jpg").mkdir()
    make(tmp_path, "a/folder.jpg/2.jpg")
    assert names(open_index(str(tmp_path))) == [b"a/1.jpg", b"a/gone.jpg", b"a/folder.jpg/2.jpg"]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    make(tmp_path, b"caf\xe9/\xff.png", "ok/1.png")
    table = list_pictures(tmp_path, labelled=True)
    assert {os.fsencode(table.path(i)).split(b"/")[-1] for i in range(2)} == {b"\xff.png", b"1.png"}
    assert os.fsencode(table.classes[0]) == b"caf\xe9"
    with open(table.path(0), "rb"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_told(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    os.chmod(tmp_path / "b", 0)
    try:
        found = open_index(str(tmp_path))
        assert "1 folders could not be listed" in found.notes()[1]
        assert "b (Permission denied)" in found.notes()[1]
    finally:
        os.chmod(tmp_path / "b", 0o755)
    assert len(open_index(str(tmp_path))) == 2


def _open(root, cache, ready, results):
    os.environ["VISIONTUNE_CACHE"] = cache
    ready.wait()
    found = open_index(root)
    results.put((found.listed, found.fingerprint))


def test_several_processes_that_ask_at_once_get_the_same_and_one_of_them_lists(tmp_path):
    make(tmp_path / "photos", *(f"{d}/{i}.jpg" for d in range(30) for i in range(30)))
    age(tmp_path / "photos")
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(4), context.Queue()
    arguments = (str(tmp_path / "photos"), str(tmp_path / "cache"), ready, results)
    helpers = [context.Process(target=_open, args=arguments) for _ in range(4)]
    for h in helpers:
        h.start()
    found = [results.get(timeout=60) for _ in helpers]
    for h in helpers:
        h.join()
    assert sorted(listed for listed, _ in found) == [0, 0, 0, 31]
    assert len({fingerprint for _, fingerprint in found}) == 1


@pytest.mark.parametrize("damage", [b"", b"visiontune index 1\n\x00", b"something else", "cut"])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    make(tmp_path, "a/1.jpg")
    file = open_index(str(tmp_path)).file
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage)
    assert names(open_index(str(tmp_path))) == [b"a/1.jpg"]


def test_an_index_beside_the_folder_is_used_and_does_not_change_the_folder(tmp_path):
    make(tmp_path, "photos/a/1.jpg")
    age(tmp_path / "photos")
    beside = open_index(str(tmp_path / "photos"), beside=True)
    assert beside.file == tmp_path / "photos.visiontune-index"
    again = open_index(str(tmp_path / "photos"))
    assert (again.file, again.listed) == (beside.file, 0)


def test_an_index_beside_that_may_not_be_written_serves_while_it_holds(tmp_path, monkeypatch):
    make(tmp_path, "photos/a/1.jpg")
    age(tmp_path / "photos")
    beside = open_index(str(tmp_path / "photos"), beside=True)
    monkeypatch.setattr(index_module.os, "access", lambda path, mode: path != tmp_path)
    assert open_index(str(tmp_path / "photos")).file == beside.file
    make(tmp_path, "photos/a/2.jpg")
    own = open_index(str(tmp_path / "photos"))
    assert (len(own), own.file) == (2, index_file(str(tmp_path / "photos")))


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    make(tmp_path, "photos/1.jpg", "file")
    monkeypatch.setenv("VISIONTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="VISIONTUNE_CACHE"):
        open_index(str(tmp_path / "photos"))


def test_an_empty_folder_has_an_empty_index(tmp_path):
    assert len(open_index(str(tmp_path))) == 0
    with pytest.raises(UserError, match="no picture in .*; it is empty"):
        list_pictures(tmp_path)


def test_tables_travel_to_workers_that_are_not_forked_as_the_name_of_their_file(tmp_path):
    make(tmp_path, "0.jpg", *(f"{d}/{i}.jpg" for d in "ab" for i in range(500)))
    for labelled in (False, True):
        table = list_pictures(tmp_path, labelled=labelled)
        travelled = pickle.dumps(table)
        assert len(travelled) < 2000
        arrived = pickle.loads(travelled)
        assert [arrived.path(i) for i in range(len(arrived))] == [table.path(i) for i in range(len(table))]
        assert [arrived.label(i) for i in range(len(arrived))] == [table.label(i) for i in range(len(table))]
    few = pickle.loads(pickle.dumps(few_labels(table, seed=0, per_class=3)))
    assert np.bincount(few.labels).tolist() == [3, 3]
    make(tmp_path, "new.jpg")
    list_pictures(tmp_path)
    with pytest.raises(UserError, match="changed while loader processes started"):
        pickle.loads(travelled)
    whole = pickle.loads(pickle.dumps(table))  # of a folder that was listed anew since the table was made
    assert [whole.path(i) for i in range(len(whole))] == [table.path(i) for i in range(len(table))]
    assert whole.labels.tolist() == table.labels.tolist()


def test_the_index_is_mapped_not_read(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    table = list_pictures(tmp_path, labelled=True)
    for array in (table.names, table.offsets, table.labels):
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert isinstance(owner.base.obj, mmap.mmap)
        assert not array.flags.writeable


def test_the_cache_has_one_file_a_folder_however_it_is_named(tmp_path, monkeypatch):
    make(tmp_path, "photos/1.jpg")
    (tmp_path / "l").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert index_file("photos") == index_file(str(tmp_path / "photos")) == index_file("l") == index_file("./photos/")


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    make(tmp_path, "a/1.jpg")
    assert len(open_index(str(tmp_path))) == 1
    assert index_module.open_index(str(tmp_path)).listed <= 2


def test_a_loader_reads_from_the_mapped_table(pictures):
    table = list_pictures(pictures / "train", labelled=True)
    batches = list(make_loader(Pictures(table, CenterCrop((8, 8))), EvalOrder(len(table), 10), workers=2))
    assert sum(len(b["labels"]) for b in batches) == 48
    assert [int(x) for b in batches for x in b["labels"]] == table.labels.tolist()
