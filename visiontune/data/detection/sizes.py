"""Heights and widths of pictures from their headers: what normalised boxes are turned into pixels with."""

from functools import partial

import numpy as np

from visiontune.data.decode import Reading
from visiontune.data.header import BrokenPicture, read_header
from visiontune.data.parallel import available_cores, over
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable

CHUNK = 256


def picture_sizes(table: PictureTable, *, reading: Reading = Reading(), processes: int | None = None) -> np.ndarray:  # noqa: B008 (frozen)
    """`(N, 2)` int32: height and width of each picture as a person sees it, 0 and 0 where its file cannot be read.

    Args:
        table: the pictures.
        reading: how files become pixels.
        processes: helpers; None takes one a core, and none for few pictures.
    """
    if processes is None:
        processes = available_cores() if len(table) > 4 * CHUNK else 1
    chunks = (table.take(range(start, min(start + CHUNK, len(table)))) for start in range(0, len(table), CHUNK))
    found = list(over(partial(_sizes, reading.channels), chunks, processes))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int32)


def _sizes(channels: int, table: PictureTable) -> np.ndarray:
    sizes = np.zeros((len(table), 2), dtype=np.int32)
    for i in range(len(table)):
        try:
            sizes[i] = read_header(read_bytes(table, i), channels).upright
        except BrokenPicture:  # met again, and told, when its pixels are wanted
            continue
    return sizes
