"""Real pictures that a dependency carries: the handwritten digits of scikit-learn, written once as a folder tree.

1,797 scans of 8x8 pixels in 17 grey levels, 10 classes. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998 (the test part), as carried by scikit-learn.
"""

import os
import shutil
import tempfile
from pathlib import Path

from visiontune.errors import UserError, near

SAMPLES = ("digits/train", "digits/test")


def cache_folder() -> Path:
    """Where visiontune keeps what it can make again: `$VISIONTUNE_CACHE`, else the user's cache folder."""
    if own := os.environ.get("VISIONTUNE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "visiontune"


def sample_folder(name: str) -> Path:
    """The folder of `sample:NAME`, made on first use; other processes meanwhile see all of it or nothing.

    Raises:
        UserError: for a name that is none of `SAMPLES`.
    """
    short = name.removeprefix("sample:")
    if short not in SAMPLES:
        raise UserError(f"data: got {name!r}; allowed samples: {', '.join('sample:' + s for s in SAMPLES)}{near(short, SAMPLES)}")
    root = cache_folder() / "samples" / "digits"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=root.parent))
        _write_digits(beside)
        beside.chmod(0o755)
        try:
            beside.rename(root)
        except OSError:  # another process was first
            shutil.rmtree(beside)
    return root / short.partition("/")[2]


def _write_digits(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The last 500 in scikit-learn's order are the test part, as in its own examples, which do not shuffle: writers then differ more.
    for i, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "train" if i < len(digits.images) - 500 else "test"
        target = folder / part / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 255 / 16).round().astype(np.uint8)).save(target / f"{i:04d}.png")
