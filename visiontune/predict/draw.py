"""Pictures with what was found drawn in them, at their own size, for people."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visiontune.boxes import Boxes
from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.detection.place import Source, fit
from visiontune.data.read import read_file
from visiontune.errors import UserError
from visiontune.predict.boxes import BoxPrediction
from visiontune.report.boxes import PALETTE

QUALITY = 92  # of the JPEG files
LARGEST_JPEG = 65_500  # pixels of a side, as libjpeg has it


def drawing_folder(folder: Path) -> Path:
    """Make it, before anything is predicted.

    Raises:
        UserError: if it is not empty, a file, or cannot be made.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--draw: {folder} is not empty; name a folder that is new or empty")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--draw: cannot make the folder {folder} ({error.strerror}); name one that is new or empty") from error
    return folder


def draw_found(predictions: Iterable[BoxPrediction], names: Sequence[str], folder: Path, *, reading: Reading) -> Iterator[BoxPrediction]:
    """The predictions as they are, each written as `NAME.jpg` on the way; of pictures of one name the second is `NAME_2.jpg`. One whose
    side no JPEG holds is a PNG.

    Args:
        predictions: what was found; broken pictures are not drawn.
        names: of the classes.
        folder: of `drawing_folder`.
        reading: how files become pixels.

    Raises:
        UserError: if a picture is no file of its own.
    """
    written: set[str] = set()
    for p in predictions:
        if not p.broken:
            try:
                picture = Picture(read_file(p.path), reading)
                pixels, _ = fit(Source(picture, Boxes.none()), (picture.height, picture.width))
            except BrokenPicture as error:
                raise UserError(f"--draw: {p.path} cannot be read as a file ({error}); leave --draw out for shards") from error
            stem = Path(p.path).stem
            name = next(n for i in itertools.count(1) if (n := stem if i == 1 else f"{stem}_{i}") not in written)
            written.add(name)
            ending = "jpg" if max(pixels.shape[:2]) <= LARGEST_JPEG else "png"
            draw_boxes(pixels, p.boxes, names).save(folder / f"{name}.{ending}", quality=QUALITY)
        yield p


def draw_boxes(pixels: np.ndarray, boxes: Boxes, names: Sequence[str]) -> Image.Image:
    """A picture `(H, W, C)` uint8 with boxes in its pixels, a colour a class, each with its name and score; the most certain on top."""
    rgb = np.repeat(pixels[:, :, :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[:, :, :3]
    image = Image.fromarray(np.ascontiguousarray(rgb))
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    font = ImageFont.load_default(size=max(10, side // 60))
    width = max(1, side // 350)
    scores = [None] * len(boxes) if boxes.scores is None else boxes.scores.tolist()
    for i in reversed(range(len(boxes))):
        x1, y1, x2, y2 = boxes.xyxy[i].tolist()
        label = int(boxes.labels[i])
        colour = PALETTE[label % len(PALETTE)]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
        text = names[label] if scores[i] is None else f"{names[label]} {scores[i]:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        x = min(max(0, x1), max(0, image.width - (right - left) - 4))
        y = y1 - (bottom - top) - 4 if y1 > bottom - top + 4 else y1
        draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
        draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
    return image
