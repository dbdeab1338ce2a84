"""Tables of pictures to batches, in this process or in workers.

B pictures, V views.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from visiontune.data.decode import BrokenPicture, read_picture
from visiontune.data.folder import PictureTable
from visiontune.data.order import Key

Item = tuple[list[np.ndarray] | None, int, list[tuple[str, str]]]


class Pictures(Dataset):
    """Decoded and augmented pictures by (index, epoch). What comes out depends on the seed and the key alone, not on the worker.

    Args:
        table: what there is.
        transform: decoded picture and random generator -> views.
        seed: of the run.
        replace: in training, take another picture where one is broken, the same one each time; else leave it out.
    """

    def __init__(self, table: PictureTable, transform: Callable[..., list[np.ndarray]], *, seed: int = 0, replace: bool = False) -> None:
        self.table, self.transform, self.seed, self.replace = table, transform, seed, replace

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> Item:
        index, epoch = key
        rng = np.random.default_rng((self.seed, epoch, index))
        broken: list[tuple[str, str]] = []
        n = len(self.table)
        # The neighbours replace a broken picture; twenty in a row means that the folder is the problem, and the run says so.
        for candidate in [(index + k) % n for k in range(min(20, n) if self.replace else 1)]:
            path = self.table.path(candidate)
            try:
                views = self.transform(read_picture(path), rng)
            except BrokenPicture as error:
                broken.append((path, str(error)))
                continue
            label = -1 if self.table.labels is None else int(self.table.labels[candidate])
            return views, label, broken
        return None, -1, broken


def collate(items: list[Item]) -> dict[str, Any]:
    """Items to `{"images": V tensors (B, 3, H, W) uint8, "labels": (B,) int64, "broken": [(path, cause), ...]}`.

    The tensors are channels-last in memory, as decoded pictures are: nothing is copied for it.
    """
    kept = [(views, label) for views, label, _ in items if views is not None]
    broken = [b for _, _, several in items for b in several]
    if not kept:
        return {"images": [], "labels": torch.empty(0, dtype=torch.int64), "broken": broken}
    images = [torch.from_numpy(np.stack(view)).permute(0, 3, 1, 2) for view in zip(*(views for views, _ in kept), strict=True)]
    return {"images": images, "labels": torch.tensor([label for _, label in kept]), "broken": broken}


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def make_loader(dataset: Pictures, order: Any, *, workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )


def auto_workers(processes_here: int) -> tuple[int, str]:
    """Loader processes for each training process, and why."""
    cores = available_cores()
    if torch.cuda.is_available():
        workers = max(1, min(16, cores // processes_here - 1))
        return workers, f"{cores} cores for {processes_here} training process(es), one core each left to the training loop"
    # On a CPU the training loop uses all cores itself: one worker hides the waiting for files, more only fight for cores.
    workers = 0 if cores == 1 else 1
    return workers, f"{cores} cores, which training on the CPU uses itself"


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores
