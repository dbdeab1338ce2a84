"""A folder tree listed by several processes: no picture is opened, and nothing is asked of the file system but folders and links.

Every real folder is listed once. A link to a folder is followed unless that folder is listed already, so loops end; which of several
ways to a folder counts depends on names alone: its own place in the tree first, then the first link. (A folder that is mounted twice
inside of the tree is listed under one of its places, and told of.) Names are bytes throughout: file systems promise nothing more.
"""

import heapq
import os
import stat
import time
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from visiontune.data.parallel import available_cores, process_pool

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")
ENDINGS = tuple(s.encode() for s in SUFFIXES)
# Pictures as well, but for decoders that are not here: counted, so that they are not missed without a word.
UNREAD = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ppm", ".pgm", ".psd", ".dcm",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)  # fmt: skip
UNREAD_OF = {s.encode(): s for s in UNREAD}
# A folder that changed this short before it was listed may change again within the same tick of its file system's clock (FAT: 2 s).
RACY_NS = 2_000_000_000
# Helpers cost some milliseconds each to start: small trees are listed without.
ALONE_SECONDS = 0.1
BATCH = 16
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Stamp:
    """What tells that a folder is the same and unchanged. `changed_ns` is -1 where it cannot be trusted."""

    changed_ns: int
    dev: int
    ino: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.dev, self.ino


@dataclass(frozen=True)
class Folder:
    """One folder's content.

    Attributes:
        relative: its path below the root, b"" for the root itself.
        stamp: when and what it was.
        paths: relative paths of its pictures, sorted, one after another.
        lengths: bytes of each path; int32.
        folders: names of real folders in it.
        links: names of links that lead to folders, or nowhere.
        unread: how many files it has of each of `UNREAD`, where there are some.
    """

    relative: bytes
    stamp: Stamp
    paths: bytes
    lengths: bytes
    folders: list[bytes]
    links: list[bytes]
    unread: dict[str, int] = field(default_factory=dict)


@dataclass
class Tree:
    """A whole tree.

    Attributes:
        folders: all of them, in order.
        links: each link to a folder, or to nothing, and the folder that it led to.
        not_followed: links to folders that are listed elsewhere, or around in a loop.
        elsewhere: folders that a link led to before their own parent was listed, or that are mounted twice.
        refused: folders that could not be listed, with the reason.
        listed: folders that were listed, not taken from before.
    """

    folders: list[Folder] = field(default_factory=list)
    links: dict[bytes, tuple[int, int] | None] = field(default_factory=dict)
    not_followed: list[bytes] = field(default_factory=list)
    elsewhere: list[bytes] = field(default_factory=list)
    refused: dict[bytes, str] = field(default_factory=dict)
    listed: int = 0


def order_of(relative: bytes) -> bytes:
    """Sorts folders as a tree: all that lies in `a` comes before `a-b`."""
    return relative.replace(b"/", b"\0")


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def changed_ns(found: os.stat_result) -> int:
    """When a folder changed: rsync, cp -a, unzip and tar set its time back to that of what they copied, but not the system's own note."""
    return max(found.st_mtime_ns, found.st_ctime_ns)


