"""Pictures packed into tar shards in WebDataset's layout, optionally shrunk: `python -m visiontune shard FOLDER OUT`.

Pictures are shuffled on the way: reading shards mixes pictures of neighbouring blocks only (see `ShardShuffle`), so that a shard must
hold a mix already; from a folder in its own order the first shards would hold the first class and nothing else.
"""

import contextlib
import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from visiontune.data.decode import decode_whole
from visiontune.data.header import BrokenPicture, read_header
from visiontune.data.order import permute
from visiontune.data.parallel import available_cores, over
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable
from visiontune.errors import UserError, counted, readable, some

# Pictures that a helper is given at a time: memory holds 16 for each, so few, and enough to outweigh handing them over.
CHUNK = 4


@dataclass(frozen=True)
class Written:
    """What came of it.

    Attributes:
        out: folder of the shards.
        shards: how many.
        pictures: in them.
        shrunk: of these.
        broken: pictures left out, listed in `broken.csv`.
        bytes: of all shards.
        classes: in `classes.txt`; 0 without labels.
    """

    out: Path
    shards: int
    pictures: int
    shrunk: int
    broken: int
    bytes: int
    classes: int

    def lines(self) -> list[str]:
        """For people."""
        shrunk = f", {self.shrunk:,} of them shrunk" if self.shrunk else ""
        shards = f"{counted(self.shards, 'shard', ',')} ({self.bytes / 1e6:,.1f} MB)"
        found = [f"{counted(self.pictures, 'picture', ',')} in {shards} in {self.out}{shrunk}"]
        if self.classes:
            found.append(f"{counted(self.classes, 'class')}, named in {self.out / 'classes.txt'}")
        if self.broken:
            found.append(f"{counted(self.broken, 'broken picture', ',')} left out, listed in {self.out / 'broken.csv'}")
        return [*found, f"train from them with data.train={self.out}"]


@dataclass(frozen=True)
class Prepared:
    """A picture on its way into a shard; `broken` is the cause if it has no way there."""

    path: str
    name: str
    label: int
    ending: str = ""
    data: bytes = b""
    shrunk: bool = False
    broken: str = ""


