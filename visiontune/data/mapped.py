"""Arrays in a file that is mapped into memory: what an index is kept in.

Layout: a line with kind and version, the length of a JSON header, the header, then arrays, each on a 64-byte boundary. A new file is
written beside the old one and renamed over it, so a process that has the old one open keeps it whole.
"""

import contextlib
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.errors import UserError

ALIGNMENT = 64


def write_mapped(file: Path, kind: str, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file, all of it or nothing.

    Args:
        file: where; its folder exists.
        kind: what it is, with a version.
        header: JSON.
        arrays: by name, in one dimension.

    Raises:
        UserError: if it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
    text = json.dumps(header | {"arrays": layout}).encode()
    try:
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}")
        with os.fdopen(handle, "wb") as out:
            out.write(f"{kind}\n".encode() + len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                out.write(b"\0" * (-out.tell() % ALIGNMENT))
                out.write(array.data)
        os.chmod(beside, 0o644)
        os.replace(beside, file)
    except OSError as error:
        raise UserError(f"index: cannot write {file} ({error.strerror}); set VISIONTUNE_CACHE to a folder with space") from error


def read_mapped(file: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Header and arrays, mapped; None where there is no file of this kind and version, or a damaged one."""
    magic = f"{kind}\n".encode()
    try:
        with open(file, "rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if data[: len(magic)] != magic:
            return None
        at = len(magic) + 8
        size = int.from_bytes(data[len(magic) : at], "little")
        header = json.loads(data[at : at + size])
        at += size
        arrays = {}
        for name, (dtype, count) in header["arrays"].items():
            at += -at % ALIGNMENT
            arrays[name] = np.frombuffer(data, dtype=dtype, count=count, offset=at)
            at += arrays[name].nbytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return header, arrays


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """One process at a time; where the file system has no locks each works for itself, and the last one's file stays.

    Raises:
        UserError: if its folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{file}.lock", "a")  # noqa: SIM115
    except OSError as error:
        cure = "set VISIONTUNE_CACHE to a folder that can be written"
        raise UserError(f"index: cannot write {file} ({error.strerror}); {cure}") from error
    with lock:
        try:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that makes {file}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield  # closing gives the lock back