def stamp_of(path: bytes) -> Stamp | None:
    """None where there is no folder."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    # Some file systems number beyond 63 bits.
    return Stamp(changed_ns(found), found.st_dev & LARGEST, found.st_ino & LARGEST)


def scan(root: bytes, relative: bytes) -> Folder | str:
    """List one folder; the reason where that fails. Hidden names (those that begin with a dot) are left out.

    A link with a picture's name is kept even where it leads nowhere: whoever reads it reports it.
    """
    path = join(root, relative) if relative else root
    stamp = stamp_of(path)
    if stamp is None:
        return "is gone"
    now = time.time_ns()
    names: list[bytes] = []
    folders: list[bytes] = []
    links: list[bytes] = []
    unread: dict[str, int] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == 46:  # a dot
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    continue
                lower = name.lower()
                picture = lower.endswith(ENDINGS)
                if entry.is_symlink() and _leads_to_folder(entry, or_nowhere=not picture):
                    links.append(name)
                elif picture:
                    names.append(name)
                elif (kind := UNREAD_OF.get(os.path.splitext(lower)[1])) is not None:
                    unread[kind] = unread.get(kind, 0) + 1
    except OSError as error:
        return error.strerror or str(error)
    if stamp.changed_ns > now - RACY_NS:
        stamp = Stamp(-1, stamp.dev, stamp.ino)
    names.sort()
    prefix = relative + b"/" if relative else b""
    paths = [prefix + name for name in names] if prefix else names
    lengths = array("i", map(len, paths)).tobytes()
    return Folder(relative, stamp, b"".join(paths), lengths, sorted(folders), sorted(links), unread)


def _leads_to_folder(entry: "os.DirEntry[bytes]", *, or_nowhere: bool) -> bool:
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError:
        return or_nowhere


def _scan_all(root: bytes, folders: list[bytes]) -> list[Folder | str]:
    return [scan(root, f) for f in folders]


class _Scanner:
    """Lists folders in this process, and by helpers once the tree turns out to be large."""

    def __init__(self, root: bytes, processes: int) -> None:
        self.root, self.processes = root, processes
        self.pool: ProcessPoolExecutor | None = None
        self.started = time.monotonic()

    def all(self, first: bytes, take: Callable[[bytes, Folder | str], Iterable[bytes]]) -> None:
        """List `first` and all that `take` answers with when it is told of a folder."""
        waiting: list[bytes] = [first]
        running: dict[Future, list[bytes]] = {}
        while waiting or running:
            if self.pool is None and waiting:
                folder = waiting.pop()
                waiting += take(folder, scan(self.root, folder))
                if self.processes > 1 and len(waiting) > 1 and time.monotonic() - self.started > ALONE_SECONDS:
                    self.pool = process_pool(self.processes)
                continue
            while waiting and self.pool is not None and len(running) < 3 * self.processes:
                size = max(1, min(BATCH, len(waiting) // self.processes))
                batch, waiting = waiting[-size:], waiting[:-size]
                running[self.pool.submit(_scan_all, self.root, batch)] = batch
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                for folder, found in zip(running.pop(done), done.result(), strict=True):
                    waiting += take(folder, found)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()


def walk(root: bytes, known: Callable[[bytes], Folder | None] = lambda relative: None, processes: int | None = None) -> Tree:
    """List a tree.

    Args:
        root: where.
        known: what an earlier listing found in a folder, if that still holds.
        processes: helpers for a large tree; None takes one a core, at least four: on network storage most of the time is waiting.
    """
    tree = Tree()
    found: dict[bytes, Folder] = {}
    seen: set[tuple[int, int]] = set()
    links: list[tuple[bytes, bytes]] = []  # a heap
    scanner = _Scanner(root, processes or max(4, available_cores()))

    def take(relative: bytes, folder: Folder | str) -> list[bytes]:
        """Note a folder; its sub-folders that have to be listed."""
        to_list: list[bytes] = []
        todo: list[tuple[bytes, Folder | str]] = [(relative, folder)]
        while todo:  # not recursion: what is known already may be deep
            where, content = todo.pop()
            if isinstance(content, str):
                tree.refused[where] = content
                continue
            if content.stamp.identity in seen:
                tree.elsewhere.append(where)
                continue
            seen.add(content.stamp.identity)
            found[where] = content
            for name in content.links:
                heapq.heappush(links, (order_of(join(where, name)), join(where, name)))
            for name in content.folders:
                below = join(where, name)
                if (before := known(below)) is not None:
                    todo.append((below, before))
                else:
                    tree.listed += 1
                    to_list.append(below)
        return to_list

    def descend(relative: bytes) -> None:
        before = known(relative)
        if before is None:
            tree.listed += 1
            scanner.all(relative, take)
            return
        for folder in take(relative, before):
            scanner.all(folder, take)

    try:
        descend(b"")
        while links:
            _, link = heapq.heappop(links)
            stamp = stamp_of(join(root, link))
            tree.links[link] = stamp.identity if stamp else None
            if stamp is None:
                continue
            if stamp.identity in seen:
                tree.not_followed.append(link)
            else:
                descend(link)
    finally:
        scanner.close()
    tree.folders = [found[relative] for relative in sorted(found, key=order_of)]
    return tree
