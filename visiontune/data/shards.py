"""Pictures inside of tar files in WebDataset's layout: what there is, the bytes of one, and an order that reads neighbours together.

A sample is all members of a shard whose path up to the first dot of the file name is the same: `a/0017.jpg`, `a/0017.cls`,
`a/0017.json`. Its picture is the member with a picture's ending, its label the number in `.cls`. Of several pictures the one with
the shortest ending counts (`0017.jpg` before `0017.depth.png`), then the first by name, `.npy` last: it more often holds something
else. Only the tar headers and `.cls` members are read to list them; pictures are read at their place, as from a folder, so that any
worker may ask for any picture.
"""

import glob
import hashlib
import json
import mmap
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visiontune.data.header import BrokenPicture
from visiontune.data.index import _alone
from visiontune.data.order import permute
from visiontune.data.parallel import available_cores, over
from visiontune.data.sample import cache_folder
from visiontune.data.table import Members, PictureTable
from visiontune.data.walk import RACY_NS, SUFFIXES
from visiontune.errors import UserError, some

MAGIC = b"visiontune shards 1\n"
# Of each picture: bytes of its name, its `.cls` (-1: none), its shard's number, first byte and bytes in there. `names` come one by one.
ROWS = {"lengths": np.int32, "labels": np.int64, "shard": np.int32, "start": np.int64, "size": np.int64}
ARRAYS = {"names": np.uint8, "offsets": np.int64, **{k: v for k, v in ROWS.items() if k != "lengths"}}
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
# Entries of a folder that are looked at before it is taken as one of shards.
GLANCE = 1000
# Shards whose blocks are mixed among themselves, about: 11 to 24, so that the last group is no smaller than the others.
GROUP = 16
# Helpers cost some milliseconds each to start: few shards are listed without.
ALONE_BYTES = 100_000_000

# ---------------------------------------------------------------- which files?


def is_shards(path: str) -> bool:
    """Whether a path means tar shards: a `.tar`, a pattern (`train-*.tar`, `train-{000..012}.tar`), or a folder of them.

    A folder that has pictures itself, or in the first of its sub-folders, is one of pictures: an archive was left beside them.
    """
    if not os.path.isdir(path):
        return path.lower().endswith((".tar", ".tar.gz", ".tgz"))
    found = False
    folders: list[str] = []
    try:
        with os.scandir(path) as entries:
            for seen, entry in enumerate(entries):
                name = entry.name.lower()
                if name.startswith("."):
                    continue
                if name.endswith(SUFFIXES):
                    return False
                if name.endswith(".tar"):
                    found = True
                elif len(folders) < 8 and entry.is_dir():
                    folders.append(entry.path)
                if found and seen >= GLANCE:
                    break
    except OSError:
        return False
    return found and not any(_has_picture(f, deeper=1) for f in folders)


def _has_picture(folder: str, *, deeper: int) -> bool:
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, GLANCE):
                if entry.name.lower().endswith(SUFFIXES):
                    return True
                if len(folders) < 8 and deeper and entry.is_dir():
                    folders.append(entry.path)
    except OSError:
        return False
    return any(_has_picture(f, deeper=deeper - 1) for f in folders)


def find_shards(path: str, *, key: str) -> tuple[str, list[str]]:
    """The folder that shards lie in, and their sorted paths below it.

    Raises:
        UserError: if there is none, or one of a brace range is missing.
    """
    if os.path.isdir(path):
        return path, sorted(n for n in os.listdir(path) if n.lower().endswith(".tar") and not n.startswith("."))
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", [os.path.basename(path)]
    root = os.path.dirname(re.split(r"[*?\[{]", path)[0]) or "."
    found = {pattern: glob.glob(pattern) for pattern in _braces(path)}
    if missing := [pattern for pattern, files in found.items() if not files]:
        there = sorted(os.listdir(root)) if os.path.isdir(root) else None
        beside = f"{root} holds {some(there)}" if there else f"{root} is empty" if there is not None else f"there is no folder {root}"
        raise UserError(f"{key}: no shard {some(missing)}; {beside}")
    return root, sorted({os.path.relpath(file, root) for files in found.values() for file in files})


