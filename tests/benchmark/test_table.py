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


@pytest.fixture
def trained():
    """Tuned, a is better than b, by the linear probe b than a; the training of c broke off; on boxes d is a little better than e."""

    def tuned(top1):
        return {"finetune_top1": top1, "finetune_seconds": 61.4, "finetune_images_seen": 960, "val_pictures": 1000, "what": "full"}

    def boxes(score):
        entry = {"detect_map": score, "detect_map50": 2 * score, "detect_seconds": 7.0, "detect_images_seen": 9, "val_pictures": 40}
        return {k: v for k, v in result(0.9, 50.0 / score, detect=entry).items() if k != "accuracy"}

    labels = {"a": result(0.8, 10.0, finetune=tuned(0.95)), "b": result(0.9, 50.0, finetune=tuned(0.9))}
    labels["c"] = result(0.99, 90.0, finetune={"failed": "the loss is not finite"})
    made = [table.row_of(Candidate(n, n, "timm"), r, [*PARTS, "finetune"]) for n, r in labels.items()]
    parts = [p for p in PARTS if p != "accuracy"] + ["detect"]
    return made, [table.row_of(Candidate(n, n, "timm"), boxes(score), parts) for n, score in {"d": 0.41, "e": 0.40}.items()]


def test_who_asks_for_fine_tuning_is_told_by_it(trained):
    labels, _ = trained
    assert table.metrics(labels)[:3] == ["finetune_top1", "probe_top1", "knn_top1"]
    assert labels[0]["finetune_seconds"] == 61.4
    assert (labels[2]["status"], labels[2]["reason"]) == ("failed", "finetune: the loss is not finite")
    lines = [line.split() for line in table.table_text(labels).splitlines()]
    assert [line[:3] for line in lines[1:]] == [["*", "a", "95.0"], ["*", "b", "90.0"], ["c", "99.0", "94.0"]]
    assert "61" in lines[1]
    assert table.sentences(labels)[0] == "Most accurate by fine-tuning: a with 95.0 % at 10 pictures/s."


def test_of_mean_average_precisions_no_error_is_made_up(trained, tmp_path):
    _, boxes = trained
    lines = [line.split() for line in table.table_text(boxes).splitlines()]
    assert lines[1][:4] == ["*", "d", "41.0", "82.0"]
    assert [s.partition(":")[0] for s in table.sentences(boxes)] == [
        "Most accurate by mAP", "Nothing here is both faster and more accurate than these (*)",
    ]  # fmt: skip
    run = Run.create(tmp_path / "out")
    write_page(run, {"data": "boxes.json", "device": "cpu", "precision": "32-true"}, [], boxes, [])
    page = run.report_file.read_text()
    for part in ("mean average precision on 40 pictures.", "detection s", "of the backbone alone", "Bars: the quartiles of the speed."):
        assert part in page, part
    assert (run.pictures / "accuracy_over_speed.png").is_file()


def test_the_page_has_everything_and_opens_offline(rows, tmp_path):
    run = Run.create(tmp_path / "out")
    write_page(run, {"data": "photos", "device": "cpu", "precision": "32-true"}, ["a <note>"], rows, ["python -m child"])
    page = run.report_file.read_text()
    assert (run.pictures / "accuracy_over_speed.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "Failed: e: training: no &lt;layer&gt;", "Failed: h: none", "Speeds to doubt: 1 of", "<li>c: inference: the machine was busy",
        "a &lt;note&gt;",
        '<td data-value="11700000" class="n">11.70</td>', '<td data-value="0.91" class="n">91.0</td>', '<td data-value="" class="n"></td>',
        "python -m child", "8 backbones on photos, timed on cpu in 32-true, accuracies counted on 1,000 pictures.",
    ):  # fmt: skip
        assert part in page, part
    assert "http" not in page.partition("base64,")[0]
    waiting = [row for row in rows if row["name"] in "gh"]
    write_page(run, {"data": "photos", "device": "cpu", "precision": "32-true"}, [], waiting, [])
    assert "base64" not in run.report_file.read_text()
