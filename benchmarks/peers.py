"""Input pipelines of other packages, and photos to feed them: timm, torchvision and LightlyTrain on the same folder of pictures.

The other packages are imported where they are used; one that is missing is named in one sentence, as an `ImportError`.
"""

import atexit
import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Files that an open dataset of LightlyTrain reads from; its training removes them at its end, this module at the end of the process.
_kept = contextlib.ExitStack()
atexit.register(_kept.close)


@contextlib.contextmanager
def _peer(requirement: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f'This comparison needs {requirement}: pip install "{requirement}" ({error}).') from error


# ---------------------------------------------------------------------------------------------------------------- photos


def make_photos(folder: str | Path, width: int, height: int, target_bytes: int | None, count: int, seed: int) -> float:
    """Write `count` JPEG photos as `class0/00000.jpg`, `class1/00001.jpg`, ...; their mean size in bytes.

    A photo is a random crop of one of scikit-learn's two sample photos, enlarged or reduced to `width` x `height`, with noise of
    equal strength in every octave: the detail that enlarging leaves out. Quality and strength of the noise are chosen on the first
    two photos so that their mean size is near `target_bytes`; without a target the quality is 85 and the noise weak.
    """
    with _peer("scikit-learn"):
        from sklearn.datasets import load_sample_images
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    noise = _octave_noise(width, height, np.random.default_rng(seed))

    def photo(index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, index])
        original = originals[index % len(originals)]
        # the largest box of this aspect ratio, then between 60 and 100 % of it
        side = min(original.width / width, original.height / height) * rng.uniform(0.6, 1)
        left, top = rng.uniform(0, original.width - side * width), rng.uniform(0, original.height - side * height)
        box = (left, top, left + side * width, top + side * height)
        pixels = np.asarray(original.resize((width, height), Image.Resampling.BICUBIC, box=box), np.float32)
        # every photo has its own noise: one field, moved and mirrored, is much faster than a new field
        own = np.roll(noise, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))
        return pixels, own[:, :: int(rng.choice([-1, 1]))]

    def encode(pixels: np.ndarray, own: np.ndarray, strength: float, quality: int) -> bytes:
        file = io.BytesIO()
        noisy = (pixels + strength * own[..., None]).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return file.getvalue()

    strength, quality = 3.0, 85
    if target_bytes is not None:
        samples = [photo(index) for index in range(min(2, count))]
        strength, quality = _near(target_bytes, lambda s, q: float(np.mean([len(encode(*sample, s, q)) for sample in samples])))
    sizes = []
    for index in range(count):
        content = encode(*photo(index), strength, quality)
        path = Path(folder) / f"class{index % 2}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sizes.append(len(content))
    return float(np.mean(sizes))