def _braces(pattern: str) -> Iterator[str]:
    """`{000..012}` and `{a,b}` written out, as bash and WebDataset do."""
    brace = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if brace is None:
        yield pattern
        return
    first, last, listed = brace.groups()
    if listed is not None:
        words = listed.split(",")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        words = [f"{i:0{width}d}" for i in range(int(first), int(last) + step, step)]
    for word in words:
        yield from _braces(pattern[: brace.start()] + word + pattern[brace.end() :])


# ---------------------------------------------------------------- what is in a shard?


@dataclass
class Listing:
    """One shard.

    Attributes:
        size, mtime_ns: tell that it is unchanged; `mtime_ns` is -1 where it cannot be trusted.
        names: `SHARD/MEMBER` of its pictures, one after another.
        rows: columns of `ROWS`, without `shard`.
        note: why it was not read to the end.
        wrong: a `.cls` member that holds no number.
    """

    size: int
    mtime_ns: int
    names: bytes
    rows: dict[str, np.ndarray]
    note: str = ""
    wrong: str = ""


def list_shard(place: tuple[str, str]) -> Listing | str:
    """What a shard holds, or why it cannot be used. `place` is the folder and the shard's path below it."""
    root, name = place
    path = os.path.join(root, name)
    now = time.time_ns()
    begins = b""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            begins = file.read(8)
            if cure := next((c for magic, c in COMPRESSED.items() if begins.startswith(magic)), None):
                return f"{path} is compressed, so that no picture in it can be read without all before it: unpack it with `{cure}`"
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                samples, wrong, note = _samples(tar, file, found.st_size)
    except tarfile.TarError:
        return f"{path} is empty" if not begins else f"{path} is no tar file (it begins with {begins!r}): make or fetch it again"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    prefix = os.fsencode(name) + b"/"
    taken = [(prefix + os.fsencode(member), label, start, size) for member, label, start, size in samples]
    columns = zip(*((len(n), *rest) for n, *rest in taken), strict=True) if taken else [()] * 4
    rows = {k: np.array(c, dtype=ROWS[k]) for k, c in zip(("lengths", "labels", "start", "size"), columns, strict=True)}
    mtime = found.st_mtime_ns if found.st_mtime_ns <= now - RACY_NS else -1
    note = f"{name} is cut off or damaged {note}: the {len(taken)} pictures before that are used; make or fetch it again" if note else ""
    return Listing(found.st_size, mtime, b"".join(n for n, *_ in taken), rows, note, f"{name}/{wrong}" if wrong else "")


def _samples(tar: tarfile.TarFile, file: BinaryIO, end: int) -> tuple[list[tuple[str, int, int, int]], str, str]:
    """Member, label, first byte and bytes of each sample's picture; a wrong label; where the shard breaks off."""
    samples: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    wrong, whole = "", True
    while whole:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError):
            break
        if member is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        ending = ending.lower()
        picture = f".{ending}".endswith(SUFFIXES)
        if not stem or not (picture or ending == "cls") or not member.isreg() or member.issparse():  # no stem: hidden, as macOS' ._1.jpg
            continue
        whole = member.offset_data + member.size <= end
        if not whole:
            break
        sample = latest.get(f"{folder}/{stem}")
        if sample is None or ending in sample:  # the same ending again is another sample of the same name
            sample = latest[f"{folder}/{stem}"] = {}
            samples.append(sample)
        if picture:
            sample[ending] = (member.name, member.offset_data, member.size)
            continue
        file.seek(member.offset_data)
        text = file.read(min(member.size, 32))
        sample[ending] = int(text) if text.strip().isdigit() and len(text) < 19 else -1  # more does not fit into 64 bits
        if sample[ending] < 0 and not wrong:
            wrong = f"{member.name} holds {text!r}"
    taken = []
    for sample in samples:
        label = sample.pop("cls", -1)
        if sample:
            picture_ending = min(sample, key=lambda e: (e.count("."), e.endswith("npy"), e))
            member_name, start, size = sample[picture_ending]
            taken.append((member_name, label, start, size))
    # A tar ends with blocks of zeros; tarfile stops quietly at the end of the file, and at anything that is no header.
    file.seek(min(tar.offset, end))
    block = file.read(tarfile.BLOCKSIZE)
    good = whole and len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0")
    if not good and taken and taken[-1][1] < 0 <= max(label for _, label, _, _ in taken):
        taken.pop()  # its label would have come next
    return taken, wrong, "" if good else f"at byte {min(tar.offset, end):,} of {end:,}"


