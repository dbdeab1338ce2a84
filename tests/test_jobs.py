"""Lists of jobs whose processes are a line of Python: order, slots, failures, signals."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from visiontune import jobs
from visiontune.jobs import Slot, run_jobs
from visiontune.recipe import parse_recipe
from visiontune.run import Run

DONE = "import json, os, pathlib, sys; f = pathlib.Path(sys.argv[1]); {first}; (f / 'result.json').write_text(json.dumps({result}))"


@pytest.fixture
def recipe(recipes):
    return parse_recipe(recipes["classify"]).single


@pytest.fixture
def scripts(monkeypatch):
    """What each job does, by name."""
    found: dict[str, str] = {}
    plain = DONE.format(first="pass", result="dict(name=f.name)")
    monkeypatch.setattr(jobs, "command", lambda job, _: [sys.executable, "-c", found.get(job.folder.name, plain), str(job.folder)])
    return found


def names(folder):
    return {name: outcome.status for name, outcome in folder.items()}


def test_finished_jobs_are_left_alone_and_the_others_run_in_order(tmp_path, recipe, scripts):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "result.json").write_text('{"name": "before"}')
    order = []
    found = run_jobs(Run(tmp_path), dict.fromkeys("abc", recipe), ended=lambda name, _: order.append(name))
    assert order == ["a", "b", "c"]
    assert [o.result["name"] for o in found.values()] == ["a", "before", "c"]
    assert [o.before for o in found.values()] == [False, True, False]


def test_stages_stop_at_the_first_that_fails_and_independent_jobs_go_on_with_its_reason(tmp_path, recipe, scripts):
    scripts["b"] = "import sys; print('error: data.train: no folder', file=sys.stderr); sys.exit(2)"
    scripts["d"] = "raise RuntimeError('out of memory')"
    scripts["e"] = "import os; os.abort()"
    one_by_one = run_jobs(Run.create(tmp_path / "stages"), dict.fromkeys("abc", recipe))
    assert names(one_by_one) == {"a": 0, "b": 2}
    found = run_jobs(Run.create(tmp_path / "list"), dict.fromkeys("abcdef", recipe), independent=True)
    assert names(found) == {"a": 0, "b": 2, "c": 0, "d": 1, "e": -signal.SIGABRT, "f": 0}
    assert found["b"].reason == "data.train: no folder"
    assert found["d"].reason == "ended with status 1: RuntimeError: out of memory"
    assert found["e"].reason == "was ended by SIGABRT"
    del scripts["b"], scripts["d"], scripts["e"]
    again = run_jobs(Run(tmp_path / "list"), dict.fromkeys("abcdef", recipe), independent=True)
    assert set(names(again).values()) == {0}
    assert [name for name, o in again.items() if not o.before] == ["b", "d", "e"]


def test_each_slot_has_one_job_at_a_time_in_its_own_environment(tmp_path, recipe, monkeypatch):
    script = DONE.format(
        first="import time; began = time.time(); time.sleep(0.3)",
        result="dict(device=os.environ['DEVICE'], began=began, ended=time.time(), words=sys.argv[2:])",
    )
    monkeypatch.setattr(jobs, "command", lambda job, overrides: [sys.executable, "-c", script, str(job.folder), *overrides])
    slots = [Slot({"DEVICE": "one"}, ("data.workers=1",)), Slot({"DEVICE": "two"}, ("data.workers=2",))]
    found = run_jobs(Run(tmp_path), dict.fromkeys("abcdef", recipe), ["seed=1"], slots=slots, independent=True)
    results = [o.result for o in found.values()]
    assert {r["device"] for r in results} == {"one", "two"}
    for device, workers in (("one", 1), ("two", 2)):
        own = sorted((r for r in results if r["device"] == device), key=lambda r: r["began"])
        assert all(a["ended"] <= b["began"] for a, b in itertools.pairwise(own))
        assert all(r["words"] == ["seed=1", f"data.workers={workers}"] for r in own)


def test_sigterm_is_passed_on_and_no_other_job_begins(tmp_path, recipe, scripts):
    waits = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); open(sys.argv[1] + '/on', 'w'); time.sleep(60)"
    )
    scripts["a"] = scripts["b"] = waits

    def stop():
        while not ((tmp_path / "a" / "on").exists() and (tmp_path / "b" / "on").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    told = []
    before = signal.signal(signal.SIGTERM, own := lambda *_: told.append("stop"))
    try:
        threading.Thread(target=stop).start()
        found = run_jobs(Run(tmp_path), dict.fromkeys("abc", recipe), slots=[Slot(), Slot()], independent=True)
        assert names(found) == {"a": 143, "b": 143}
        assert told == ["stop"]  # whoever made the list learns of it
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)


JOB = """
import os, sys, time
from visiontune import fit
def resume(folder, *rest, **more):
    with open(folder + "/pid.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(folder + "/pid.tmp", folder + "/pid")
    time.sleep(60)
fit.resume = resume
fit.main(sys.argv[1:])
"""
LIST = """
import sys
from visiontune import jobs
from visiontune.recipe import load_recipe
from visiontune.run import Run
jobs.command = lambda job, _: [sys.executable, sys.argv[1], "--resume", str(job.folder)]
jobs.run_jobs(Run(sys.argv[3]), {"a": load_recipe(sys.argv[2]).single}, independent=True)
"""


def test_a_job_ends_with_a_list_that_is_killed(tmp_path, recipes):
    """Else it would go on, and be run a second time when the list goes on."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "list.py").write_text(LIST)
    (tmp_path / "r.yaml").write_text(json.dumps(recipes["classify"]))
    process = subprocess.Popen([sys.executable, *(str(tmp_path / n) for n in ("list.py", "job.py", "r.yaml")), str(tmp_path)])
    pid = tmp_path / "a" / "pid"
    try:
        assert _comes(pid.exists)
    finally:
        process.kill()
        process.wait()
    assert _comes(lambda: not _runs(int(pid.read_text())))


def _comes(true) -> bool:
    for _ in range(3000):
        if true():
            return True
        time.sleep(0.02)
    return False


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
