"""Whether the machine was quiet, read from files as Linux writes them."""

import mmap
import os

import pytest
import torch

from visiontune.benchmark import machine, memory
from visiontune.benchmark.machine import Reading, Watch, others

CPU = torch.device("cpu")


def reading(at, working, own, **more):
    return Reading(at, working, own, **({"cores": 4, "throttled": 0, "held_back": 0.0} | more))


def test_the_share_of_others_is_what_the_cores_worked_and_not_for_this_process():
    assert others(reading(0, 100, 5), reading(10, 130, 15)) == pytest.approx((30 - 10) / 40)
    assert others(reading(0, 100, 5), reading(10, 110, 15.2)) == 0.0  # two clocks that differ by a little
    assert others(reading(0, None, 5), reading(10, None, 15)) is None


def test_only_the_cores_that_may_be_used_are_read(tmp_path, monkeypatch):
    lines = [
        "cpu  9 9 9 9 9 9 9 9 9 9",
        "cpu0 100 20 30 999 50 1 2 40 7 7",
        "cpu1 5 5 5 999 5 5 5 5 5 5",
        "cpu2 10 0 0 999 0 0 0 0 0 0",
        "intr 1",
    ]
    (tmp_path / "stat").write_text("\n".join(lines))
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n")
    for core in (0, 2):
        folder = tmp_path / "sys" / "devices" / "system" / "cpu" / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{core + 1}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    found = machine.read(tmp_path, tmp_path / "sys")
    assert found.working == pytest.approx((100 + 20 + 30 + 1 + 2 + 40 + 10) / os.sysconf("SC_CLK_TCK"))
    assert (found.cores, found.throttled, found.held_back) == (2, 4, 2.5)
    nothing = machine.read(tmp_path / "none", tmp_path / "none")
    assert (nothing.working, nothing.throttled, nothing.held_back) == (None, 0, 0.0)


def watched(monkeypatch, readings, gpu=()):
    read = iter(readings)
    monkeypatch.setattr(machine, "read", lambda: next(read))
    monkeypatch.setattr(machine, "_gpu", lambda device, query: list(gpu))
    with Watch(CPU, pause=0.0) as watch:
        pass
    return watch


def test_a_busy_machine_is_told_and_a_quiet_one_is_not(monkeypatch):
    before, began, ended, after = (
        (reading(0, 0, 0), reading(1, 0.04, 0)),
        reading(1, 0, 0),
        reading(11, 30, 10),
        (reading(11, 0, 0), reading(12, 2, 0)),
    )
    watch = watched(monkeypatch, [*before, began, ended, *after])
    assert watch.words(0.0) == [
        "the machine was busy: the share of the cores that other processes took was 1 % before, 50 % during, 50 % after"
    ]
    assert watch.for_machines()["others"] == {"before": 0.01, "during": 0.5, "after": 0.5}
    quiet = watched(monkeypatch, [*before, began, reading(11, 10.5, 10), reading(11, 0, 0), reading(12, 0.1, 0)])
    assert quiet.words(0.05) == []
    assert quiet.words(0.3) == ["its windows differ: the quartiles are 30 % of the median apart"]


def test_heat_and_a_containers_quota_are_told(monkeypatch):
    still = (reading(0, 0, 0), reading(1, 0, 0))
    watch = watched(monkeypatch, [*still, reading(1, 0, 0), reading(11, 10, 10, throttled=3, held_back=2.5), *still])
    assert watch.words(0.0) == [
        "the processor was too hot and slowed itself down 3 times", "its container's quota kept the process waiting for 2.5 s",
    ]  # fmt: skip
    hot = watched(monkeypatch, [*still, reading(1, 0, 0), reading(11, 10, 10), *still], gpu=["Active", "Not Active"])
    assert hot.words(0.0) == ["the GPU was slowed down by heat or its power supply"]


def test_memory_that_is_left_is_the_systems_or_the_containers(tmp_path):
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    group.mkdir()
    assert memory.available(proc, group) == 0
    (proc / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:   2048 kB\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    assert memory.available(proc, group) == 2048 * 1024
    (group / "memory.max").write_text("1000005\n")
    assert memory.available(proc, group) == 1_000_000


@pytest.mark.parametrize(("held", "fits"), [(1_000, True), (1_100, True), (2_000, False)])
def test_a_batch_twice_as_large_is_tried_where_it_fits(monkeypatch, held, fits):
    monkeypatch.setattr(memory, "resident", lambda: 800)
    room = memory.Room(CPU)
    monkeypatch.setattr(memory, "peak", lambda device: held)
    monkeypatch.setattr(memory, "available", lambda: 1_000)
    assert room.for_twice() is fits
    assert memory.Room(torch.device("meta")).for_twice()


def test_the_peak_is_of_what_came_after_it_was_forgotten():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system forgets no peak")
    size = 64 * memory.MIB

    def touch():  # not torch's memory: the allocator may hand out again what an earlier test freed and this process still holds
        with mmap.mmap(-1, size) as held:
            held.write(b"\1" * size)

    touch()
    memory.forget_peak(CPU)
    held, base = memory.peak(CPU), memory.resident()
    assert held - base < size // 2
    touch()
    assert memory.peak(CPU) - base > 0.9 * size