# ---------------------------------------------------------------- the index of all shards


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All shards; the arrays are mapped from the file, `shards` are its header: name, size, mtime_ns, pictures, note, wrong label."""

    file: Path
    arrays: dict[str, np.ndarray]
    shards: list[list[Any]]

    def unchanged(self, stamps: dict[str, tuple[int, int]]) -> dict[str, Listing | str]:
        """What is known of the shards whose size and time are these."""
        offsets, last, found = self.arrays["offsets"], 0, {}
        for name, size, mtime_ns, count, note, wrong in self.shards:
            first, last = last, last + count
            if stamps.get(name) == (size, mtime_ns):
                rows = {k: self.arrays[k][first:last] for k in ("labels", "start", "size")}
                rows["lengths"] = np.diff(offsets[first : last + 1])
                found[name] = Listing(size, mtime_ns, self.arrays["names"][offsets[first] : offsets[last]].tobytes(), rows, note, wrong)
        return found  # type: ignore[return-value]


def index_shards(path: str, root: str, names: list[str], *, key: str) -> tuple[ShardIndex, str]:
    """The index of shards, made or brought up to date by those that changed, and a word about it. Several processes may ask at once.

    Raises:
        UserError: naming all shards that cannot be used.
    """
    started = time.monotonic()
    whole_path = os.path.join(os.path.realpath(root), os.path.relpath(path, root))
    file = cache_folder() / "index" / f"{hashlib.sha256(os.fsencode(whole_path)).hexdigest()[:24]}.visiontune-shards"
    with _alone(file):
        old = _load(file)
        stamps = {name: _stamp(os.path.join(root, name)) for name in names}
        if old is not None and [(name, (size, mtime)) for name, size, mtime, *_ in old.shards] == list(stamps.items()):
            return old, f"index: {len(names)} shards, unchanged since they were listed ({file})"
        known: dict[str, Listing | str] = old.unchanged(stamps) if old is not None else {}
        todo = [name for name in names if name not in known]
        few = sum(stamps[name][0] for name in todo) < ALONE_BYTES
        # At least four: on network storage most of the time is waiting.
        processes = 1 if few else min(len(todo), max(4, available_cores()))
        known.update(zip(todo, over(list_shard, [(root, name) for name in todo], processes), strict=True))
        if refused := [found for name in names if isinstance(found := known[name], str)]:
            raise UserError(f"{key}: {some(refused, 3)}")
        _save(file, [(name, found) for name in names if isinstance(found := known[name], Listing)])
        made = _load(file)
    if made is None:
        raise UserError(f"index: {file} was overwritten by something else while it was made; try again")
    return made, f"index: listed {len(todo)} of {len(names)} shards in {time.monotonic() - started:.1f} s; kept in {file}"


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, -1  # listing it says why
    return found.st_size, found.st_mtime_ns


def _save(file: Path, listings: list[tuple[str, Listing]]) -> None:
    """As `index.py` does: a header, then arrays on 64-byte boundaries, in a new file that is renamed over the old one."""
    counts = [len(found.rows["start"]) for _, found in listings]
    rows = {k: np.concatenate([f.rows[k] for _, f in listings]) for k in ROWS if k != "shard"}
    offsets = np.zeros(sum(counts) + 1, dtype=np.int64)
    np.cumsum(rows.pop("lengths"), out=offsets[1:])
    arrays = {
        "names": np.frombuffer(b"".join(f.names for _, f in listings), dtype=np.uint8),
        "offsets": offsets,
        "shard": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        **rows,
    }
    header = {
        "suffixes": SUFFIXES,
        "shards": [[n, f.size, f.mtime_ns, c, f.note, f.wrong] for (n, f), c in zip(listings, counts, strict=True)],
        "lengths": {k: len(arrays[k]) for k in ARRAYS},
    }
    text = json.dumps(header).encode()
    try:
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}")
        with os.fdopen(handle, "wb") as out:
            out.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for name, dtype in ARRAYS.items():
                out.write(b"\0" * (-out.tell() % 64))
                out.write(np.ascontiguousarray(arrays[name], dtype=dtype).data)
        os.chmod(beside, 0o644)
        os.replace(beside, file)
    except OSError as error:
        raise UserError(f"index: cannot write {file} ({error.strerror}); set VISIONTUNE_CACHE to a folder with space") from error


def _load(file: Path) -> ShardIndex | None:
    """None where there is no index of this version, or a damaged one: it is made again."""
    try:
        with open(file, "rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        at = len(MAGIC) + 8
        if data[: len(MAGIC)] != MAGIC:
            return None
        size = int.from_bytes(data[len(MAGIC) : at], "little")
        header = json.loads(data[at : at + size])
        if header["suffixes"] != list(SUFFIXES):
            return None
        at += size
        arrays = {}
        for name, dtype in ARRAYS.items():
            at += -at % 64
            arrays[name] = np.frombuffer(data, dtype=dtype, count=header["lengths"][name], offset=at)
            at += arrays[name].nbytes
    except (OSError, ValueError, KeyError):
        return None
    return ShardIndex(file, arrays, header["shards"])


# ---------------------------------------------------------------- the table


def open_shards(path: str, *, key: str, labelled: bool) -> PictureTable:
    """The pictures of shards, sorted by shard, in the order of the tar within; the arrays are mapped from the index file.

    Args:
        path: what `is_shards` takes.
        key: the recipe's key, for error messages.
        labelled: read the labels. Class names are the lines of `classes.txt` in the shards' folder, else the numbers that occur.

    Raises:
        UserError: if shards are missing, unusable or without pictures, or, with `labelled`, if not every picture has a label.
    """
    root, names = find_shards(path, key=key)
    index, note = index_shards(path, root, names, key=key)
    arrays = index.arrays
    if not len(arrays["start"]):
        raise UserError(f"{key}: no picture in the {len(names)} shards of {path}; pictures are members that end in {', '.join(SUFFIXES)}")
    members = Members(tuple(names), arrays["shard"], arrays["start"], arrays["size"])
    notes = [note, *(f"index: {shard[4]}" for shard in index.shards if shard[4])]
    table = PictureTable(root, arrays["names"], arrays["offsets"], members=members, notes=tuple(notes))
    if not labelled:
        return table
    if wrong := [shard[5] for shard in index.shards if shard[5]]:
        raise UserError(f"{key}: {some(wrong, 3)}, which is no class number; `.cls` holds a whole number from 0, classes.txt the names")
    labels, classes = _classes(table, arrays["labels"], path, key)
    return replace(table, labels=labels, classes=classes)


def _classes(table: PictureTable, labels: np.ndarray, path: str, key: str) -> tuple[np.ndarray, tuple[str, ...]]:
    without = np.flatnonzero(labels < 0)
    if len(without):
        cure = "a class is the number in a member of the same name (0017.jpg, 0017.cls); `python -m visiontune shard` writes them"
        which = "no picture" if len(without) == len(labels) else f"{len(without)} of {len(labels)} pictures"
        verb = "has a label" if len(without) == len(labels) else f"have no label, such as {table.path(int(without[0]))}"
        raise UserError(f"{key}: in {path} {which} {verb}; {cure}")
    numbers = np.unique(labels)
    if len(numbers) < 2:
        raise UserError(f"{key}: all pictures in {path} are of class {numbers[0]}; a classifier needs two classes or more")
    names = Path(table.root, "classes.txt")
    if names.is_file():
        classes = tuple(names.read_text(errors="surrogateescape").rstrip("\n").split("\n"))
        if numbers[-1] >= len(classes):
            raise UserError(f"{key}: {path} has class {numbers[-1]}, but {names} names {len(classes)} classes, from 0")
        return labels, classes
    # As of folders, a class is one that has pictures; without gaps the labels stay mapped.
    gaps = numbers[-1] >= len(numbers)
    return (np.searchsorted(numbers, labels) if gaps else labels), tuple(map(str, numbers.tolist()))


# ---------------------------------------------------------------- the bytes


class _Open:
    """A shard that is open for reading. It closes with its last user, also where a thread reads while the cache drops it."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