def _octave_noise(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 whose octaves, from single pixels to eight pixels, are equally strong."""
    total = np.zeros((height, width), np.float32)
    for step in (1, 2, 4, 8):
        coarse = rng.standard_normal((-(-height // step), -(-width // step)), np.float32)
        octave = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        total += octave / octave.std()
    return total / total.std()


def _near(target: int, size: Callable[[float, int], float]) -> tuple[float, int]:
    """Noise and quality for files of `target` bytes: usual qualities and weak noise first."""
    weakest, strongest = 1.0, 10.0
    quality = 85
    while quality > 75 and size(weakest, quality) > target:
        quality -= 5
    while quality < 95 and size(strongest, quality) < target:
        quality += 5
    if quality == 95:
        strongest = 40.0  # no photo looks like this any more, but the decoder's work is right
    low, high = (0.0 if quality == 75 else weakest), strongest
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if size(middle, quality) > target else (middle, high)
    return (low + high) / 2, quality


# --------------------------------------------------------------------------------------------------------------- loaders


def views(batch: Any) -> list[Any]:
    """The picture tensors in a batch of any loader here: one of them, or two views."""
    pictures = batch["views"] if isinstance(batch, dict) else batch[0]
    return list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]


def timm_loader(folder: str | Path, *, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """One view by `timm.data.create_loader`: crop and flip only, timm's default scale and ratio; `(pictures, labels)`.

    Its workers send bytes; its `PrefetchLoader` makes normalised floats of them in the main process, here on the CPU.
    """
    with _peer("timm"):
        import torch
        from timm.data import ImageDataset, create_loader
    return create_loader(
        ImageDataset(str(folder)),
        input_size=(3, image_size, image_size),
        batch_size=batch_size,
        is_training=True,
        hflip=0.5,
        color_jitter=0.0,
        auto_augment=None,
        re_prob=0.0,
        interpolation="bilinear",
        num_workers=workers,
        use_prefetcher=True,
        device=torch.device("cpu"),
    )


def torchvision_loader(folder: str | Path, *, image_size: int, batch_size: int, workers: int, backend: str = "pil") -> Iterable[Any]:
    """One view by `ImageFolder` and transforms v2, crop and flip only; `(pictures, labels)`.

    With `backend="tensor"` the decoded picture becomes a tensor of bytes before it is cropped, otherwise after the last random change.
    """
    with _peer("torchvision"):
        from torchvision.transforms import v2
    crop = v2.RandomResizedCrop(image_size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
    steps = _torchvision_steps([crop, v2.RandomHorizontalFlip(0.5)], backend, IMAGENET_MEAN, IMAGENET_STD)
    return _torchvision_folder(folder, steps, batch_size, workers)


def torchvision_simclr_loader(
    folder: str | Path, numbers: dict[str, Any], *, image_size: int, batch_size: int, workers: int, backend: str = "pil"
) -> Iterable[Any]:
    """Two views by `ImageFolder` and transforms v2 with the numbers of `lightly_train_views`; `([first, second], labels)`.

    torchvision's blur has one size of kernel: here that of the widest blur. For `backend` see `torchvision_loader`.
    """
    with _peer("torchvision"):
        from torchvision.transforms import v2
    if numbers["rotation"] or numbers["solarize"] or numbers["channel_drop"]:
        raise ValueError("Rotation, solarisation and dropped channels are not compared here.")
    jitter = v2.ColorJitter(numbers["brightness"], numbers["contrast"], numbers["saturation"], numbers["hue"])
    blur = v2.GaussianBlur(numbers["blur_widest_kernel"], sigma=numbers["blur_sigma"])
    changes = [
        v2.RandomResizedCrop(
            image_size,
            scale=numbers["crop_scale"],
            ratio=numbers["crop_ratio"],
            interpolation=v2.InterpolationMode.BILINEAR,
            antialias=True,
        ),
        v2.RandomHorizontalFlip(numbers["flip"]),
        v2.RandomVerticalFlip(numbers["vertical_flip"]),
        v2.RandomApply([jitter], p=numbers["jitter"]),
        v2.RandomGrayscale(numbers["grey"]),
        v2.RandomApply([blur], p=numbers["blur"]),
    ]
    steps = _torchvision_steps(changes, backend, numbers["mean"], numbers["std"])
    return _torchvision_folder(folder, _TwoViews(steps), batch_size, workers)


class _TwoViews:
    """The same random transform twice; a class, because processes that are started afresh cannot be sent a closure."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, picture: Any) -> list[Any]:
        return [self.transform(picture), self.transform(picture)]


def _torchvision_steps(changes: list[Any], backend: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    import torch
    from torchvision.transforms import v2

    if backend not in ("pil", "tensor"):
        raise ValueError(f"backend is 'pil' or 'tensor', not {backend!r}.")
    changes = [*changes, v2.ToImage()] if backend == "pil" else [v2.ToImage(), *changes]
    return v2.Compose([*changes, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def _torchvision_folder(folder: str | Path, transform: Callable[[Any], Any], batch_size: int, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    return DataLoader(ImageFolder(str(folder), transform), batch_size, shuffle=True, num_workers=workers, drop_last=True)


# --------------------------------------------------------------------------------------------------------- LightlyTrain


def lightly_train_views() -> dict[str, Any]:
    """Numbers of LightlyTrain's default SimCLR augmentation, read from the arguments that its training builds.

    In 0.18 both views share them: crop scale 0.08 to 1, ratio 3/4 to 4/3, flip 0.5; colour jitter 0.8 with brightness, contrast and
    saturation 0.8 and hue 0.2 (strength 1 already multiplied in); grey 0.2; blur 0.5 with sigma 0.1 to 2; no vertical flip,
    rotation, solarisation or dropped channel. A switched-off part is None or 0. The size of a crop is changed by OpenCV's
    INTER_AREA, which no argument sets. `blur_kernel` 0 means 2 * int(3.5 * sigma) + 1 pixels.
    """
    args = _lightly_train_transform(224)[0]
    crop, flip, jitter, blur = args.random_resize, args.random_flip, args.color_jitter, args.gaussian_blur
    return {
        "crop_scale": crop.scale_as_tuple(),
        "crop_ratio": crop.ratio_as_tuple(),
        "flip": flip.horizontal_prob,
        "vertical_flip": flip.vertical_prob,
        "jitter": jitter.prob,
        "brightness": jitter.strength * jitter.brightness,
        "contrast": jitter.strength * jitter.contrast,
        "saturation": jitter.strength * jitter.saturation,
        "hue": jitter.strength * jitter.hue,
        "grey": args.random_gray_scale,
        "blur": blur.prob,
        "blur_sigma": tuple(blur.sigmas),
        "blur_kernel": blur.blur_limit,
        "blur_widest_kernel": blur.blur_limit or 2 * int(3.5 * max(blur.sigmas)) + 1,
        "solarize": args.solarize and args.solarize.prob,
        "rotation": args.random_rotation and args.random_rotation.prob,
        "channel_drop": args.channel_drop and args.channel_drop.num_channels_keep,
        "mean": tuple(args.normalize.mean),
        "std": tuple(args.normalize.std),
    }


def lightly_train_loader(folder: str | Path, *, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """LightlyTrain's two-view SimCLR training loader; batches are `{"filename": ..., "views": [first, second]}`.

    The calls of its `pretrain`, in its order: `train_helpers.get_transform_args` and `get_transform` for the method "simclr",
    `common_helpers.get_dataset_temp_mmap_path` and `get_dataset` (its `ImageDataset` over a memory-mapped list of names),
    `common_helpers.get_global_batch_size` and `train_helpers.get_dataloader`. All but the picture's size is its default; the strengths
    of the augmentation are in `lightly_train_views`. The list of names is removed when the process ends.
    """
    common, train = _lightly_train()
    dataset = lightly_train_open(folder, image_size=image_size)
    batch_size = common.get_global_batch_size(global_batch_size=batch_size, dataset=dataset, total_num_devices=1, loader_args=None)
    return train.get_dataloader(dataset=dataset, batch_size=batch_size, num_workers=workers, loader_args=None)


def lightly_train_open(folder: str | Path, *, image_size: int = 224) -> Any:
    """LightlyTrain's training dataset; the list of names that it reads from is removed when the process ends."""
    return _kept.enter_context(_lightly_train_dataset(folder, image_size))


def lightly_train_index(folder: str | Path) -> int:
    """List a folder as LightlyTrain does at every start of a training, write its list of names, open it; the number of files.

    Its list is removed again, as at the end of its training. The first call in a process imports the package: call
    `lightly_train_views` before measuring.
    """
    with _lightly_train_dataset(folder, 224) as dataset:
        return len(dataset)


def _lightly_train() -> tuple[Any, Any]:
    """LightlyTrain's modules with the functions that its training calls, without its reports and outside the user's own cache."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    if "LIGHTLY_TRAIN_CACHE_DIR" not in os.environ:
        os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = _kept.enter_context(tempfile.TemporaryDirectory())
    with _peer("lightly-train==0.18.*"):
        from lightly_train._commands import common_helpers, train_helpers
    return common_helpers, train_helpers


def _lightly_train_transform(image_size: int) -> tuple[Any, Any]:
    train = _lightly_train()[1]
    args = train.get_transform_args(method="simclr", transform_args={"image_size": (image_size, image_size)})
    return args, train.get_transform(method="simclr", transform_args_resolved=args)


@contextlib.contextmanager
def _lightly_train_dataset(folder: str | Path, image_size: int) -> Iterator[Any]:
    common = _lightly_train()[0]
    args, transform = _lightly_train_transform(image_size)
    # its list of names is called after the run's folder, which no two runs may share
    with tempfile.TemporaryDirectory() as out:
        again = {"resume_interrupted": False, "overwrite": False}
        with common.get_dataset_temp_mmap_path(data=str(folder), out=out, **again) as names:
            yield common.get_dataset(
                data=str(folder), transform=transform, num_channels=args.num_channels, mmap_filepath=names, out_dir=Path(out), **again
            )
