"""Tables of pictures to batches, in this process or in workers.

B pictures, V views, K classes.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from visiontune.data.decode import BrokenPicture, Picture, Reading
from visiontune.data.order import Key, TrainOrder
from visiontune.data.parallel import available_cores
from visiontune.data.read import read_bytes
from visiontune.data.table import PictureTable

# Views of each repeat, label (a number, or a row of K zeros and ones), and path and cause of what was broken on the way.
Item = tuple[list[list[np.ndarray]] | None, int | np.ndarray, list[tuple[str, str]]]
# Replacements that are tried for a broken picture.
TRIES = 20


class Pictures(Dataset):
    """Decoded and augmented pictures by (index, epoch). What comes out depends on the seed and the key alone, not on the worker.

    Args:
        table: what there is.
        transform: picture and random generator -> views.
        seed: of the run.
        replace: in training, take another picture where one is broken, the same one each time; else leave it out.
        reading: how files become pixels.
        repeats: how many times the views are made of one reading of the file.
    """

    def __init__(
        self,
        table: PictureTable,
        transform: Callable[..., list[np.ndarray]],
        *,
        seed: int = 0,
        replace: bool = False,
        reading: Reading = Reading(),  # noqa: B008 (frozen)
        repeats: int = 1,
    ) -> None:
        self.table, self.transform, self.seed, self.replace, self.reading, self.repeats = table, transform, seed, replace, reading, repeats

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> Item:
        index, epoch = key
        broken: list[tuple[str, str]] = []
        for candidate in self._candidates(index):
            try:
                picture = Picture(read_bytes(self.table, candidate), self.reading)
                generators = list(self._generators(index, epoch))
                if self.repeats > 1 and hasattr(self.transform, "several"):
                    views = self.transform.several(picture, generators)
                else:
                    views = [self.transform(picture, rng) for rng in generators]
            except BrokenPicture as error:
                broken.append((self.table.path(candidate), str(error)))
                continue
            return views, self.table.label(candidate), broken
        return None, self.table.label(index), broken

    def _candidates(self, index: int) -> Iterator[int]:
        """The picture itself, then those that replace it: drawn by its number, since neighbours in a folder often broke together."""
        yield index
        if self.replace:
            yield from map(int, np.random.default_rng((self.seed, index)).integers(len(self.table), size=TRIES))

    def _generators(self, index: int, epoch: int) -> Iterator[np.random.Generator]:
        for repeat in range(self.repeats):
            yield np.random.default_rng((self.seed, epoch, index, repeat))


def collate(items: list[Item]) -> dict[str, Any]:
    """Items to `{"images": V tensors (B, C, H, W) uint8, "labels": (B,) int64, "broken": [(path, cause), ...]}`.

    Where a picture may have several labels, `labels` is `(B, K)` float32 of zeros and ones.

    The tensors are channels-last in memory, as decoded pictures are: nothing is copied for it.
    """
    return collate_repeats(items)[0]


def collate_repeats(items: list[Item]) -> list[dict[str, Any]]:
    """One such batch a repeat; what was broken is told with the first."""
    broken = [b for _, _, listed in items for b in listed]
    kept = [(repeats, label) for repeats, label, _ in items if repeats is not None]
    labels = _labels([label for _, label in kept], like=items[0][1])
    if not kept:
        return [{"images": [], "labels": labels, "broken": broken}]
    by_repeat = [list(zip(*repeat, strict=True)) for repeat in zip(*(repeats for repeats, _ in kept), strict=True)]
    images = iter(stacked([view for repeat in by_repeat for view in repeat]))
    return [
        {"images": [next(images) for _ in repeat], "labels": labels, "broken": broken if r == 0 else []}
        for r, repeat in enumerate(by_repeat)
    ]


def _labels(labels: Sequence[int | np.ndarray], *, like: int | np.ndarray) -> torch.Tensor:
    if isinstance(like, np.ndarray):
        return torch.from_numpy(np.array(labels, dtype=np.float32).reshape(len(labels), len(like)))
    return torch.tensor(labels, dtype=torch.int64)


def stacked(views: Sequence[Sequence[np.ndarray]]) -> list[torch.Tensor]:
    """`(B, C, H, W)` of each view's pictures `(H, W, C)`, all in one piece of memory.

    In a worker it is memory that it shares with its parent, which saves copying it there; one piece, since each costs an open file.
    """
    sizes = [len(view) * view[0].size for view in views]
    if torch.utils.data.get_worker_info() is None:
        whole = torch.empty(sum(sizes), dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(sum(sizes))
        whole = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (sum(sizes),))  # type: ignore[call-overload]
    batches = []
    for view, part in zip(views, whole.split(sizes), strict=True):
        batch = part.view(len(view), *view[0].shape)
        np.stack(view, out=batch.numpy())
        batches.append(batch.permute(0, 3, 1, 2))
    return batches


def _start_worker(worker: int) -> None:
    # A scheduler's SIGTERM and a terminal's Ctrl-C go to the whole group: the training ends with a checkpoint first, and needs its
    # loaders for it. In a group of their own they end when their parent says so, or is gone.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    # A full garbage collection would write into every object that the worker shares with its parent, and so copy all of them:
    # 41 MB a worker, measured, before the parent even had a model.
    gc.freeze()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def make_loader(dataset: Any, order: Any, *, workers: int, collate_fn: Callable[..., Any] | None = None) -> Any:
    """Batches of pictures in an order; those of training may come several times, and start where the run is.

    Args:
        dataset: `Pictures`, or what else takes the order's keys.
        order: a batch sampler.
        workers: loader processes.
        collate_fn: items to a batch; None: as `Pictures` gives them.
    """
    if collate_fn is None:
        collate_fn = collate if dataset.repeats == 1 else collate_repeats
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate_fn,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
    return TrainLoader(loader, order, repeats=dataset.repeats) if isinstance(order, TrainOrder) else loader


class TrainLoader:
    """A loader that asks where the run is when its first batch is taken, not when its iterator is made.

    Lightning makes the iterator before it restores a checkpoint, if somebody asked for the number of steps: workers would fetch the
    pictures of step 0. And it unrolls repeats: the versions of one optimiser step's pictures follow as steps. So pictures of one step
    are all different, as a contrastive loss needs; the same ones come in other crops in the next steps.
    """

    def __init__(self, loader: DataLoader, order: TrainOrder, *, repeats: int = 1) -> None:
        self.loader, self.order, self.repeats = loader, order, repeats

    def __len__(self) -> int:
        return len(self.order) * self.repeats

    def close(self) -> None:
        """End the workers: Lightning does so of plain DataLoaders alone."""
        iterator, self.loader._iterator = getattr(self.loader, "_iterator", None), None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.repeats == 1:
            yield from self.loader
            return
        done = self.order.step() % self.repeats  # a resumed run may begin between two repeats
        step: list[list[dict[str, Any]]] = []
        for versions in self.loader:
            step.append(versions)
            if len(step) == self.order.accumulate:
                for r in range(done, self.repeats):
                    yield from (batch[min(r, len(batch) - 1)] for batch in step)
                step, done = [], 0


def auto_workers(processes_here: int) -> tuple[int, str]:
    """Loader processes for each training process, and why."""
    cores = available_cores()
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and cores < (os.cpu_count() or 1):
        processes_here = 1  # the launcher gave each process cores of its own
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        workers = max(1, min(16, cores // processes_here - 1))
        return workers, f"{cores} cores for {processes_here} training process(es), one core each left to the training loop, at most 16"
    # On a CPU the training loop uses all cores itself: one worker hides the waiting for files, more only fight for cores.
    workers = 0 if cores == 1 else 1
    return workers, f"{cores} cores, which training on the CPU uses itself"
