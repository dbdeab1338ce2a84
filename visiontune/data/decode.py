"""Bytes to pixels, no more of them than a crop needs. A picture that cannot be read whole is broken, also one that a decoder would
show half of.

A JPEG is decoded at 1/2, 1/4 or 1/8 where every crop of it is that much larger than what it becomes: the decoder then leaves out
frequencies that the resize would throw away, most of the work of a large photo.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile

from visiontune.data.header import ORIENTATION, BrokenPicture, Header, npy_is_planar, npy_layout, read_header
from visiontune.data.jpeg import decode_jpeg
from visiontune.data.read import read_file
from visiontune.data.resize import cut, cut_by_area

__all__ = ["BrokenPicture", "Picture", "Reading", "decode_whole", "read_picture"]

# A decoder's thread pool beside loader workers only makes them fight for cores.
cv2.setNumThreads(0)
# What is broken is told once, in words, in broken.csv.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the upright picture


@dataclass(frozen=True)
class Reading:
    """How files become uint8 pixels.

    Attributes:
        channels: 3 (RGB) and 1 (grey) take any picture; others take TIFF and `.npy` files with that many.
        background: grey or RGB that transparent pixels are laid on.
        value_range: what becomes 0 and 255 in pictures of more than 8 bits; None takes the whole range of 16 bits, and 0 to 1 of floats.
    """

    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    value_range: tuple[float, float] | None = None

    def unusual(self) -> dict[str, Any]:
        """What is not the default, as JSON takes it; the channels are told by the weights."""
        return {k: list(getattr(self, k)) for k in ("background", "value_range") if getattr(self, k) != getattr(Reading, k)}


class Picture:
    """A picture whose header was read and whose pixels wait until it is known which of them are needed.

    Args:
        source: a file's content, or pixels `(H, W, C)` uint8.
        reading: how it becomes pixels.

    Attributes:
        height, width: in pixels, upright.

    Raises:
        BrokenPicture: if the header says that it cannot be read; `cut` and `whole` may find out later.
    """

    def __init__(self, source: bytes | np.ndarray, reading: Reading = Reading()) -> None:
        self.source, self.reading = source, reading
        if isinstance(source, np.ndarray):
            self.header = Header(source.shape[1], source.shape[0], 1, "npy")
        else:
            self.header = read_header(source, reading.channels)
        self.height, self.width = self.header.upright

    def cut(self, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], *, exact: bool = False) -> list[np.ndarray]:
        """Crops, each resized: `(h, w, C)` uint8. The picture is decoded once for all of them.

        Args:
            boxes: top, left, height and width of each, in pixels of the upright picture.
            sizes: `(height, width)` that each becomes.
            exact: average all pixels on the way down, for pictures that are judged by; else bilinear from less than twice the size.
        """
        reduce = self.reduction(boxes, sizes, spare=4 if exact else 1)
        places = [stored_box(box, self.header) for box in boxes]
        pixels = self._decode(reduce, rows=max(top + h for top, _, h, _ in places))
        crops = []
        for stored, (height, width) in zip(places, sizes, strict=True):
            size = (width, height) if self.header.turned else (height, width)
            place = tuple(x / reduce for x in stored)
            crops.append(upright((cut_by_area if exact else cut)(pixels, place, size), self.header.orientation))
        return crops

    def whole(self) -> np.ndarray:
        """All of it: `(H, W, C)` uint8."""
        return upright(self._decode(1), self.header.orientation)

    def reduction(self, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], *, spare: int = 1) -> int:
        """The largest of 8, 4, 2 and 1 at which every crop is still `spare` times what it becomes."""
        if self.header.decoder != "jpeg":
            return 1
        for k in (8, 4, 2):
            if all(h >= spare * k * height and w >= spare * k * width for (_, _, h, w), (height, width) in zip(boxes, sizes, strict=True)):
                return k
        return 1

    def _decode(self, reduce: int, rows: int | None = None) -> np.ndarray:
        """Stored, not upright; of a JPEG no more than so many rows from the top."""
        if isinstance(self.source, np.ndarray):
            return self.source
        kind = self.header.decoder
        if kind in ("jpeg", "opencv"):
            if kind == "jpeg":
                pixels = decode_jpeg(self.source, self.header, channels=self.reading.channels, reduce=reduce, rows=rows)
            elif self.reading.value_range is not None and (deep := _deep(self.source)) is not None:
                pixels = _numbers(deep, self.reading)
            else:
                pixels = _opencv(self.source, self.reading.channels)
            if pixels is None:
                pixels = _pillow(self.source, self.reading)  # it finds a reason, or reads what the others do not
                if reduce > 1:
                    pixels = cv2.resize(
                        pixels, (-(-pixels.shape[1] // reduce), -(-pixels.shape[0] // reduce)), interpolation=cv2.INTER_AREA
                    )
        elif kind == "pillow":
            pixels = _pillow(self.source, self.reading)
        else:
            stored, transparent = (_npy(self.source), False) if kind == "npy" else _tiff(self.source)
            pixels = _numbers(stored, self.reading, transparent)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if pixels.shape[2] != self.reading.channels and kind not in ("npy", "tiff"):
            raise BrokenPicture(f"{self.reading.channels} channels (data.channels) come from TIFF and .npy files only")
        if pixels.shape[2] != self.reading.channels:
            raise BrokenPicture(f"has {pixels.shape[2]} channels where data.channels says {self.reading.channels}")
        if kind != "jpeg" and pixels.shape[:2] != (self.header.height, self.header.width):
            height, width = pixels.shape[:2]
            raise BrokenPicture(f"damaged: its header says {self.header.width}x{self.header.height} pixels, it holds {width}x{height}")
        return pixels


def decode_whole(data: bytes, reading: Reading = Reading()) -> np.ndarray:
    """`(H, W, C)` uint8, upright, all pixels.

    Raises:
        BrokenPicture: with the cause.
    """
    return Picture(data, reading).whole()


def read_picture(path: str, reading: Reading = Reading()) -> np.ndarray:
    """`decode_whole` of a file."""
    return decode_whole(read_file(path), reading)


# ---------------------------------------------------------------- boxes of turned pictures


def stored_box(box: Box, header: Header) -> Box:
    """A box of the upright picture in the pixels as they are stored (EXIF 2.32, table 6: orientation 1 to 8)."""
    top, left, h, w = box
    if header.turned:
        top, left, h, w = left, top, w, h
    if header.orientation in (2, 3, 7, 8):
        left = header.width - left - w
    if header.orientation in (3, 4, 6, 7):
        top = header.height - top - h
    return top, left, h, w


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels turned as EXIF says."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.transpose(1, 0, 2) if orientation >= 5 else pixels


# ---------------------------------------------------------------- decoders


def _opencv(data: bytes, channels: int) -> np.ndarray | None:
    """None for what it cannot decode whole."""
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE)
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None


def _deep(data: bytes) -> np.ndarray | None:
    """Pixels of more than 8 bits as they are stored, `(H, W)` or RGB; None for others."""
    try:
        found = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if found is None or found.dtype == np.uint8:
        return None
    return found[..., 2::-1] if found.ndim == 3 else found


def _pillow(data: bytes, reading: Reading) -> np.ndarray:
    """What OpenCV does not decode (GIF, CMYK, transparency), and a reason for what is broken."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow was told to show half pictures (ImageFile.LOAD_TRUNCATED_IMAGES)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                image: Image.Image = opened
                if image.mode.startswith("I;16"):
                    deep = _numbers(np.asarray(image), reading)
                    return deep if reading.channels == 1 else np.repeat(deep[..., None], 3, axis=2)
                if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
                    image = image.convert("RGBA")
                if image.mode == "RGBA":
                    ground = Image.new("RGB", image.size, reading.background)
                    ground.paste(image, mask=image.getchannel("A"))
                    image = ground
                return np.asarray(image.convert("L" if reading.channels == 1 else "RGB"))
    except BrokenPicture:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        if "truncated" in text or "Truncated" in text or "unrecognized data stream" in text or isinstance(error, EOFError):
            raise BrokenPicture("cut off: the file ends before the picture does") from error
        raise BrokenPicture(f"damaged: {text[:100]}") from error


