"""The bytes of a picture, from a file or from a shard."""

import errno
import os
import stat

from visiontune.data.header import BrokenPicture
from visiontune.data.table import PictureTable


def read_bytes(table: PictureTable, index: int) -> bytes:
    """A picture's file, whole.

    Raises:
        BrokenPicture: with the cause.
    """
    if table.members is not None:
        from visiontune.data.shards import read_member

        return read_member(table, index)
    return read_file(table.path(index))


def read_file(path: str) -> bytes:
    """A file's content.

    Raises:
        BrokenPicture: with the cause.
    """
    try:
        # Without O_NONBLOCK a named pipe with a picture's name would hold a worker for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb", buffering=0) as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise BrokenPicture("a folder, not a file" if stat.S_ISDIR(found.st_mode) else "a pipe or device, not a file")
            data = file.read(found.st_size + 1)  # one call where the size is right
            return data if len(data) <= found.st_size else data + file.readall()
    except OSError as error:
        raise BrokenPicture(_cause(error, path)) from error


def _cause(error: OSError, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere" if os.path.islink(path) else "file is gone"
    if isinstance(error, PermissionError):
        return "no permission to read"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if error.errno == errno.ENXIO:
        return "a pipe or device, not a file"
    return f"cannot be read: {error.strerror}"
