"""Embeddings kept on disk by what they are made of, so that the same network never looks at the same pictures twice.

The key is a hash of the network's weights, its architecture and preprocessing, and of the pictures' names, sizes and times: whatever
changes one of them makes new embeddings, and nothing needs to be told.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

VERSION = 1  # raise it when embeddings of the same network and pictures come out differently
LIMIT = 4 * 2**30  # bytes of all files together; beyond it the ones that were not used for longest go


def network_key(tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """Changes with any weight, name, shape or setting.

    Args:
        tensors: weights and statistics by name.
        settings: how it was made and how pictures are prepared for it; plain values.
    """
    digest = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True, default=str).encode())
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pictures_key(table: Any) -> str:
    """Changes when a picture is added, removed, renamed, or written again; labels do not count, for embeddings do not depend on them.

    Args:
        table: a `PictureTable`.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(table.root)))
    members = table.members
    arrays = [table.names[table.offsets[0] : table.offsets[-1]], np.diff(table.offsets)]
    if members is None:
        files: Any = map(table.path, range(len(table)))
    else:
        files = (os.path.join(table.root, shard) for shard in members.shards)
        arrays += [members.shard, members.start, members.size]
    stamps = []
    for file in files:
        try:
            found = os.stat(file)
            stamps.append((found.st_size, found.st_mtime_ns))
        except OSError:  # a broken picture, which embedding will report
            stamps.append((-1, -1))
    for array in [*arrays, np.array(stamps, dtype=np.int64)]:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def cached(folder: Path, key: str, make: Callable[[], tuple[Tensor, Tensor]], *, fresh: bool = False) -> tuple[Tensor, Tensor, str]:
    """Embeddings `(N, D)` and the numbers `(N,)` of their pictures: read where they were made before, else made and kept.

    Args:
        folder: where files lie.
        key: of network and pictures.
        make: makes them.
        fresh: make them again in any case.

    Returns:
        Both, and where they came from, in words.
    """
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"
    if file.is_file() and not fresh:
        try:
            found = safetensors.torch.load_file(file)
            os.utime(file)  # used just now
            return found["embeddings"], found["pictures"], f"read from {file}"
        except (safetensors.SafetensorError, KeyError, OSError):
            file.unlink(missing_ok=True)  # no file of ours, or half of one: made again
    embeddings, pictures = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        os.close(handle)
        try:
            safetensors.torch.save_file({"embeddings": embeddings.contiguous(), "pictures": pictures.contiguous()}, beside)
            os.replace(beside, file)
        finally:
            Path(beside).unlink(missing_ok=True)
        shrink(folder, LIMIT)
    except (OSError, safetensors.SafetensorError) as error:  # a cache that cannot be written costs time, not the result
        return embeddings, pictures, f"not kept, {folder} cannot be written ({error}); set VISIONTUNE_CACHE to a folder with space"
    return embeddings, pictures, f"kept in {file}"


def shrink(folder: Path, limit: int) -> None:
    """Remove the files that were not used for longest, until the rest fits into `limit` bytes; the newest one stays."""
    found = sorted(((p.stat(), p) for p in folder.glob("*.safetensors")), key=lambda f: f[0].st_mtime_ns, reverse=True)
    kept = 0
    for i, (stat, file) in enumerate(found):
        kept += stat.st_size
        if kept > limit and i:
            file.unlink(missing_ok=True)