def _npy(data: bytes) -> np.ndarray:
    shape, kind, start = npy_layout(data)
    try:
        pixels = np.frombuffer(data, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)
    except (ValueError, TypeError) as error:
        raise BrokenPicture("cut off: the file ends before the picture does") from error
    return pixels.transpose(1, 2, 0) if npy_is_planar(shape) else pixels


def _tiff(data: bytes) -> tuple[np.ndarray, bool]:
    """Pixels, and whether the fourth channel is transparency.

    Any number of channels and bits: by tifffile where it is installed, by OpenCV up to four channels.
    """
    reasons = []
    has_tifffile = importlib.util.find_spec("tifffile") is not None
    if has_tifffile:
        import tifffile

        try:
            page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
            pixels = page.asarray()
            if pixels.ndim == 3 and "S" in page.axes and page.axes.index("S") == 0:
                pixels = pixels.transpose(1, 2, 0)
            if int(page.photometric) == 0 and pixels.dtype.kind == "u":  # the smallest number is white
                pixels = np.iinfo(pixels.dtype).max - pixels
            tag = page.tags.get(ORIENTATION)
            pixels = upright(pixels if pixels.ndim == 3 else pixels[..., None], int(tag.value) if tag else 1)
            return pixels, any(int(kind) in (1, 2) for kind in page.extrasamples)
        except Exception as error:  # of many kinds, in damaged files
            reasons.append(str(error)[:100])
    try:
        found = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        found = None
        reasons.append(str(error)[:100])
    if found is None:
        hint = "" if has_tifffile else "; pip install 'visiontune[tiff]' reads more kinds"
        raise BrokenPicture(f"a TIFF that is damaged or of an unknown kind{': ' + reasons[0] if reasons else ''}{hint}")
    if found.ndim == 3 and found.shape[2] >= 3:  # OpenCV turns RGB round, of four channels the first three
        found = found[..., [2, 1, 0, *range(3, found.shape[2])]]
    return found, True


def _numbers(pixels: np.ndarray, reading: Reading, transparent: bool = False) -> np.ndarray:
    """Numbers of any type to uint8, and one channel to three or three to one where those are wanted."""
    span = reading.value_range
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if span is None and pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # scaled, not clipped
    elif span is None and pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        if span is None and pixels.dtype.kind != "f":
            raise BrokenPicture(f"numbers of type {pixels.dtype}: say what is black and white with data.value_range=[low,high]")
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).any():
            raise BrokenPicture("holds no number that is finite")
        low, high = span or (0.0, 1.0)
        scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
        pixels = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round().astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2 and reading.channels == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and reading.channels == 1:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if transparent and pixels.ndim == 3 and pixels.shape[2] == 4 and reading.channels == 3:
        share = pixels[..., 3:].astype(np.float32) / 255
        pixels = (pixels[..., :3] * share + np.array(reading.background) * (1 - share)).round().astype(np.uint8)
    return pixels
