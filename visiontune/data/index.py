"""The listing of a folder in a file that is mapped into memory: made once, opened in milliseconds, brought up to date by what changed."""

import hashlib
import itertools
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.mapped import alone, read_mapped, write_mapped
from visiontune.data.sample import cache_folder
from visiontune.data.walk import SUFFIXES, UNREAD, Folder, Tree, join, stamp_of, walk
from visiontune.errors import UserError, counted, some

KIND = "visiontune index 1"


@dataclass(frozen=True, eq=False)
class Index:
    """What lies in a folder. The arrays are mapped from the file.

    Attributes:
        file: where it is kept.
        root: the folder.
        names: relative paths of all pictures; uint8.
        offsets: where each begins, one more than there are pictures; int64.
        labels: number of the first-level folder that each lies in, -1 for pictures directly in the root; int32.
        classes: names of those folders that hold pictures.
        folders, folder_offsets: relative paths of all folders, likewise.
        folder_first: number of the first picture of each folder, one more than there are folders.
        stamps: time, device and number of each folder; `(F, 3)` int64.
        unread: files that are pictures and not read here: number of a folder, of its ending in `UNREAD`, and how many; `(U, 3)` int64.
        header: links and troubles, by name.
        listed: folders that were listed just now; 0 where the file was up to date.
        seconds: what that took.
    """

    file: Path
    root: str
    names: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    folders: np.ndarray
    folder_offsets: np.ndarray
    folder_first: np.ndarray
    stamps: np.ndarray
    unread: np.ndarray
    header: dict[str, Any]
    listed: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @property
    def fingerprint(self) -> str:
        return str(self.header["fingerprint"])

    @property
    def left_out(self) -> str:
        """In words, which pictures are not read here; nothing where there are none."""
        if not len(self.unread):
            return ""
        counts = np.bincount(self.unread[:, 1], weights=self.unread[:, 2], minlength=len(UNREAD)).astype(np.int64)
        kinds = [f"{counted(counts[k], 'file', ',')} of {UNREAD[k]}" for k in np.argsort(-counts, kind="stable") if counts[k]]
        return f"{some(kinds, len(kinds))} left out, which are not read here; convert them to JPEG or PNG"

    def notes(self, *, brief: bool = False) -> list[str]:
        """What a person should know of the listing; `brief` leaves out what went by in a moment."""
        found = []
        count = len(self.stamps)
        if brief and self.seconds < 1:
            pass
        elif self.listed:
            found.append(f"index: listed {self.listed} of {count} folders in {self.seconds:.1f} s; kept in {self.file}")
        else:
            found.append(f"index: {count} folders, unchanged since they were listed ({self.file})")
        if twice := self.header["elsewhere"]:
            found.append(f"index: {len(twice)} folders are listed under another name, by a link or a second mount: {some(twice, 5)}")
        if links := self.header["not_followed"]:
            found.append(f"index: {len(links)} links to folders that are listed elsewhere, or in a loop, not followed: {some(links, 5)}")
        if refused := self.header["refused"]:
            listed = some((f"{p or '.'} ({why})" for p, why in refused.items()), 5)
            found.append(f"index: {len(refused)} folders could not be listed, their pictures are missing: {listed}")
        return found


def index_file(root: str, *, beside: bool = False) -> Path:
    """Where a folder's index is kept: in the user's cache folder, or as `FOLDER.visiontune-index` next to the folder."""
    real = os.path.realpath(root)
    if beside:
        return Path(f"{real}.visiontune-index")
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:24]
    return cache_folder() / "index" / f"{digest}.visiontune-index"


def open_index(root: str, *, beside: bool | None = None, fresh: bool = False, processes: int | None = None) -> Index:
    """The index of a folder, made or brought up to date where that is needed. Several processes may ask at once: one lists.

    Args:
        root: an existing folder.
        beside: keep it next to the folder; None does so where one lies there already.
        fresh: list everything again.
        processes: see `walk`.

    Raises:
        UserError: if the file cannot be written.
    """
    asked = beside
    if beside is None:
        beside = index_file(root, beside=True).is_file()
    file = index_file(root, beside=beside)
    if beside is not asked and not os.access(file.parent, os.W_OK):
        # Somebody else keeps it there: it serves while it holds, and else a copy of one's own does.
        kept = _read(file)
        if kept is not None and not fresh and _current(kept, root):
            return kept
        file = index_file(root)
    started = time.monotonic()
    with alone(file):
        old = None if fresh else _read(file)
        if old is not None and _current(old, root):
            return old
        tree = walk(os.fsencode(root), _known(old) if old is not None else lambda relative: None, processes)
        _write(file, root, tree, time.monotonic() - started)
    made = _read(file)
    if made is None:
        raise UserError(f"index: {file} was overwritten by something else while it was made; try again")
    return _with(made, listed=tree.listed, seconds=time.monotonic() - started)


def fingerprint_of(file: Path) -> str | None:
    """Of the index that lies there now."""
    index = _read(file)
    return index.fingerprint if index is not None else None


def open_again(file: Path, fingerprint: str) -> Index:
    """The index that another process has open.

    Raises:
        UserError: if the folder was listed anew in between.
    """
    index = _read(file)
    if index is None or index.fingerprint != fingerprint:
        raise UserError(f"data: the folder's index {file} changed while loader processes started; start again")
    return index


def _with(index: Index, **changes: Any) -> Index:
    return Index(**{**index.__dict__, **changes})


