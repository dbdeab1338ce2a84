"""The rows of an annotation table, one after another: what every kind of table is to the rest, and CSV and TSV."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from visiontune.errors import UserError

# Files of one table; `datasets.save_to_disk` writes a folder.
TABLES = (".csv", ".tsv", ".parquet")


class Place(NamedTuple):
    """A picture inside of a file: in which of `Source.shards`, its first byte and bytes there, and its ending."""

    shard: int
    start: int
    size: int
    ending: str


# Number of a row as its reader counts, and its cells; None where it has another number of them than the header.
Row = tuple[int, Sequence[Any] | None]


@dataclass(frozen=True)
class Source:
    """A table that is open for reading.

    Attributes:
        path: the file or folder.
        root: the folder that paths in it are relative to.
        names: of its columns.
        counts: what the number of a row is called: `line` of a text, or `row`.
        rows: reads these columns of all rows.
        class_names: names that the numbers in a column stand for, by column.
        refused: columns that cannot be used, with the reason.
        shards: files below the root that hold pictures, where cells are a `Place`.
    """

    path: str
    root: str
    names: tuple[str, ...]
    counts: str
    rows: Callable[[Sequence[int]], Iterator[Row]]
    class_names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    shards: tuple[str, ...] = ()


def is_table(path: str) -> bool:
    """Whether a path means a table with a row a picture: `.csv`, `.tsv`, `.parquet`, or a folder that `datasets.save_to_disk` wrote."""
    if os.path.isdir(path):
        return is_saved(path)
    return path.lower().endswith(TABLES)


def is_saved(folder: str) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder: one part, or several by name."""
    has = {name: os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "dataset_info.json", "state.json")}
    return has["dataset_dict.json"] or (has["dataset_info.json"] and has["state.json"])


def open_source(path: str, *, key: str) -> Source:
    """A table for reading; `key` is the recipe's, for messages.

    Raises:
        UserError: if it is not there, or not what its name says.
    """
    if os.path.isdir(path):
        from visiontune.data.arrow import open_saved

        return open_saved(path, key=key)
    if not os.path.isfile(path):
        folder = os.path.dirname(os.path.abspath(path))
        there = sorted(n for n in os.listdir(folder) if n.lower().endswith(TABLES)) if os.path.isdir(folder) else []
        beside = f"{folder} holds the tables {', '.join(there[:5])}" if there else f"there is no table in {folder}"
        raise UserError(f"{key}: no file {path}; {beside}")
    if path.lower().endswith(".parquet"):
        from visiontune.data.arrow import open_parquet

        return open_parquet(path, key=key)
    return _open_csv(path, key)


def _open_csv(path: str, key: str) -> Source:
    try:
        with open(path, "rb") as file:
            begins = file.read(4)
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from error
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{key}: {path} is UTF-16; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    delimiter = "\t" if path.lower().endswith(".tsv") else _delimiter(path)
    names = next((cells for _, cells in _lines(path, delimiter, key)), None)
    if names is None:
        raise UserError(f"{key}: {path} is empty; expected a line with the names of columns, then a line a picture")
    width = len(names)

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        lines = _lines(path, delimiter, key)
        next(lines)
        for number, cells in lines:
            yield number, [cells[c] for c in columns] if len(cells) == width else None

    return Source(path, os.path.dirname(path) or ".", tuple(name.strip() for name in names), "line", rows)


def _lines(path: str, delimiter: str, key: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the last line and cells of each row; empty lines are passed over, bytes that are not UTF-8 kept."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(f"{key}: {path} is no table from line {reader.line_num} on: {error}") from error


def _delimiter(path: str) -> str:
    """Spreadsheets write `.csv` with the separator of the country; the header tells: a comma unless another gives more columns."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        header = file.readline()
    return max(",;\t", key=header.count)
