"""`benchmark --against OLD.csv`, on tables that lie there already."""

import csv

import pytest

from tests.benchmark.test_noise import row, speed
from visiontune.__main__ import main
from visiontune.benchmark.page import write_page
from visiontune.run import Run


def write(file, **rows):
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(row()))
        writer.writeheader()
        writer.writerows(r | {"name": name} for name, r in rows.items())
    return file


@pytest.fixture
def tables(tmp_path):
    """OLD.csv, and the folder of a finished benchmark in which `<slow>` is slower, `fast` faster, and `same` the same."""
    old = write(tmp_path / "OLD.csv", **{"<slow>": row(), "fast": row(), "same": row(), "gone": row()})
    busy = row(warnings="inference: the machine was busy", **speed(150, 149, 151))
    rows = {"<slow>": row(**speed(80, 79, 81)), "fast": busy, "same": row(torch="2.15"), "new": row()}
    run = Run(tmp_path / "run")
    write(run.folder / "results.csv", **rows)
    write_page(run, {"data": "photos", "device": "cpu", "precision": "32-true"}, [], [], [])
    return old, run


def test_a_finished_benchmark_is_compared_on_the_terminal_and_on_its_page(tables, capsys):
    old, run = tables
    assert main(["benchmark", str(run.folder), "--against", str(old)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"against {old}:\n  torch: 2.14, now 2.14, 2.15\n")
    lines = [line.split() for line in said.splitlines()]
    assert ["<slow>", "inference,", "pictures/s", "100", "80", "-20", "%"] in lines
    assert ["fast", "inference,", "pictures/s", "100", "150", "+50", "%", "?"] in lines
    assert not any(line[:1] == ["same"] for line in lines)
    for sentence in (
        "slower or worse beyond noise: 1 number of 1 backbone", "within noise: 10 numbers", f"only in {old}: gone", "only here: new",
        "? one of the two was measured on a busy or throttled machine", f"report: {run.report_file}",
    ):  # fmt: skip
        assert sentence in said, sentence
    page = run.report_file.read_text()
    assert f"<h2>Against {old}</h2>" in page
    assert page.index('">&lt;slow&gt;</td>') < page.index('">fast</td>') < page.index('">same</td>')
    assert "better (one of the two was measured on a busy or throttled machine)" in page

    # another table takes the place of the first one; the rest of the page stays
    other = write(old.with_name("OTHER.csv"), fast=row())
    assert main(["benchmark", "--against", str(other), "--out", str(run.folder)]) == 0
    again = run.report_file.read_text()
    assert again.count("<h2>Against") == 1
    assert f"<h2>Against {other}</h2>" in again
    assert again.partition("<!-- /against -->")[2] == page.partition("<!-- /against -->")[2]


def test_two_tables_are_compared_without_a_page(tables, capsys):
    old, run = tables
    before = run.report_file.read_bytes()
    assert main(["benchmark", str(old), "--against", str(run.folder)]) == 0  # the other way round
    assert "+25 %" in capsys.readouterr().out
    assert run.report_file.read_bytes() == before


TORN = "name,backbone,weights,status,reason,images_per_second\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "is no table of a benchmark: its first line has no name, backbone, weights, status, reason, but nothing; give the results.csv",
        ),
        (
            "path,label\nx,y\n",
            "is no table of a benchmark: its first line has no name, backbone, weights, status, reason, but path, label;",
        ),
        (TORN, "has no row; give the results.csv of a benchmark, or its folder"),
        (TORN + "a,n,timm,finished\n", "line 2: got 4 cells; expected 6, as the first line has; the file is torn"),
        (TORN + "a,n,timm,finished,,1,2\n", "line 2: got more cells; expected 6"),
        (TORN + "a,n,timm,finished,,fast\n", "line 2: images_per_second: got 'fast'; expected a number of at least 0"),
        (TORN + "a,n,timm,finished,,nan\n", "line 2: images_per_second: got 'nan'; expected a number of at least 0"),
        (
            TORN.replace("images_per_second", "knn_top1") + "a,n,timm,finished,,91.0\n",
            "knn_top1: got '91.0'; expected a number from 0 to 1",
        ),
        (TORN + "a,n,timm,finished,,1\n" * 2, "has two rows of the name 'a', the second in line 3; keep one of them"),
        (TORN + 'a,"n,timm\n', "cannot be read as a CSV (unexpected end of data); give"),
        ("\0\1\2\n", "is no table of a benchmark"),
    ],
)
def test_a_file_that_is_no_table_of_a_benchmark_is_one_sentence(tables, tmp_path, capsys, text, message):
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(text)
    assert main(["benchmark", str(tables[1].folder), "--against", str(wrong)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --against: {wrong}")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--against", "TMP/OLE.csv"], "--against: there is no file TMP/OLE.csv; did you mean 'OLD.csv'?; give the results.csv"),
        (
            ["TMP/none", "--against", "OLD"],
            "benchmark: there is no file TMP/none; TMP holds OLD.csv, run; give the results.csv of a benchmark",
        ),
        (["TMP", "--against", "OLD"], "to measure backbones first, name them by --backbones"),
        (["RUN", "--against", "OLD", "--at", "64"], "--at: nothing is measured without --backbones; leave it out, or name some"),
        (["RUN", "--against", "OLD", "data.channels=4"], "data.channels=4: nothing is measured without --backbones"),
        (["RUN", "--against", "OLD", "--out", "TMP/x"], "benchmark: got RUN and --out TMP/x; expected one finished benchmark"),
    ],
)
def test_mistakes_are_one_sentence(tables, tmp_path, capsys, words, message):
    def told(text):
        return text.replace("TMP", str(tmp_path)).replace("RUN", str(tables[1].folder))

    assert main(["benchmark", *(str(tables[0]) if word == "OLD" else told(word) for word in words)]) == 2
    assert told(message) in capsys.readouterr().err
