"""What lies in tar files in WebDataset's layout, listed once.

A sample is all members of a shard whose path up to the first dot of the file name is the same: `a/0017.jpg`, `a/0017.cls`,
`a/0017.json`. Its picture is the member with a picture's ending, its label the number in `.cls`. Of several pictures the one with
the shortest ending counts (`0017.jpg` before `0017.depth.png`), then the first by name, `.npy` last: it more often holds something
else. Only the tar headers and `.cls` members are read.
"""

import hashlib
import os
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visiontune.data.mapped import alone, read_mapped, write_mapped
from visiontune.data.parallel import available_cores, over
from visiontune.data.sample import cache_folder
from visiontune.data.walk import RACY_NS, SUFFIXES
from visiontune.errors import UserError, counted, some

KIND = "visiontune shards 1"
# Of each picture: bytes of its name, its `.cls` (-1: none), first byte and bytes in its shard. `names` come one by one.
ROWS = {"lengths": np.int32, "labels": np.int64, "start": np.int64, "size": np.int64}
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
# Helpers cost some milliseconds each to start: few shards are listed without.
ALONE_BYTES = 100_000_000


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
    note = f"{name} {note}: what comes before that is used ({counted(len(taken), 'picture')}); make or fetch it again" if note else ""
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
    more = good and bool(file.read(4 * tarfile.RECORDSIZE).strip(b"\0"))
    if not good and taken and taken[-1][1] < 0 <= max(label for _, label, _, _ in taken):
        taken.pop()  # its label would have come next
    if more:
        return taken, wrong, "goes on after its end mark (several tars in one file?)"
    return taken, wrong, "" if good else f"is cut off or damaged at byte {min(tar.offset, end):,} of {end:,}"


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
    with alone(file):
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
    counts = [len(found.rows["start"]) for _, found in listings]
    rows = {k: np.concatenate([f.rows[k] for _, f in listings]) for k in ROWS}
    offsets = np.zeros(sum(counts) + 1, dtype=np.int64)
    np.cumsum(rows.pop("lengths"), out=offsets[1:])
    arrays = {
        "names": np.frombuffer(b"".join(f.names for _, f in listings), dtype=np.uint8),
        "offsets": offsets,
        "shard": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        **rows,
    }
    shards = [[n, f.size, f.mtime_ns, c, f.note, f.wrong] for (n, f), c in zip(listings, counts, strict=True)]
    write_mapped(file, KIND, {"suffixes": SUFFIXES, "shards": shards}, arrays)


def _load(file: Path) -> ShardIndex | None:
    """None where there is no index of this version, or a damaged one: it is made again."""
    found = read_mapped(file, KIND)
    if found is None or found[0].get("suffixes") != list(SUFFIXES):
        return None
    return ShardIndex(file, found[1], found[0]["shards"])
