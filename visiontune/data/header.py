"""A picture's size and way of storing, from its first bytes: what has to be known before the crop is drawn and anything is decoded."""

import ast
import io
import struct
import warnings
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, UnidentifiedImageError

# 300 million pixels: beyond any camera, below what takes a loader worker down.
MAX_PIXELS = 300_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
ORIENTATION = 0x0112
# Start of frame: all but DHT (C4), JPG (C8) and DAC (CC), which share the range.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BARE = frozenset([0x01, *range(0xD0, 0xD8)])


class BrokenPicture(Exception):
    """A picture that cannot be read; the text is the cause, for people."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        width: pixels as stored, before `orientation` turns them.
        height: likewise.
        orientation: EXIF's 1 to 8; of TIFF always 1, its decoders turn the picture.
        decoder: `jpeg` (also at 1/2, 1/4 and 1/8), `opencv`, `pillow`, `tiff` (what Pillow does not know of TIFF) or `npy`.
        height_at: of a JPEG whose rows come one after another, where its height is written; else 0.
    """

    width: int
    height: int
    orientation: int
    decoder: Literal["jpeg", "opencv", "pillow", "tiff", "npy"]
    height_at: int = 0

    @property
    def turned(self) -> bool:
        """Whether width and height change places."""
        return self.orientation >= 5

    @property
    def upright(self) -> tuple[int, int]:
        """`(height, width)` as a person sees it."""
        return (self.width, self.height) if self.turned else (self.height, self.width)


def read_header(data: bytes, channels: int = 3) -> Header:
    """The header of a picture in any format that is read, recognised by its content, not by its name.

    Args:
        data: the file, whole.
        channels: that are wanted; with 1 or 3 a picture of another number is converted, with others it must have them.

    Raises:
        BrokenPicture: with the cause.
    """
    if not data:
        raise BrokenPicture("empty file")
    header = _header(data, channels)
    if header.width * header.height > MAX_PIXELS:
        raise BrokenPicture(f"{header.width}x{header.height} pixels, more than {MAX_PIXELS // 10**6} million: a decompression bomb?")
    if not header.width * header.height:
        raise BrokenPicture("no pixels")
    return header


