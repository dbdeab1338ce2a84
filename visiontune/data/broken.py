"""The account of pictures that could not be read: each once in `broken.csv`, over all processes of a run."""

import contextlib
import csv
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from visiontune.errors import UserError, some

# Five are forgiven in any folder: one bad file among seventy is no reason to stop.
FORGIVEN = 5
COLUMNS = ("path", "cause", "met")


class Broken:
    """Pictures that could not be read, with causes; beyond a share of the folder the run stops.

    Several processes write one file: each takes up what the others wrote before it adds its own, so that none is listed twice and
    the share counts all. It counts pictures of the training alone, and in a resumed run those that it meets itself: some may have been
    repaired.

    Args:
        csv: the file; None keeps the account in memory only.
        limit: largest share of broken pictures.
        total: pictures in the folder.
    """

    def __init__(self, csv: Path | None, *, limit: float, total: int) -> None:
        self.csv, self.limit, self.total = csv, limit, total
        self.causes: dict[str, str] = {}
        self.in_training: set[str] = set()
        self._read_to = 0
        if csv is not None and csv.exists():
            with csv.open("rb") as file:
                self._take_up(file)
        self.in_training.clear()

    def note(self, broken: Iterable[tuple[str, str]], met: str = "evaluation") -> None:
        """List pictures, each once; `met` is where."""
        new = {path: cause for path, cause in broken if path not in self.causes}
        if not new:
            return
        if self.csv is not None:
            with self.csv.open("a+b") as file, _alone(file):
                self._take_up(file)
                new = {path: cause for path, cause in new.items() if path not in self.causes}
                text = io.StringIO()
                rows = [list(COLUMNS)] if self._read_to == 0 else []
                csv.writer(text, lineterminator="\n").writerows(rows + [[path, cause, met] for path, cause in new.items()])
                file.write(text.getvalue().encode("utf-8", "surrogateescape"))
                file.flush()
                self._read_to = file.seek(0, os.SEEK_END)
        self.causes |= new

    def _take_up(self, file: io.BufferedIOBase) -> None:
        """Rows that were written since the last look."""
        file.seek(self._read_to)
        text = file.read().decode("utf-8", "surrogateescape")
        self._read_to = file.tell()
        rows = [row for row in csv.reader(io.StringIO(text)) if len(row) == len(COLUMNS) and tuple(row) != COLUMNS]
        self.causes |= {path: cause for path, cause, _ in rows}
        self.in_training |= {path for path, _, met in rows if met == "training"}

    def refresh(self) -> None:
        """Take up what other processes wrote."""
        if self.csv is not None and self.csv.exists():
            with self.csv.open("rb") as file:
                self._take_up(file)

    def add(self, broken: list[tuple[str, str]], *, got_any: bool) -> None:
        """List pictures of a training batch, and stop the run beyond the limit, or where a batch has none left.

        Raises:
            UserError: with the first of them and their causes.
        """
        self.note(broken, "training")
        self.in_training |= {path for path, _ in broken}
        if len(self.in_training) > max(FORGIVEN, self.limit * self.total) or not got_any:
            causes = {path: self.causes[path] for path in sorted(self.in_training)}
            listed = some((f"{p} ({c})" for p, c in causes.items()), 5)
            where = f"; all are in {self.csv}" if self.csv else ""
            raise UserError(
                f"data: {len(causes)} of {self.total} pictures cannot be read, more than data.max_broken allows ({self.limit:g}): "
                f"{count_causes(causes.values())}; e.g. {listed}{where}. Repair them, or raise data.max_broken (also with --resume)"
            )

    def summary(self) -> str:
        """How many of each cause: `3 empty file, 1 file is gone`."""
        return count_causes(self.causes.values())


def read_broken(csv_file: Path) -> list[tuple[str, str]]:
    """Path and cause of each row of a `broken.csv`; none if there is no file. Names that are not UTF-8 are made readable."""
    if not csv_file.is_file():
        return []
    with csv_file.open(newline="", errors="backslashreplace") as file:
        return [(row["path"], row["cause"]) for row in csv.DictReader(file)]


def count_causes(causes: Iterable[str]) -> str:
    """How many of each, the most frequent first; details after a colon or bracket are left out."""
    kinds = Counter(cause.split(":")[0].split(" (")[0] for cause in causes)
    return ", ".join(f"{n} {cause}" for cause, n in kinds.most_common())


@contextlib.contextmanager
def _alone(file: io.BufferedIOBase):  # type: ignore[no-untyped-def]
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):  # no locks here: then a row may come twice
        pass
    yield  # closing the file gives the lock back
