"""Whether the files that a table names are there."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Sequence

from visiontune.data.columns import section_of
from visiontune.errors import counted

# From so many rows of one folder on, it is listed rather than asked for each: on network storage a listing costs as much as a few of them.
LISTED = 8


def rooted(root: str, paths: list[bytes]) -> tuple[str, list[bytes]]:
    """A root and the paths below it: that of the file system where some are absolute."""
    if not any(os.path.isabs(path) for path in paths):
        return root, paths
    whole = os.fsencode(os.path.abspath(root))
    top = os.path.abspath(os.sep)
    return top, [os.path.join(whole, path)[len(os.fsencode(top)) :] for path in paths]


def missing_files(root: str, paths: Sequence[bytes]) -> list[int]:
    """Numbers of the paths that lead to nothing."""
    folders: dict[bytes, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        folders[os.path.dirname(path)].append(i)
    top, gone = os.fsencode(root), []
    for folder, numbers in folders.items():
        there: set[bytes] = set()
        if len(numbers) >= LISTED:
            with contextlib.suppress(OSError):  # asking for each tells
                there = set(os.listdir(os.path.join(top, folder)))
        # Asked again: names may be written in another way, where the file system takes large and small letters for the same.
        gone += [i for i in numbers if os.path.basename(paths[i]) not in there and not os.path.lexists(os.path.join(top, paths[i]))]
    return sorted(gone)


def none_there(path: str, first: bytes, count: int, root: str, key: str) -> str:
    cure = f"paths are relative to {root}; another folder: {section_of(key)}.root=FOLDER"
    if b"://" in first:
        cure = "an address cannot be read: fetch the pictures first"
    elif b"\\" in first and os.sep == "/":
        cure = "here folders are separated by /, not by \\"
    whole = os.path.join(root, os.fsdecode(first))
    return f"{key}: none of the {counted(count, 'file', ',')} of {path} is there, the first is {whole}; {cure}"
