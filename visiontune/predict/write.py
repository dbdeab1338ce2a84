"""What was found, as files: labels as CSV, embeddings as NumPy, Parquet or CSV. Rows are written as they come. N pictures, D width."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.errors import UserError, readable
from visiontune.predict.predictor import Embedding, Prediction

FORMATS = (".npz", ".parquet", ".csv")
# Rows of Parquet that are held until they are written: 32 MB at a width of 2,048.
GROUP = 4096

OnBroken = Callable[[str, str], None]


def write_csv(predictions: Iterable[Prediction], file: Any, *, top: int | None = None, on_broken: OnBroken = lambda *_: None) -> int:
    """Rows of `path,label,score`; with `top` also `label2,score2` and so on.

    Of several labels without `top` each row has them all, joined by `|`. Broken pictures get no row: `on_broken` is told their path and
    the cause. Returns the number of rows.
    """
    writer, count = csv.writer(file, lineterminator="\n"), 0
    writer.writerow(["path", *(f"{name}{k if k > 1 else ''}" for k in range(1, (top or 1) + 1) for name in ("label", "score"))])
    for p in predictions:
        if p.broken:
            on_broken(p.path, p.broken)
            continue
        scores = [f"{score:.4f}" for score in p.scores]
        pairs = [x for pair in zip(p.labels, scores, strict=True) for x in pair]
        writer.writerow([p.path, *(pairs if top else ("|".join(p.labels), "|".join(scores)))])
        count += 1
    return count


def check_format(out: Path) -> None:
    """Raises UserError if embeddings cannot be written to such a file, before any is computed."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out: got {out}; expected a name that ends in {', '.join(FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it, or name a file in one that is there")
    if out.suffix == ".parquet":
        _pyarrow()


def write_embeddings(embeddings: Iterable[Embedding], out: Path, *, on_broken: OnBroken = lambda *_: None) -> tuple[int, int]:
    """Paths and embeddings, float32, in memory that does not grow with their number but for the paths of `.npz`.

    `.npz` holds `paths` (N,) and `embeddings` (N, D); `.parquet` the columns `path` and `embedding` (a list of D); `.csv` the columns
    `path`, `e0`, `e1`, ... Broken pictures are left out, and `on_broken` told. The file is there when it is whole.

    Returns:
        N and D.

    Raises:
        UserError: for another kind of file, and if no picture could be read.
    """
    check_format(out)
    kept = _kept(embeddings, on_broken)
    first = next(kept, None)
    if first is None:
        raise UserError("embed: no picture could be read, or has a finite embedding, so there is nothing to write")
    rows = _chain(first, kept)
    with whole_file(out) as part:
        count = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}[out.suffix](rows, len(first.vector), part)
    return count, len(first.vector)


def _kept(embeddings: Iterable[Embedding], on_broken: OnBroken) -> Iterator[Embedding]:
    for e in embeddings:
        if e.broken:
            on_broken(e.path, e.broken)
        else:
            yield e


def _chain(first: Embedding, rest: Iterator[Embedding]) -> Iterator[Embedding]:
    yield first
    yield from rest


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A name beside `out`, which becomes `out` when all is written: what breaks off lies there, and an older file stays as it was.

    Devices and pipes (`/dev/stdout`), and a file in a folder that takes no other, are written to as they are; a link keeps its target.
    """
    out = out.resolve()
    if (out.exists() and not out.is_file()) or not os.access(out.parent, os.W_OK):
        yield out
        return
    part = out.with_name(out.name + ".part")
    yield part
    part.replace(out)


def _npz(rows: Iterator[Embedding], D: int, part: Path) -> int:
    paths = []
    with tempfile.TemporaryFile(dir=part.absolute().parent) as raw:  # the archive wants to know N first
        for e in rows:
            paths.append(e.path)
            raw.write(e.vector.tobytes())
        raw.flush()
        vectors = np.memmap(raw, dtype=np.float32, mode="r", shape=(len(paths), D))
        with part.open("wb") as file:
            np.savez(file, paths=np.array(paths), embeddings=vectors)
    return len(paths)


def _parquet(rows: Iterator[Embedding], D: int, part: Path) -> int:
    pa, pq = _pyarrow()
    schema = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), D))])
    count = 0
    with pq.ParquetWriter(part, schema) as writer:
        while group := list(islice(rows, GROUP)):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([e.vector for e in group])), D)
            writer.write_table(pa.table([pa.array([readable(e.path) for e in group]), vectors], schema=schema))
            count += len(group)
    return count


def _csv(rows: Iterator[Embedding], D: int, part: Path) -> int:
    count = 0
    with part.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *(f"e{i}" for i in range(D))])
        for e in rows:
            writer.writerow([e.path, *(str(x) for x in e.vector)])  # the fewest digits that give the same float32 back
            count += 1
    return count


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("--out: .parquet needs pyarrow; pip install 'visiontune[tables]', or name a file that ends in .npz") from error
    return pyarrow, pyarrow.parquet
