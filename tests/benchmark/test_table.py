"""From what was measured to rows, sentences, plot and page."""

import csv

import pytest

from visiontune.benchmark import table
from visiontune.benchmark.names import Candidate
from visiontune.benchmark.page import write_page
from visiontune.run import Run

PARTS = ["cost", "inference", "training", "accuracy"]


def result(top1, speed, **more):
    timed = {"images_per_second": speed, "low": 0.9 * speed, "high": 1.1 * speed, "batch_size": 8, "channels_last": False}
    timed |= {"peak_memory_bytes": 300 * 2**20, "idle_memory_bytes": 200 * 2**20, "warnings": [], "latency_ms": 3.0}
    timed |= {"latency_ms_low": 2.9, "latency_ms_high": 3.2}
    scores = [{"probe": "knn", "setting": "k 20", "top1": top1 - 0.05, "val_pictures": 1000}]
    scores += [{"probe": "linear", "setting": "C 1", "top1": top1, "val_pictures": 1000}]
    scores += [{"probe": "few", "setting": "5 a class", "top1": 0.5, "val_pictures": 1000}]
    cost = {"architecture": "net", "image_size": [224, 224], "parameters": 11_700_000, "macs": 1_820_000_000, "activations": 2_480_000}
    cost |= {"seed": 3}
    training = timed | {"images_per_second": speed / 4}
    return {"cost": cost, "inference": timed, "training": training, "accuracy": {"scores": scores}} | more


@pytest.fixture
def rows():
    """a and b are not told apart, b is five times as fast; c is beaten in both; d is fast; e broke; f has no network; g waits."""
    doubtful = result(0.85, 50.0)["inference"] | {"warnings": ["the machine was busy"]}
    found = {
        "a": result(0.91, 10.0), "b": result(0.90, 50.0), "c": result(0.85, 40.0, inference=doubtful | {"images_per_second": 40.0}),
        "d": result(0.60, 900.0), "e": result(0.9, 10.0, training={"failed": "no <layer>"}), "f": {"cost": {"failed": "no weights"}},
    }  # fmt: skip
    made = [table.row_of(Candidate(n, n, "timm"), r, PARTS) for n, r in found.items()]
    return [
        *made,
        table.row_of(Candidate("g", "g", "timm"), None, PARTS),
        table.row_of(Candidate("h", "h", "timm", problem="none"), None, PARTS),
    ]


def test_rows_hold_what_there_is_and_say_what_there_is_not(rows, tmp_path):
    table.write_rows(tmp_path / "results.csv", rows)
    with (tmp_path / "results.csv").open() as file:
        read = {row["name"]: row for row in csv.DictReader(file)}
    states = {
        "a": "finished",
        "b": "finished",
        "c": "finished",
        "d": "finished",
        "e": "failed",
        "f": "failed",
        "g": "waiting",
        "h": "failed",
    }
    assert {name: row["status"] for name, row in read.items()} == states
    assert (read["e"]["reason"], read["f"]["reason"], read["h"]["reason"]) == ("training: no <layer>", "no weights", "none")
    assert (read["e"]["images_per_second"], read["e"]["train_images_per_second"]) == ("10", "")
    a = read["a"]
    assert (a["probe_top1"], a["knn_top1"], a["few5_top1"], a["gmacs"], a["mactivations"]) == ("0.91", "0.86", "0.5", "1.82", "2.48")
    assert (a["image_size"], a["train_images_per_second_q1"]) == ("224", "9")
    assert read["c"]["warnings"] == "inference: the machine was busy"
    assert list(a)[:5] == ["name", "backbone", "weights", "status", "reason"]


def test_a_row_says_when_it_was_measured_and_with_which_seed():
    dated = result(0.9, 10.0)
    dated["accuracy"]["date"], dated["inference"]["date"] = "2026-02-01T10:00Z", "2026-01-01T10:00Z"
    row = table.row_of(Candidate("a", "a", "timm"), dated, PARTS)
    assert (row["date"], row["seed"], row["latency_ms_q1"], row["latency_ms_q3"]) == ("2026-01-01T10:00Z", 3, 2.9, 3.2)
    assert (
        table.row_of(Candidate("a", "a", "timm"), {"cost": {"failed": "no", "date": "2026-03-01T10:00Z"}}, PARTS)["date"][:7] == "2026-03"
    )


def test_compiled_speeds_stand_beside_the_others_with_their_gain_and_fail_alone():
    wanted = [*PARTS[:3], "compiled_inference", "compiled_training", PARTS[3]]
    both = result(0.9, 10.0)
    both["compiled_inference"] = both["inference"] | {"images_per_second": 15.0, "compile_seconds": 20.0}
    both["compiled_training"] = {"failed": "no compiler"}
    row = table.row_of(Candidate("a", "a", "timm"), both, wanted)
    assert (row["images_per_second"], row["compiled_images_per_second"], row["compiled_gain"]) == (10.0, 15.0, 1.5)
    assert (row["compile_seconds"], row["train_images_per_second"]) == (20.0, 2.5)
    assert "compiled_train_images_per_second" not in row
    assert (row["status"], row["reason"]) == ("failed", "compiled training: no compiler")
    head, line = (text.split("  ") for text in table.table_text([row]).splitlines())
    assert {"compiled/s", "gain"} <= {word.strip() for word in head}
    assert "1.50 x" in {word.strip() for word in line}


def test_the_table_ranks_by_the_linear_probe_and_marks_the_front(rows):
    lines = [line.split() for line in table.table_text(rows).splitlines()]
    assert [line[:2] for line in lines[1:]] == [["*", "a"], ["*", "b"], ["e", "90.0"], ["c", "85.0"], ["*", "d"]]
    assert lines[1] == ["*", "a", "91.0", "86.0", "50.0", "224", "10", "2.5", "3", "11.70", "1.82", "300", "300"]


def test_what_to_take_is_the_fastest_that_cannot_be_told_apart_from_the_best(rows):
    assert table.sentences(rows) == [
        "Most accurate by linear probe: a with 91.0 % at 10 pictures/s.",
        "The fastest whose accuracy is not told apart from that on 1,000 pictures (two standard errors): b with 90.0 % at 50 pictures/s, "
        "5.0 times the speed.",
        "Nothing here is both faster and more accurate than these (*): a, b, d.",
    ]
    assert table.sentences([row for row in rows if row["name"] in "fgh"]) == []
    assert table.table_text([row for row in rows if row["name"] in "fgh"]) == ""


def test_the_page_has_everything_and_opens_offline(rows, tmp_path):
    run = Run.create(tmp_path / "out")
    write_page(run, {"data": "photos", "device": "cpu", "precision": "32-true"}, ["a <note>"], rows, ["python -m child"])
    page = run.report_file.read_text()
    assert (run.pictures / "accuracy_over_speed.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "Failed: e: training: no &lt;layer&gt;", "Failed: h: none", "Speed to doubt: c: inference: the machine was busy", "a &lt;note&gt;",
        '<td data-value="11700000" class="n">11.70</td>', '<td data-value="0.91" class="n">91.0</td>', '<td data-value="" class="n"></td>',
        "python -m child", "8 backbones on photos, timed on cpu in 32-true, accuracies counted on 1,000 pictures.",
    ):  # fmt: skip
        assert part in page, part
    assert "http" not in page.partition("base64,")[0]
    waiting = [row for row in rows if row["name"] in "gh"]
    write_page(run, {"data": "photos", "device": "cpu", "precision": "32-true"}, [], waiting, [])
    assert "base64" not in run.report_file.read_text()
