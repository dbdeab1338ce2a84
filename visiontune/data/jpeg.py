"""JPEG to pixels by libjpeg-turbo: at 1/2, 1/4 or 1/8, and only down to the last row that is needed."""

import numpy as np
import simplejpeg

from visiontune.data.header import BrokenPicture, Header

# Rows decoded below those that are needed: the decoder smooths colours over the border of its 16-row blocks.
SPARE = 16
# Rows that are alike where pixels are missing.
FILLED = 2


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
    height, original = header.height, data
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
        pixels = simplejpeg.decode_jpeg(data, strict=not shortened, **settings)
    except ValueError as error:
        if "remature end" in str(error):
            raise BrokenPicture("cut off: the file ends before the picture does") from error
        if "extraneous" not in str(error):
            return None
        pixels = simplejpeg.decode_jpeg(data, strict=False, **settings)  # bytes between the pixels and the end: harmless
    if shortened and len(pixels) > FILLED and np.array_equal(pixels[-1], pixels[-1 - FILLED]):
        # A sky perhaps; or the decoder ran out of data and filled up: a strict look at all of it tells.
        return decode_jpeg(original, header, channels=channels, reduce=reduce)
    return pixels
