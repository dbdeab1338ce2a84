"""The machine that numbers were measured on, and whether it was quiet and at full speed meanwhile."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from visiontune.run import processor

# Shares beyond which numbers come with a warning: of the cores that others took, and between quartiles of the windows.
BUSY = 0.1
WIDE = 0.1
PAUSE = 0.5  # seconds of looking before and after
# Fields of /proc/stat's lines that are time in which a core works: user, nice, system, irq, softirq, steal (proc(5)).
WORKING = (0, 1, 2, 5, 6, 7)


def identity(device: torch.device) -> dict[str, Any]:
    """What makes two speeds incomparable: numbers from another one are measured again."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "processor": processor(), "threads": torch.get_num_threads(), "device": str(device), "gpu": name,
        "torch": torch.__version__, "timm": timm.__version__,
    }  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """Of the cores that this process may use, at one time.

    Attributes:
        at: seconds.
        working: core-seconds that they have worked, for whomever; None where the system does not tell.
        own: core-seconds of this process.
        cores: how many there are.
        throttled: times that the processor slowed itself down, for heat.
        held_back: seconds that the container's quota did not let it work.
    """

    at: float
    working: float | None
    own: float
    cores: int
    throttled: int
    held_back: float


def read(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Reading:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    working = None
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        lines = (line.split() for line in (proc / "stat").read_text().splitlines())
        fields = {line[0]: [int(v) for v in line[1:]] for line in lines if line and line[0].startswith("cpu")}
        working = sum(fields[f"cpu{i}"][k] for i in cores for k in WORKING) / ticks
    except (OSError, KeyError, ValueError, IndexError):
        pass
    throttled = sum(_number(file) for file in sys.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
    held_back = 0.0
    try:
        counts = dict(line.split() for line in (sys / "fs/cgroup/cpu.stat").read_text().splitlines())
        held_back = int(counts.get("throttled_usec", 0)) / 1e6
    except (OSError, ValueError):
        pass
    return Reading(time.monotonic(), working, time.process_time(), len(cores), throttled, held_back)


def others(before: Reading, after: Reading) -> float | None:
    """The share of the cores that other processes took between two readings, in [0, 1]; None where that is not known."""
    if before.working is None or after.working is None or after.at <= before.at:
        return None
    taken = (after.working - before.working) - (after.own - before.own)
    return min(1.0, max(0.0, taken / ((after.at - before.at) * after.cores)))


@dataclass
class Watch:
    """Looks at the machine before, during and after what stands in its `with`.

    Args:
        device: also looked at, if it is CUDA and `nvidia-smi` is there.
        pause: seconds to look before and after.

    Attributes:
        shares: of the cores that other processes took: `before`, `during`, `after`.
        load: mean number of running processes of the last minute (`os.getloadavg`), before and after.
    """

    device: torch.device
    pause: float = PAUSE
    shares: dict[str, float | None] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    _words: list[str] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self.load.append(round(os.getloadavg()[0], 2))
        self._gpu_before = _gpu(self.device, "utilization.gpu")
        self.shares["before"] = self._look()
        self._began = read()
        return self

    def __exit__(self, *error: Any) -> None:
        ended = read()
        hot = _gpu(self.device, "clocks_throttle_reasons.hw_slowdown,clocks_throttle_reasons.sw_thermal_slowdown")
        self.shares["during"] = others(self._began, ended)
        self.shares["after"] = self._look()
        self.load.append(round(os.getloadavg()[0], 2))
        self._words = self._judge(self._began, ended, hot)

    def _look(self) -> float | None:
        before = read()
        time.sleep(self.pause)
        return others(before, read())

    def _judge(self, began: Reading, ended: Reading, hot: list[str]) -> list[str]:
        words = []
        busiest = max((share for share in self.shares.values() if share is not None), default=0.0)
        if busiest > BUSY:
            told = ", ".join(f"{100 * share:.0f} % {when}" for when, share in self.shares.items() if share is not None)
            words.append(f"the machine was busy: the share of the cores that other processes took was {told}")
        if (times := ended.throttled - began.throttled) > 0:
            words.append(f"the processor was too hot and slowed itself down {times} times")
        if (seconds := ended.held_back - began.held_back) > 0.02 * (ended.at - began.at):
            words.append(f"its container's quota kept the process waiting for {seconds:.1f} s")
        if self._gpu_before and self._gpu_before[0].isdigit() and int(self._gpu_before[0]) > 100 * BUSY:
            words.append(f"the GPU was busy before it began, {self._gpu_before[0]} % of the time")
        if "Active" in hot:
            words.append("the GPU was slowed down by heat or its power supply")
        return words

    def words(self, spread: float) -> list[str]:
        """What makes the numbers doubtful.

        Args:
            spread: between the quartiles of the windows, as a share of the median.
        """
        wide = [f"its windows differ: the quartiles are {100 * spread:.0f} % of the median apart"] if spread > WIDE else []
        return [*self._words, *wide]

    def for_machines(self) -> dict[str, Any]:
        return {"others": {k: None if v is None else round(v, 3) for k, v in self.shares.items()}, "load": self.load}


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _gpu(device: torch.device, query: str) -> list[str]:
    """What `nvidia-smi` says of the device; nothing where it does not."""
    if device.type != "cuda":
        return []
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        words = ["nvidia-smi", "-i", uuid, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [word.strip() for word in done.stdout.split(",")] if done.returncode == 0 else []