# ---------------------------------------------------------------- is it up to date?


def _relatives(index: Index) -> list[bytes]:
    blob, ends = index.folders.tobytes(), index.folder_offsets.tolist()
    return [blob[a:b] for a, b in itertools.pairwise(ends)]


def _current(index: Index, root: str) -> bool:
    """Whether no folder changed, and no link leads elsewhere than before."""
    top = os.fsencode(root)
    for relative, stamp in zip(_relatives(index), index.stamps.tolist(), strict=True):
        found = stamp_of(join(top, relative) if relative else top)
        if found is None or [found.changed_ns, found.dev, found.ino] != stamp:
            return False
    for link, target in index.header["links"].items():
        found_now = stamp_of(join(top, os.fsencode(link)))
        if (list(found_now.identity) if found_now else None) != target:
            return False
    # Permissions can change without a trace in a folder's time.
    return not index.header["refused"]


def _known(index: Index) -> Any:
    """What an earlier listing found in a folder, if the folder is the same and unchanged."""
    relatives = _relatives(index)
    number = {relative: i for i, relative in enumerate(relatives)}
    links: dict[bytes, list[bytes]] = {}
    for link in map(os.fsencode, index.header["links"]):
        folder, _, name = link.rpartition(b"/")
        links.setdefault(folder, []).append(name)
    folders: dict[bytes, list[bytes]] = {}
    linked = set(map(os.fsencode, index.header["links"]))
    # Also those without an entry: whether they get one now depends on the rest of the tree.
    for relative in [*relatives[1:], *map(os.fsencode, [*index.header["elsewhere"], *index.header["refused"]])]:
        if relative and relative not in linked:
            folder, _, name = relative.rpartition(b"/")
            folders.setdefault(folder, []).append(name)
    root = os.fsencode(index.root)
    unread: dict[int, dict[str, int]] = {}
    for folder_number, ending, count in index.unread.tolist():
        unread.setdefault(folder_number, {})[UNREAD[ending]] = count

    def known(relative: bytes) -> Folder | None:
        i = number.get(relative)
        if i is None:
            return None
        stamp = stamp_of(join(root, relative) if relative else root)
        if stamp is None or list(stamp.__dict__.values()) != index.stamps[i].tolist():
            return None
        first, last = int(index.folder_first[i]), int(index.folder_first[i + 1])
        ends = index.offsets[first : last + 1]
        paths = index.names[ends[0] : ends[-1]].tobytes()
        lengths = np.diff(ends).astype(np.int32).tobytes()
        return Folder(relative, stamp, paths, lengths, folders.get(relative, []), links.get(relative, []), unread.get(i, {}))

    return known


# ---------------------------------------------------------------- the file


def _write(file: Path, root: str, tree: Tree, seconds: float) -> None:
    lengths = np.frombuffer(b"".join(f.lengths for f in tree.folders), dtype=np.int32)
    counts = np.array([len(f.lengths) // 4 for f in tree.folders], dtype=np.int64)
    relatives = [f.relative for f in tree.folders]
    firsts = [r.split(b"/", 1)[0] for r in relatives]
    classes = sorted({f for f, n in zip(firsts, counts.tolist(), strict=True) if f and n})
    number = {name: i for i, name in enumerate(classes)}
    names = b"".join(f.paths for f in tree.folders)
    arrays: dict[str, Any] = {
        "names": np.frombuffer(names, dtype=np.uint8),
        "offsets": _ends(lengths),
        "labels": np.repeat(np.array([number.get(f, -1) for f in firsts], dtype=np.int32), counts),
        "folders": np.frombuffer(b"".join(relatives), dtype=np.uint8),
        "folder_offsets": _ends(np.array([len(r) for r in relatives], dtype=np.int64)),
        "folder_first": _ends(counts),
        "stamps": np.array([[f.stamp.changed_ns, f.stamp.dev, f.stamp.ino] for f in tree.folders], dtype=np.int64).reshape(-1),
        "unread": np.array(
            [[i, UNREAD.index(e), n] for i, f in enumerate(tree.folders) for e, n in f.unread.items()], dtype=np.int64
        ).reshape(-1),
    }
    header: dict[str, Any] = {
        "root": os.path.abspath(root),
        "suffixes": list(SUFFIXES),
        "not read": list(UNREAD),
        "fingerprint": f"{len(lengths)} pictures, {zlib.crc32(names):08x}",
        "classes": [os.fsdecode(c) for c in classes],
        "links": {os.fsdecode(k): v for k, v in tree.links.items()},
        "not_followed": [os.fsdecode(n) for n in tree.not_followed],
        "elsewhere": [os.fsdecode(n) for n in sorted(tree.elsewhere)],
        "refused": {os.fsdecode(k): v for k, v in sorted(tree.refused.items())},
        "seconds": seconds,
    }
    write_mapped(file, KIND, header, arrays)


def _ends(lengths: np.ndarray) -> np.ndarray:
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def _read(file: Path) -> Index | None:
    """None where there is no index of this version, or a damaged one: it is made again."""
    found = read_mapped(file, KIND)
    if found is None or (found[0].get("suffixes"), found[0].get("not read")) != (list(SUFFIXES), list(UNREAD)):
        return None
    header, arrays = found
    arrays["stamps"], arrays["unread"] = arrays["stamps"].reshape(-1, 3), arrays["unread"].reshape(-1, 3)
    return Index(file, header["root"], header=header, **arrays)