def write_shards(
    source: PictureTable,
    out: Path,
    *,
    size: int | None = None,
    shard_bytes: int = 256_000_000,
    quality: int = 92,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Written:
    """Write shards: of each picture KEY.jpg (or its own ending), KEY.json with its path, and KEY.cls where there are labels.

    The same pictures and settings give the same bytes. Shards get their names when all are written: a run that was killed leaves no
    half set. Every picture is decoded once, so that shards hold none that is broken; but arrays (`.npy`) and TIFFs of other than 8 or
    16 bits or many channels, which mean nothing before a recipe says how to read them, are taken as they are, also with `size`.

    Args:
        source: the pictures.
        out: a new or empty folder.
        size: short side in pixels that larger pictures are shrunk to (the mean of the pixels that become one), written as 8-bit JPEG
            with OpenCV's colour sampling (4:2:0), upright; the others, and all without it, keep their bytes.
        shard_bytes: largest size of a shard, unless one picture is larger.
        quality: of the JPEGs, 1 to 100.
        seed: of the order.
        processes: helpers; None takes one a core.
        progress: told the number of pictures done, from time to time.

    Raises:
        UserError: if `out` is not empty or cannot be written, a setting makes no sense, or no picture can be read.
    """
    if source.targets is not None:
        raise UserError("shard: pictures of this table may have several labels, a shard's `.cls` holds one; --unlabelled writes none")
    if size is not None and size < 1:
        raise UserError(f"shard: size is {size}; give the short side in pixels, 1 or more")
    if not 1 <= quality <= 100:
        raise UserError(f"shard: quality is {quality}; give 1 to 100")
    if Path(source.root).resolve() in out.resolve().parents:
        raise UserError(f"shard: {out} lies inside of {source.root}, which is read; name a folder outside")
    broken: list[Prepared] = []
    written = shrunk = 0
    digits = max(6, len(str(len(source))))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if there := sorted(os.listdir(out)):
            raise UserError(f"shard: {out} is not empty (it holds {some(there, 3)}); name a new folder, or empty this one")
        with _Shards(out, shard_bytes) as shards:
            prepare = partial(_prepare, size=size, quality=quality)
            for done, several in enumerate(over(prepare, _shuffled(source, seed), processes or available_cores())):
                for picture in several:
                    if picture.broken:
                        broken.append(picture)
                        continue
                    members = {picture.ending: picture.data, "json": json.dumps({"path": readable(picture.name)}).encode()}
                    if source.labels is not None:
                        members["cls"] = str(picture.label).encode()
                    shards.add(f"{written:0{digits}d}", members)
                    written += 1
                    shrunk += picture.shrunk
                if progress is not None:
                    progress(min((done + 1) * CHUNK, len(source)))
            if not written:
                raise UserError(f"shard: no picture can be read: {some((f'{b.path} ({b.broken})' for b in broken), 3)}")
            if source.classes:
                (out / "classes.txt").write_bytes(os.fsencode("".join(f"{c}\n" for c in source.classes)))
            if broken:
                with open(out / "broken.csv", "w", newline="", errors="surrogateescape") as file:
                    csv.writer(file).writerows([("path", "cause"), *((b.path, b.broken) for b in broken)])
            shards.finish()
    except OSError as error:
        raise UserError(f"shard: cannot write {out} ({error.strerror}); name a folder that can be written and has space") from error
    return Written(out, shards.count, written, shrunk, len(broken), shards.bytes, len(source.classes))


def _shuffled(source: PictureTable, seed: int) -> Iterator[list[PictureTable]]:
    """Tables of one picture each: what a helper needs of it, instead of the whole table."""
    n = len(source)
    for first in range(0, n, CHUNK):
        positions = np.arange(first, min(first + CHUNK, n))
        yield [source.take([int(i)]) for i in permute(positions, n, seed=seed, epoch=0)]


def _prepare(several: list[PictureTable], *, size: int | None, quality: int) -> list[Prepared]:
    return [_prepare_one(one, size, quality) for one in several]


def _prepare_one(one: PictureTable, size: int | None, quality: int) -> Prepared:
    path, name, label = one.path(0), os.fsdecode(one.name(0)), one.label(0)
    try:
        data = read_bytes(one, 0)
        ending = name.rpartition(".")[2].lower()
        if read_header(data).decoder in ("tiff", "npy"):
            return Prepared(path, name, label, ending, data)
        pixels = decode_whole(data)
        if size is None or min(pixels.shape[:2]) <= size:
            return Prepared(path, name, label, ending, data)
        return Prepared(path, name, label, "jpg", _shrink(pixels, size, quality), shrunk=True)
    except BrokenPicture as error:
        return Prepared(path, name, label, broken=str(error))


def _shrink(pixels: np.ndarray, size: int, quality: int) -> bytes:
    """`(H, W, 3)` uint8 RGB to a JPEG whose short side is `size`."""
    scale = size / min(pixels.shape[:2])
    height, width = (max(size, round(side * scale)) for side in pixels.shape[:2])
    small = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA)
    try:
        good, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error:
        good = False
    if not good:
        raise BrokenPicture(f"cannot be written as JPEG at {width}x{height} pixels")
    return jpeg.tobytes()


class _Shards:
    """Tar files one after another, under hidden names until `finish`; what is not finished is removed."""

    def __init__(self, out: Path, limit: int) -> None:
        self.out, self.limit = out, limit
        self.count = self.bytes = 0
        self.tar: tarfile.TarFile | None = None

    def __enter__(self) -> "_Shards":
        return self

    def _hidden(self, number: int) -> Path:
        return self.out / f".shard-{number:06d}.tar.part"

    def add(self, key: str, members: dict[str, bytes]) -> None:
        blocks = sum(512 + len(data) + -len(data) % 512 for data in members.values())
        # A tar is filled up to a multiple of 10,240 bytes, at least two empty blocks.
        if self.tar is not None and self.tar.offset + blocks + tarfile.RECORDSIZE > self.limit:
            self._close()
        if self.tar is None:
            self.tar = tarfile.open(self._hidden(self.count), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by _close)
            self.count += 1
        for ending, data in sorted(members.items()):
            member = tarfile.TarInfo(f"{key}.{ending}")  # its time and owner are 0
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))

    def _close(self) -> None:
        if self.tar is not None:
            tar, self.tar = self.tar, None
            tar.close()
            self.bytes += self._hidden(self.count - 1).stat().st_size

    def finish(self) -> None:
        self._close()
        for number in range(self.count):
            self._hidden(number).rename(self.out / f"shard-{number:06d}.tar")

    def __exit__(self, *why: object) -> None:
        if why[0] is not None and self.tar is not None:
            with contextlib.suppress(OSError):  # there may be no space for what is still to write
                self.tar.fileobj.close()
        for number in range(self.count):
            self._hidden(number).unlink(missing_ok=True)