def _header(data: bytes, channels: int) -> Header:
    if data[:2] == b"\xff\xd8" and (found := _jpeg(data)) is not None:
        return found
    if data[:6] == b"\x93NUMPY":
        return _npy(data)
    tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if tiff and channels not in (1, 3):
        return _tiff(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                # of a PNG without EXIF before its pixels Pillow would decode all of it to look behind them
                has_exif = image.format not in ("GIF", "BMP", "PNG") or "exif" in image.info
                orientation = image.getexif().get(ORIENTATION, 1) if has_exif else 1
                plain = image.mode in ("RGB", "L", "1") or image.mode.startswith("I;16")
                opencv = plain and image.format in ("PNG", "WEBP", "BMP", "TIFF") and "transparency" not in image.info
                deep = tiff and image.mode in ("F", "I", "I;16", "I;16B")
    except UnidentifiedImageError as error:
        if tiff:
            return _tiff(data)
        raise BrokenPicture(_what_instead(data)) from error
    except Image.DecompressionBombError as error:
        raise BrokenPicture(f"more than {2 * MAX_PIXELS // 10**6} million pixels: a decompression bomb") from error
    except Exception as error:
        raise BrokenPicture(f"its header cannot be read: {str(error)[:100] or type(error).__name__}") from error
    if tiff:
        return _tiff(data) if deep else Header(width, height, 1, "opencv" if opencv else "pillow")
    return Header(width, height, _sane(orientation), "opencv" if opencv else "pillow")


def _sane(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _what_instead(data: bytes) -> str:
    begins = data[:200].lstrip().lower()
    if begins.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page, not a picture"
    if begins.startswith((b"pk\x03\x04", b"\x1f\x8b", b"rar!")):
        return "an archive, not a picture"
    if begins.startswith(b"%pdf"):
        return "a PDF, not a picture"
    kinds = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}
    if kind := next((k for magic, k in kinds.items() if data.startswith(magic)), None):
        return f"cut off or damaged: begins as a {kind}, but its header cannot be read"
    if not data.strip(b"\0"):
        return "nothing but zeros: a file that was never written out"
    return f"not a picture (begins with {data[:8]!r})"


# ---------------------------------------------------------------- JPEG


def _jpeg(data: bytes) -> Header | None:
    """Walks the markers up to the pixels; None for what it does not understand, which Pillow may."""
    at, end, orientation = 2, len(data), 1
    found: Header | None = None
    while at + 4 <= end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in BARE:
            at += 2
            continue
        if marker == 0xD9:  # the picture ends without a frame
            return None
        if marker == 0xDA:
            # All colours in one scan, and the file goes to its end: then its rows come from top to bottom.
            whole = found is not None and at + 4 < end and data[at + 4] == data[found.height_at + 4]
            if found is not None and not (whole and data.rfind(b"\xff\xd9", end - 32) > 0):
                return replace(found, height_at=0)
            return found
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in FRAMES:
            if at + 10 > end:
                raise BrokenPicture("cut off: the file ends within its header")
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or not height or components not in (1, 3):
                return None  # 12 bits, or CMYK: not for OpenCV
            found = Header(width, height, orientation, "jpeg", height_at=at + 5)
            if marker not in (0xC0, 0xC1):  # progressive
                return replace(found, height_at=0)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    raise BrokenPicture("cut off: the file ends within its header")


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for i in range(entries):
            tag, kind = struct.unpack_from(order + "HH", tiff, first + 2 + 12 * i)
            if tag == ORIENTATION and kind == 3:
                return _sane(struct.unpack_from(order + "H", tiff, first + 10 + 12 * i)[0])
    except struct.error:
        pass
    return 1


# ---------------------------------------------------------------- arrays and what Pillow does not know


def npy_layout(data: bytes) -> tuple[tuple[int, ...], str, int]:
    """Shape, type and first byte of the numbers in a `.npy` file."""
    try:
        size = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)[0]
        start = (10 if data[6] == 1 else 12) + size
        said = ast.literal_eval(data[start - size : start].decode("latin1"))
        shape, kind, reversed_order = tuple(said["shape"]), said["descr"], said["fortran_order"]
    except (struct.error, ValueError, SyntaxError, KeyError, TypeError, IndexError) as error:
        raise BrokenPicture("cut off: the file ends within its header") from error
    if not isinstance(kind, str) or "O" in kind or reversed_order or len(shape) not in (2, 3):
        raise BrokenPicture(f"an array of shape {shape} and type {kind}: a picture is (H, W), (H, W, C) or (C, H, W), in C order")
    return shape, kind, start


def npy_is_planar(shape: tuple[int, ...]) -> bool:
    """Whether it is `(C, H, W)`: the channels are taken to be the shorter end."""
    return len(shape) == 3 and shape[0] < shape[2]


def _npy(data: bytes) -> Header:
    shape, _, _ = npy_layout(data)
    height, width = shape[1:] if npy_is_planar(shape) else shape[:2]
    return Header(width, height, 1, "npy")


def _tiff(data: bytes) -> Header:
    """Upright size from the first image directory, of classic TIFF and BigTIFF: Pillow and OpenCV turn these themselves, and so do we."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
        found = {}
        for i in range(min(entries, 200)):
            at = first + (8 + 20 * i if big else 2 + 12 * i)
            tag, kind = struct.unpack_from(order + "HH", data, at)
            if tag in (256, 257, 274):
                found[tag] = struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "H"), data, at + (12 if big else 8))[0]
        width, height = (found[257], found[256]) if _sane(found.get(274)) >= 5 else (found[256], found[257])
        return Header(width, height, 1, "tiff")
    except (struct.error, KeyError) as error:
        raise BrokenPicture("cut off: the file ends within its header") from error
