"""Files to pixels. A picture that cannot be read whole is broken, also one that a decoder would show half of."""

import io
import os

import cv2
import numpy as np
from PIL import Image, ImageOps

# A decoder thread pool beside loader workers only makes them fight for cores.
cv2.setNumThreads(0)
# 300 million pixels: beyond any camera, below what takes a worker down.
Image.MAX_IMAGE_PIXELS = 300_000_000


class BrokenPicture(Exception):
    """A picture that cannot be read; the text is the cause, for people."""


def read_picture(path: str) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB, turned upright as EXIF says, 16-bit scaled to 8.

    Raises:
        BrokenPicture: with the cause.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise BrokenPicture("dangling link" if os.path.islink(path) else "file is gone") from error
    except PermissionError as error:
        raise BrokenPicture("no permission to read") from error
    except OSError as error:
        raise BrokenPicture(f"cannot be read: {error.strerror}") from error
    if not data:
        raise BrokenPicture("empty file")
    # From bytes, not from the path: OpenCV's imread returns half a picture for a JPEG that was cut off.
    try:
        picture = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        picture = None
    return picture if picture is not None else _read_slowly(data)


def _read_slowly(data: bytes) -> np.ndarray:
    """What OpenCV does not decode (GIF, CMYK of some kinds, odd TIFF), and a reason for what is broken."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("P", "PA", "LA"):
                image = image.convert("RGBA")
            if image.mode == "RGBA":
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise BrokenPicture("more pixels than a picture can have (decompression bomb)") from error
    except Exception as error:
        begins = data[:200].lstrip().lower()
        if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise BrokenPicture("a web page, not a picture") from error
        if "truncated" in str(error):
            raise BrokenPicture("cut off: the file ends before the picture does") from error
        if isinstance(error, Image.UnidentifiedImageError):
            raise BrokenPicture(f"not a picture (begins with {data[:8]!r})") from error
        raise BrokenPicture(f"cannot be decoded: {str(error)[:100]}") from error
