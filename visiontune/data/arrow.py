"""Annotation tables that pyarrow reads: Parquet, and what Hugging Face's `datasets.save_to_disk` leaves.

The latter are Arrow files, in which the bytes of a picture lie as they are: they are read at their places, as from tar shards, and
neither pyarrow nor `datasets` is needed in a loader's worker.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from visiontune.data.rows import Place, Row, Source
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError

SAVE = "load it with `datasets` and give the folder that its `save_to_disk` writes"
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"BM": ".bmp", b"GIF8": ".gif", b"II*\0": ".tif", b"MM\0*": ".tif"}


def _pyarrow(key: str, path: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{key}: {path} needs pyarrow to be read: pip install 'visiontune[tables]'") from error
    return pyarrow


def open_parquet(path: str, *, key: str) -> Source:
    """A Parquet file. See `rows.open_source`."""
    pa = _pyarrow(key, path)
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{key}: {path} is no Parquet file: {str(error).splitlines()[0]}") from error

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        names, number = [schema.names[c] for c in columns], 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=names):
                cells = [batch.column(batch.schema.names.index(name)).to_pylist() for name in names]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield number, row

    inside = f"holds the pictures themselves, compressed; {SAVE}"
    refused = {c: inside for c, kind in enumerate(schema.types) if _holds_pictures(pa, kind)}
    return Source(path, os.path.dirname(path) or ".", tuple(schema.names), "row", rows, _class_names(schema), refused)


def open_saved(path: str, *, key: str) -> Source:
    """A folder of `datasets.save_to_disk`; of several parts their names are a column `split`. See `rows.open_source`."""
    pa = _pyarrow(key, path)
    parts = _json(os.path.join(path, "dataset_dict.json"), key)["splits"] if os.path.isfile(os.path.join(path, "dataset_dict.json")) else []
    files: list[tuple[str, str]] = []  # part and path below the folder
    for part in parts or [""]:
        state = _json(os.path.join(path, part, "state.json"), key)
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise UserError(f"{key}: {path} was saved by an old version of `datasets`, with a selection beside it; {SAVE}")
        files += [(part, os.path.join(part, file["filename"])) for file in state["_data_files"]]
    if not files:
        raise UserError(f"{key}: {path} holds no rows")
    schema = _read_file(pa, os.path.join(path, files[0][1]), key)[1].schema
    names = tuple(schema.names)
    if parts:
        names = (*(f"{name} (of the parts)" if name == "split" else name for name in names), "split")

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        number = 0
        for shard, (part, file) in enumerate(files):
            whole, reader = _read_file(pa, os.path.join(path, file), key)
            for batch in reader:
                cells = [
                    [part] * len(batch) if c == len(schema.names) else _cells(pa, batch.column(c), whole, shard, key, path) for c in columns
                ]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield number, row

    return Source(path, path, names, "row", rows, _class_names(schema), shards=tuple(file for _, file in files))


def _json(file: str, key: str) -> Any:
    try:
        with open(file) as opened:
            return json.load(opened)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {file} cannot be read; {os.path.dirname(file)} is no whole folder of `datasets.save_to_disk`") from error


def _read_file(pa: Any, file: str, key: str) -> tuple[Any, Any]:
    """All of an Arrow file, mapped, and a reader of its batches."""
    try:
        mapped = pa.memory_map(file)
        whole = mapped.read_buffer()
        return whole, pa.ipc.open_stream(whole)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{key}: {file} cannot be read: {str(error).splitlines()[0]}") from error


def _holds_pictures(pa: Any, kind: Any) -> bool:
    """`datasets` keeps a picture as its bytes and its path, either of which may be missing."""
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: Any) -> dict[int, tuple[str, ...]]:
    """Names of `datasets`' ClassLabel columns, which it writes beside the columns, also into Parquet files."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features, found = about.get("info", {}).get("features", {}), {}
    for column, name in enumerate(schema.names):
        feature = features.get(name)
        if isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence"):
            feature = feature.get("feature")
        elif isinstance(feature, list) and feature:
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = tuple(feature["names"])
    return found


def _cells(pa: Any, column: Any, whole: Any, shard: int, key: str, path: str) -> list[Any]:
    """A column's cells; pictures as the place of their bytes, or their path where there are none."""
    if not _holds_pictures(pa, column.type):
        return column.to_pylist()
    data, paths = column, [None] * len(column)
    if pa.types.is_struct(column.type):
        data, paths = column.field("bytes"), column.field("path").to_pylist()
    if data.null_count == len(data):
        return paths
    _, ends, values = data.buffers()
    first = values.address - whole.address
    if not 0 <= first <= first + values.size <= whole.size:
        raise UserError(f"{key}: the Arrow files of {path} are compressed, so that no picture can be read at its place; {SAVE}")
    width = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    starts = np.frombuffer(ends, dtype=width)[data.offset : data.offset + len(data) + 1].tolist()
    content = memoryview(whole)
    cells: list[Any] = []
    for i, (there, name) in enumerate(zip(data.is_valid().to_pylist(), paths, strict=True)):
        if not there:
            cells.append(name)
            continue
        start, size = first + starts[i], starts[i + 1] - starts[i]
        cells.append(Place(shard, start, size, _ending(name, bytes(content[start : start + 4]))))
    return cells


def _ending(name: str | None, begins: bytes) -> str:
    own = os.path.splitext(name or "")[1].lower()
    return own if own in SUFFIXES else next((e for magic, e in MAGIC.items() if begins.startswith(magic)), ".jpg")
