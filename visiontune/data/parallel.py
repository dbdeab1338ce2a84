"""Work spread over the cores that this process may use."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Helpers that need no `if __name__ == "__main__"` in the user's script where the system can fork safely."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_for_helpers, initargs=(os.getpid(),))


def _for_helpers(parent: int) -> None:
    """Ctrl-C is for the process that started them; threads beside as many processes as cores only make them fight."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(0)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def die_with(parent: int) -> None:
    """End when the process that started this one ends: otherwise a helper would wait for work for ever, and hold the locks it inherited."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that
        os._exit(1)


def over(function: Callable[[In], Out], items: Iterable[In], processes: int) -> Iterator[Out]:
    """`function` of each item, in order, by helpers; memory holds a few items at a time."""
    if processes <= 1:
        yield from map(function, items)
        return
    with process_pool(processes) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quotas of its control groups (containers, SLURM, systemd)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(q) or 1 for q in _quotas())]))


def _quotas(proc: Path = Path("/proc/self/cgroup"), base: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Cores allowed by each control group around this process, version 2 and version 1."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = base / controllers if controllers else base
        # A container often sees its own group as the top and is told another name: both are looked at.
        places = {top, *(top / p for p in [Path(group.lstrip("/")), *Path(group.lstrip("/")).parents])}
        for place in places:
            try:
                if controllers:
                    quota, period = ((place / f"cpu.cfs_{n}_us").read_text().strip() for n in ("quota", "period"))
                else:
                    quota, period = (place / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
