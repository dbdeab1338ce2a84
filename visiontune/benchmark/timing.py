"""How many pictures a second a step takes: the batch that is fastest, then several windows on it.

Nothing here knows of networks: a step is a function without arguments, and the clock may be any.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from visiontune.build import free_memory, is_out_of_memory
from visiontune.errors import UserError, counted

Step = Callable[[], object]
# What counts as a gain. Below it, twice the batch costs twice the memory for what a quiet machine's windows differ by anyway.
GAIN = 0.03
# Batches doubled in a row without one, after which no larger one is tried: one alone may be an unlucky size.
PATIENCE = 2
MOST = 1024
# Pictures on which the two memory formats are tried against each other.
FORMAT_BATCH = 8


@dataclass(frozen=True)
class Stopwatch:
    """Windows of many calls each. The device is waited for at a window's two ends alone, as a user's own loop would.

    Attributes:
        seconds: of a window, at least.
        windows: how many count.
        synchronize: waits until the device has done what it was told.
        clock: seconds, from any beginning.
    """

    seconds: float = 1.0
    windows: int = 7
    synchronize: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def warm_up(self, step: Step, seconds: float) -> float:
        """Calls that do not count: kernels are chosen, compiled and loaded in them, and clocks rise. Returns seconds a call."""
        step()
        return self._run(step, 1, seconds)

    def rates(self, step: Step, *, windows: int | None = None, seconds: float | None = None) -> list[float]:
        """Calls a second in each window, after a warm-up."""
        seconds = self.seconds if seconds is None else seconds
        each = self.warm_up(step, seconds)
        return [1 / self._run(step, max(1, math.ceil(seconds / each)), seconds) for _ in range(windows or self.windows)]

    def quick(self, step: Step) -> float:
        """Calls a second, to choose by: the median of three short windows.

        Where one call is longer than such a window, that of the warm-up is the first of the three: minutes of a slow step are saved so.
        """
        seconds = self.seconds / 8
        each = self.warm_up(step, seconds)
        calls, known = max(1, math.ceil(seconds / each)), [1 / each] if each >= seconds else []
        return statistics.median([*known, *(1 / self._run(step, calls, seconds) for _ in range(3 - len(known)))])

    def _run(self, step: Step, calls: int, seconds: float) -> float:
        """Seconds a call, over `calls` of them and more until `seconds` have passed."""
        done = 0
        self.synchronize()
        began = self.clock()
        while True:
            for _ in range(calls):
                step()
            self.synchronize()
            done += calls
            if (passed := max(self.clock() - began, 1e-9)) >= seconds:
                return passed / done
            calls = max(1, math.ceil(done * (seconds / passed - 1)))


@dataclass(frozen=True)
class Sweep:
    """Which batch is the fastest.

    Attributes:
        tried: pictures a second by batch, in the order in which they were tried.
        stopped: why no larger one was, in words.
    """

    tried: dict[int, float]
    stopped: str

    @property
    def batch_size(self) -> int:
        """The smallest that no other one beats by `GAIN`."""
        best = max(self.tried.values())
        return min(batch for batch, rate in self.tried.items() if rate * (1 + GAIN) >= best)


def sweep(
    make: Callable[[int], Step], watch: Stopwatch, *, first: int = 1, most: int = MOST, room: Callable[[], bool] = lambda: True
) -> Sweep:
    """Try batches, each twice the one before, until memory ends, none brings a gain, or a call takes longer than a window.

    In such a call whatever is paid once a call has long been spread over it: more pictures would only make all of this take longer.

    Args:
        make: the step on so many pictures.
        watch: measures it.
        first: smallest batch.
        most: largest.
        room: asked before each doubling whether there is memory for it.

    Raises:
        UserError: if not even the first fits into memory.
    """
    tried: dict[int, float] = {}
    batch, waited, stopped = first, 0, ""
    while not stopped:
        try:
            rate = batch * watch.quick(make(batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            stopped = f"out of memory with {batch}"
        else:
            waited = 0 if rate > (1 + GAIN) * max(tried.values(), default=0) else waited + 1
            tried[batch] = rate
            if waited == PATIENCE:
                stopped = f"no gain beyond {batch >> PATIENCE}"
            elif batch / rate > watch.seconds:
                stopped = f"with {batch} a call takes longer than {watch.seconds:g} s"
            elif batch * 2 > most:
                stopped = f"{most} is the largest that is tried"
            elif not room():
                stopped = f"no memory for {batch * 2}"
        batch *= 2
    free_memory()
    if not tried:
        raise UserError(f"out of memory with {counted(first, 'picture')}, the fewest that there can be; take smaller pictures (--at)")
    return Sweep(tried, stopped)


@dataclass(frozen=True)
class Speed:
    """Of one kind of step.

    Attributes:
        batch_size: pictures at a time.
        channels_last: the memory format that was the faster one.
        rates: pictures a second of each window.
        tried: as in `Sweep`.
        stopped: likewise.
    """

    batch_size: int
    channels_last: bool
    rates: list[float]
    tried: dict[int, float] = field(default_factory=dict)
    stopped: str = ""

    @property
    def images_per_second(self) -> float:
        return statistics.median(self.rates)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; half of the windows lie between them."""
        return quartiles(self.rates)

    @property
    def spread(self) -> float:
        """Between the quartiles, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / self.images_per_second


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third, between values as numpy does it.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    (2.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(
    make: Callable[[int, bool], Step],
    watch: Stopwatch,
    *,
    convnet: bool,
    first: int = 1,
    room: Callable[[], bool] = lambda: True,
    settled: Callable[[], None] = lambda: None,
) -> Speed:
    """The fastest format and batch of a step, and its windows there.

    Args:
        make: the step on so many pictures, in channels_last or not.
        watch: measures it.
        convnet: whether channels_last is tried at all.
        first: smallest batch.
        room: as for `sweep`.
        settled: told when the batch is chosen, before its windows.

    Raises:
        UserError: if nothing fits into memory.
    """
    channels_last = convnet and _faster_channels_last(make, watch)
    found = sweep(lambda batch: make(batch, channels_last), watch, first=first, room=room)
    batch = found.batch_size
    settled()
    rates = [batch * rate for rate in watch.rates(make(batch, channels_last))]
    return Speed(batch, channels_last, rates, found.tried, found.stopped)


def measure_on(
    make: Callable[[int, bool], Step], watch: Stopwatch, batch: int, channels_last: bool, settled: Callable[[], None] = lambda: None
) -> tuple[Speed, float]:
    """The windows of a step on a batch that was chosen before, and the seconds of its first call, in which it is compiled.

    Args:
        make: the step on so many pictures, in channels_last or not.
        watch: measures it.
        batch: pictures at a time.
        channels_last: the memory format.
        settled: told after the first call, before the windows.

    Raises:
        UserError: if it does not fit into memory.
    """
    try:
        step = make(batch, channels_last)
        watch.synchronize()
        began = watch.clock()
        step()
        watch.synchronize()
        first = watch.clock() - began
        settled()
        return Speed(batch, channels_last, [batch * rate for rate in watch.rates(step)]), first
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        raise UserError(f"out of memory with {counted(batch, 'picture')}, on which the step that is not compiled was timed") from error


def _faster_channels_last(make: Callable[[int, bool], Step], watch: Stopwatch) -> bool:
    try:
        plain, last = (watch.quick(make(FORMAT_BATCH, layout)) for layout in (False, True))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        return False
    return last > (1 + GAIN) * plain
