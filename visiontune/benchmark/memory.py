"""The most memory that a part of the work held, and how much there is left to take."""

import gc
import resource
import sys
from pathlib import Path

import torch

MIB = 2**20


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    return _status("VmRSS")


def forget_peak(device: torch.device) -> None:
    """From here on `peak` counts anew. Of the CPU that takes Linux; elsewhere it stays the peak of the process's whole life."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to what is held now
        except OSError:
            return


def peak(device: torch.device) -> int:
    """Bytes: of CUDA by torch's allocator, of Apple's GPU what its driver gave, of the CPU the whole process with torch in it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Room:
    """Whether a batch twice as large may be tried on the CPU: beyond its memory the system would end the process, not raise an error.

    On other devices every batch may: they raise.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.base = device, resident()

    def for_twice(self) -> bool:
        if self.device.type != "cpu" or not (free := available()):
            return True
        held = peak(self.device)
        return 2 * max(0, held - self.base) - max(0, resident() - self.base) < 0.8 * free


def available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take, by the system and by its container's limit; 0 where neither tells."""
    found: list[int] = []
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            found.append(max(1, int((cgroup / limit).read_text()) - int((cgroup / used).read_text())))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return min(found, default=0)


def _status(key: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