@lru_cache(maxsize=64)  # a window of ShardShuffle reads 16 shards, two where it moves on
def _opened(path: str, process: int) -> _Open:
    """By process: a forked worker opens its own, so that none depends on what its parent closes."""
    return _Open(path)


def read_member(table: PictureTable, index: int) -> bytes:
    """A picture's bytes, out of its shard.

    Raises:
        BrokenPicture: if the shard is gone, or shorter than it was when it was listed.
    """
    members = table.members
    assert members is not None
    start, size = int(members.start[index]), int(members.size[index])
    data = b""
    try:
        shard = _opened(os.path.join(table.root, members.shards[members.shard[index]]), os.getpid())
        # `pread` leaves no position behind that another thread could move; one call may give less than was asked for.
        while len(data) < size and (more := os.pread(shard.handle, size - len(data), start + len(data))):
            data = data + more if data else more
    except FileNotFoundError as error:
        raise BrokenPicture("its shard is gone") from error
    except OSError as error:
        raise BrokenPicture(f"its shard cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise BrokenPicture("cut off: its shard is shorter than it was when it was listed")
    return data


# ---------------------------------------------------------------- the order


class ShardShuffle:
    """Positions of an epoch -> pictures: a bijection for each epoch that mixes well and still reads neighbours together.

    Shards are permuted and taken in groups of about 16; the blocks of a group, runs of neighbours in one shard, are permuted among
    themselves; each window of positions is permuted fully. So a window's pictures come from some 60 random places of 16 shards, where
    a shuffle buffer of its size, filled from one shard after another, would hold one or two shards.

    Reading: within a window all of `window / block` blocks are read, and no others but the two at its ends (a shard's last block may be
    short, then there are more); a shard is open only while its group lasts. The ranks share each window: every picture is read once by
    one of them, and a machine's workers read a block together through the page cache. Shards that hold one class each want to be
    written anew (`python -m visiontune shard` mixes them).

    Memory: 40 bytes a block, a little more than one a picture with blocks of 32 (6 MB for 5 million pictures); nothing is kept between
    epochs that is not computed from (seed, epoch).

    Args:
        table: pictures in shards, also a part of them (`table.take`).
        seed: of the run.
        block: pictures that are read one after another.
        window: pictures that are mixed fully.
    """

    def __init__(self, table: PictureTable, seed: int, *, block: int = 32, window: int = 2048) -> None:
        assert table.members is not None
        self.seed, self.window = seed, window
        self.n = len(table)
        shard = table.members.shard  # ascending
        # The same type as the column's: another would have searchsorted convert all of it.
        firsts = np.searchsorted(shard, np.arange(len(table.members.shards) + 1, dtype=shard.dtype))
        blocks = -(-np.diff(firsts) // block)  # of each shard
        of_shard = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        self.starts = np.repeat(firsts[:-1], blocks) + block * of_shard
        self.sizes = np.diff(self.starts, append=self.n)
        # Shards without pictures in the table do not count.
        self.shards = np.repeat(np.arange((blocks > 0).sum()), blocks[blocks > 0])
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        near = np.empty_like(positions)
        window = positions // self.window
        for w in np.unique(window).tolist():
            here, first = window == w, w * self.window
            size = min(self.window, self.n - first)
            # A number of its own for each window of each epoch.
            near[here] = first + permute(positions[here] - first, size, seed=self.seed, epoch=(epoch << 32) + w)
        ends, shift = self._blocks(epoch)
        return near + shift[np.searchsorted(ends, near, side="right")]

    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks in the epoch's order: the position after each, and how far its pictures' numbers are from their positions."""
        if self._plan is None or self._plan[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            shards = int(self.shards[-1]) + 1
            groups = max(1, round(shards / GROUP))
            # Even groups: a last one of a single shard would mix nothing.
            group = rng.permutation(shards) * groups // shards
            order = np.argsort(group[self.shards] + rng.random(len(self.shards)))
            ends = np.cumsum(self.sizes[order])
            self._plan = epoch, ends, self.starts[order] - ends + self.sizes[order]
        return self._plan[1:]
