"""The logic of timing, with a clock that the steps themselves move."""

import statistics

import pytest
import torch

from visiontune.benchmark import timing
from visiontune.benchmark.timing import Stopwatch, measure, measure_on, sweep
from visiontune.errors import UserError


class Clock:
    """Moved by steps: seconds a call by `cost(batch, channels_last)`; each step made is noted."""

    def __init__(self, cost):
        self.now, self.cost, self.made = 0.0, cost, []

    def make(self, batch, channels_last=False):
        self.made.append((batch, channels_last))
        seconds = self.cost(batch, channels_last)

        def step():
            self.now += seconds

        return step

    def watch(self, **settings):
        return Stopwatch(**({"seconds": 1.0, "windows": 5, "clock": lambda: self.now} | settings))


def test_every_window_is_as_long_as_asked_and_the_warm_up_does_not_count():
    clock = Clock(None)
    first = iter([30.0, 1.0])  # a compiled step: the first call takes long, the next one is not yet at speed

    def step():
        clock.now += next(first, 0.04)

    assert clock.watch().rates(step) == pytest.approx([25.0] * 5)
    assert clock.now >= 31 + 5 * 0.999


def test_a_window_that_ends_too_early_goes_on():
    clock = Clock(None)
    pace = iter([0.5, 0.5, 0.5] + [0.1] * 1000)  # slow while it warms up: the number of calls is taken too small

    def step():
        clock.now += next(pace)

    assert clock.watch(windows=2).rates(step) == pytest.approx([10.0, 10.0])
    assert clock.now >= 1.5 + 2 * 0.999


def test_the_device_is_waited_for_before_the_clock_is_read():
    """Steps return at once, as CUDA's do; the work is done while one waits."""
    clock, queued = Clock(None), []

    def step():
        queued.append(0.02)

    def synchronize():
        clock.now += sum(queued)
        queued.clear()

    assert clock.watch(synchronize=synchronize).rates(step) == pytest.approx([50.0] * 5)


def saturating(batch, channels_last=False):
    """100 ms of overhead and 10 ms a picture: 9 pictures a second alone, never more than 100."""
    return 0.1 + 0.01 * batch


def test_the_batch_doubles_until_there_is_no_gain_and_the_smallest_of_the_fastest_is_taken():
    clock = Clock(lambda batch, channels_last: max(0.1, 0.01 * batch))  # full speed from 10 on
    found = sweep(clock.make, clock.watch())
    assert list(found.tried) == [1, 2, 4, 8, 16, 32, 64]
    assert found.batch_size == 16
    assert found.stopped == "no gain beyond 16"
    rates = {batch: batch / saturating(batch) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)}
    clock = Clock(saturating)
    found = sweep(clock.make, clock.watch())
    assert all(found.tried[batch] == pytest.approx(rates[batch]) for batch in found.tried)
    best = max(found.tried.values())
    assert found.batch_size == min(b for b, rate in rates.items() if rate * (1 + timing.GAIN) >= best)


def test_one_unlucky_size_does_not_end_the_sweep():
    clock = Clock(lambda batch, channels_last: 0.1 if batch != 4 else 0.3)
    found = sweep(clock.make, clock.watch(), most=32)
    assert list(found.tried) == [1, 2, 4, 8, 16, 32]
    assert (found.batch_size, found.stopped) == (32, "32 is the largest that is tried")


def test_a_call_longer_than_a_window_is_the_last_that_is_tried():
    clock = Clock(lambda batch, channels_last: 0.3 + 0.05 * batch)  # every doubling brings something
    found = sweep(clock.make, clock.watch())
    assert list(found.tried) == [1, 2, 4, 8, 16]
    assert (found.batch_size, found.stopped) == (16, "with 16 a call takes longer than 1 s")
    assert all(rate == pytest.approx(batch / (0.3 + 0.05 * batch)) for batch, rate in found.tried.items())
    assert clock.now == pytest.approx(4 * sum(0.3 + 0.05 * batch for batch in found.tried))  # one that does not count, and three


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_ends_the_sweep_and_the_best_before_it_is_taken(error):
    def cost(batch, channels_last):
        if batch > 8:
            raise error
        return 1.0

    clock = Clock(cost)
    found = sweep(clock.make, clock.watch())
    assert found.stopped == "out of memory with 16"
    assert list(found.tried) == [1, 2, 4, 8]
    assert found.batch_size == 8


def test_where_memory_is_known_to_end_no_larger_batch_is_tried():
    clock = Clock(lambda batch, channels_last: 1.0)
    found = sweep(clock.make, clock.watch(), room=lambda: clock.made[-1][0] < 4)
    assert list(found.tried) == [1, 2, 4]
    assert found.stopped == "no memory for 8"


def test_what_does_not_fit_at_all_is_one_sentence_and_other_errors_are_themselves():
    def none(batch, channels_last):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="out of memory with 2 pictures, the fewest that there can be; take smaller pictures"):
        sweep(Clock(none).make, Clock(None).watch(), first=2)

    def broken(batch, channels_last):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        sweep(Clock(broken).make, Clock(None).watch())


@pytest.mark.parametrize(("factor", "kept"), [(0.5, True), (0.99, False), (1.5, False)])
def test_channels_last_is_kept_where_it_is_faster(factor, kept):
    clock = Clock(lambda batch, channels_last: saturating(batch) * (factor if channels_last else 1))
    found = measure(clock.make, clock.watch(), convnet=True)
    assert found.channels_last is kept
    assert found.images_per_second == pytest.approx(found.batch_size / saturating(found.batch_size) / (factor if kept else 1))
    assert {layout for _, layout in clock.made[2:]} == {kept}


def test_other_networks_are_not_tried_in_channels_last():
    clock = Clock(lambda batch, channels_last: saturating(batch) * (0.5 if channels_last else 1))
    found = measure(clock.make, clock.watch(), convnet=False)
    assert not found.channels_last
    assert {layout for _, layout in clock.made} == {False}


def test_on_a_batch_that_is_given_the_first_call_is_told_apart_and_no_other_batch_is_made():
    clock, settled = Clock(None), []
    first = iter([30.0, 1.0])

    def make(batch, channels_last):
        clock.made.append((batch, channels_last))

        def step():
            clock.now += next(first, 0.5)

        return step

    speed, seconds = measure_on(make, clock.watch(), 16, True, lambda: settled.append(clock.now))
    assert (speed.batch_size, speed.channels_last, seconds) == (16, True, 30.0)
    assert speed.rates == pytest.approx([32.0] * 5)
    assert clock.made == [(16, True)]
    assert settled == [30.0]  # what compiling took of memory is not what steps hold


def test_a_given_batch_that_does_not_fit_is_one_sentence():
    def none(batch, channels_last):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="out of memory with 16 pictures, on which the step that is not compiled was timed"):
        measure_on(none, Clock(None).watch(), 16, False)


def test_median_and_quartiles_are_of_the_windows():
    rates = [10.0, 12.0, 11.0, 50.0, 9.0, 10.5, 11.5]
    speed = timing.Speed(4, False, rates)
    assert speed.images_per_second == statistics.median(rates)
    assert speed.quartiles == (10.25, 11.75)
    assert speed.spread == pytest.approx(1.5 / 11)
    assert timing.Speed(4, False, [7.0]).quartiles == (7.0, 7.0)
