"""A look at every picture of a folder or table before anything is trained on it: what is broken, what is there twice, what is too small."""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from visiontune.data.broken import count_causes
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.parallel import available_cores, over
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable
from visiontune.errors import counted, some

CHUNK = 64


@dataclass(frozen=True)
class Look:
    """What one picture is like.

    Attributes:
        index: its number in the table.
        cause: why it cannot be read, or "".
        digest: of the file's bytes.
        height, width: in pixels, upright.
    """

    index: int
    cause: str
    digest: bytes = b""
    height: int = 0
    width: int = 0


@dataclass
class Findings:
    """What a folder's pictures are like.

    Attributes:
        table: the pictures.
        broken: number and cause of each that cannot be read.
        duplicates: groups of pictures whose files are equal to the byte; in each the first is the one to keep.
        tiny: number, height and width of those below the limit.
        sizes: shorter sides of all readable pictures, in pixels.
    """

    table: PictureTable
    broken: list[tuple[int, str]] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    tiny: list[tuple[int, int, int]] = field(default_factory=list)
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    @property
    def copies(self) -> int:
        """Pictures that could go without losing any."""
        return sum(len(group) - 1 for group in self.duplicates)

    def lines(self, tiny: int) -> list[str]:
        """For people."""
        n = len(self.table)
        found = [f"{counted(n, 'picture')} in {self.table.root}"]
        if classes := self.table.classes:
            counts = self.table.class_counts().tolist()
            each = some((f"{name} {count:,}" for name, count in zip(classes, counts, strict=True)), 30)
            found.append(f"{counted(len(classes), 'class')}: {each}")
        if len(self.sizes):
            low, middle, high = np.percentile(self.sizes, (0, 50, 100)).astype(int)
            found.append(f"short side: {low} to {high} pixels, half of them at most {middle}")
        found.append(f"broken: {len(self.broken)}" + (f": {count_causes(c for _, c in self.broken)}" if self.broken else ""))
        found.append(f"exact duplicates: {self.copies}" + (f", in {counted(len(self.duplicates), 'group')}" if self.duplicates else ""))
        if (across := self.across_classes()) is not None:
            found.append(f"duplicates in several classes: {across}" + (" groups, at least one of their labels is wrong" if across else ""))
        found.append(f"smaller than {tiny} pixels: {len(self.tiny)}")
        return found

    def across_classes(self) -> int | None:
        """Groups of duplicates that have several labels; None without labels."""
        if not self.table.classes:
            return None
        return sum(len({np.asarray(self.table.label(i)).tobytes() for i in group}) > 1 for group in self.duplicates)

    def write_csv(self, file: Path) -> None:
        """`path,problem,detail` of everything found."""
        path = self.table.path
        with file.open("w", newline="", errors="surrogateescape") as opened:
            writer = csv.writer(opened)
            writer.writerow(["path", "problem", "detail"])
            writer.writerows([path(i), "broken", cause] for i, cause in self.broken)
            writer.writerows([path(i), "duplicate", f"of {path(group[0])}"] for group in self.duplicates for i in group[1:])
            writer.writerows([path(i), "tiny", f"{w}x{h}"] for i, h, w in self.tiny)


def inspect(
    table: PictureTable,
    *,
    tiny: int = 32,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Findings:
    """Read and decode every picture, in parallel.

    Args:
        table: what to look at.
        tiny: shorter sides below this many pixels are listed.
        reading: how files become pixels.
        processes: helpers; None takes one a core.
        progress: told the number of pictures done, from time to time.
    """
    findings = Findings(table)
    first: dict[bytes, int] = {}
    groups: dict[bytes, list[int]] = {}
    sizes: Counter[int] = Counter()
    for look in look_at_all(table, reading=reading, processes=processes, progress=progress):
        if look.cause:
            findings.broken.append((look.index, look.cause))
            continue
        if look.digest in first:
            groups.setdefault(look.digest, [first[look.digest]]).append(look.index)
        first.setdefault(look.digest, look.index)
        short = min(look.height, look.width)
        sizes[short] += 1
        if short < tiny:
            findings.tiny.append((look.index, look.height, look.width))
    findings.duplicates = sorted(groups.values())
    findings.sizes = np.repeat(np.array(sorted(sizes), dtype=np.int32), [sizes[s] for s in sorted(sizes)])
    return findings


def look_at_all(
    table: PictureTable,
    *,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Look]:
    """Every picture read and decoded, in the table's order; arguments as of `inspect`."""
    # Small tables, not the whole one with each chunk.
    numbers = (range(start, min(start + CHUNK, len(table))) for start in range(0, len(table), CHUNK))
    chunks = ((part.start, table.take(part)) for part in numbers)
    for looks in over(partial(_look_at, reading), chunks, processes or available_cores()):
        if progress is not None and looks:
            progress(looks[-1].index + 1)
        yield from looks


def _look_at(reading: Reading, chunk: tuple[int, PictureTable]) -> list[Look]:
    return list(_looks(reading, *chunk))


def _looks(reading: Reading, first: int, table: PictureTable) -> Iterator[Look]:
    for index in range(len(table)):
        try:
            data = read_bytes(table, index)
            picture = Picture(data, reading)
            picture.whole()
        except BrokenPicture as error:
            yield Look(first + index, str(error))
        else:
            yield Look(first + index, "", hashlib.blake2b(data, digest_size=16).digest(), picture.height, picture.width)
