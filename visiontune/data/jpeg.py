"""JPEG to pixels by libjpeg-turbo: at 1/2, 1/4 or 1/8, and only down to the last row that is needed."""

import numpy as np
import simplejpeg

from visiontune.data.header import BrokenPicture, Header

# Rows decoded below those that are needed: the decoder smooths colours over the border of its 16-row blocks.
SPARE = 16


def decode_jpeg(data: bytes | bytearray, header: Header, *, channels: int, reduce: int = 1, rows: int | None = None) -> np.ndarray | None:
    """`(rows or more, W, channels)` uint8, as stored: RGB or grey, everything divided by `reduce`; None for what it cannot read.

    Args:
        data: the file.
        header: what it says of itself.
        channels: 3 or 1.
        reduce: 1, 2, 4 or 8.
        rows: how many are needed from the top, at full size; None takes all.

    Raises:
        BrokenPicture: if the file ends too early.
    """
    height = header.height
    below = height if rows is None else (rows + SPARE * reduce + 15) // 16 * 16
    shortened = bool(header.height_at) and below < height
    if shortened:
        # The decoder is told that the picture ends here: it stops, and never touches the rest, on average a quarter of the work.
        at, height = header.height_at, below
        data = bytearray(data)
        data[at : at + 2] = height.to_bytes(2, "big")
    settings = {"colorspace": "RGB" if channels == 3 else "GRAY", "min_factor": 1}
    if reduce > 1:
        settings |= {"min_height": -(-height // reduce), "min_width": -(-header.width // reduce)}
    try:
        return simplejpeg.decode_jpeg(data, strict=not shortened, **settings)
    except ValueError as error:
        if "remature end" in str(error):
            raise BrokenPicture("cut off: the file ends before the picture does") from error
    try:
        return simplejpeg.decode_jpeg(data, strict=False, **settings)  # a warning, of bytes between markers for example
    except ValueError:
        return None
