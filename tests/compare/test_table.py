"""From rows to words: means, spreads, pairs."""

import csv
import re
import statistics

import pytest
from scipy.stats import ttest_rel

from visiontune.compare import table
from visiontune.compare.page import write_page
from visiontune.compare.plan import Cell, Plan
from visiontune.jobs import Outcome
from visiontune.run import Run

SCORES = {
    ("random", "1 %"): [0.20, 0.22, 0.18],
    ("mae", "1 %"): [0.30, 0.33, 0.29],
    ("random", "100 %"): [0.80, 0.81, 0.79],
    ("mae", "100 %"): [0.81, 0.79, 0.80],
}


@pytest.fixture
def plan(recipes):
    from visiontune.recipe import parse_recipe

    recipe = parse_recipe(recipes["classify"]).single
    cells = [
        Cell(f"{w}/{labels[:-2]}/seed_{s}", w, labels, s, recipe, pictures, 100)
        for s in range(3)
        for labels, pictures in (("100 %", 5000), ("1 %", 50))
        for w in ("random", "mae")
    ]
    return Plan({"recipe": recipes["classify"], "weights": {"random": "random", "mae": "/r/mae"}, "seeds": [0, 1, 2]}, cells, ["a <note>"])


def outcomes(plan, **failed):
    found = {}
    for cell in plan.cells:
        last = SCORES[cell.weights, cell.labels][cell.seed]
        result = {"top1": last + 0.02, "top1_last": last, "val_pictures": 1000, "seconds": 60.0, "images_seen": 6400}
        found[cell.name] = Outcome(0, result)
    return found | failed


def test_rows_hold_every_run_and_failures_their_reason(plan, tmp_path):
    found = outcomes(plan)
    found["mae/1/seed_2"] = Outcome(1, reason="out of memory")
    del found["random/100/seed_0"]
    rows = table.rows_of(plan, found, {})
    table.write_rows(tmp_path / "compare.csv", rows)
    with (tmp_path / "compare.csv").open() as file:
        read = {row["run"]: row for row in csv.DictReader(file)}
    assert len(read) == 12
    assert read["mae/1/seed_0"]["top1"] == "0.3"
    assert read["mae/1/seed_0"]["top1_best"] == "0.32"
    assert (read["mae/1/seed_2"]["status"], read["mae/1/seed_2"]["reason"]) == ("failed", "out of memory")
    assert read["random/100/seed_0"]["status"] == "waiting"
    assert table.failures(rows) == ["mae/1/seed_2: out of memory"]


def test_means_spreads_and_paired_differences_are_those_of_scipy(plan):
    summary = table.summarise(plan, table.rows_of(plan, outcomes(plan), {}))
    for (weights, labels), scores in SCORES.items():
        point = summary.points[weights, labels]
        assert point.mean == pytest.approx(statistics.mean(scores))
        assert point.spread == pytest.approx(statistics.stdev(scores))
        if weights == "mae":
            assert point.against.p == pytest.approx(ttest_rel(scores, SCORES["random", labels]).pvalue)
    assert table.accuracies(summary) == [
        ["labels", "pictures", "random", "mae"],
        ["1 %", "50", "20.0 ± 2.0", "30.7 ± 2.1"],
        ["100 %", "5,000", "80.0 ± 1.0", "80.0 ± 1.0"],
    ]
    assert summary.headline == ["mae against random: better at 1 % (+10.7 points); not told apart at 100 % (+0.0 points)."]
    assert "better at 1 %: +10.7 points (95 % interval +9.2 to +12.1, p 0.00097, n 3)" in summary.sentences[0].replace(
        "below 0.001", "0.00097"
    )
    assert "1,000 pictures" in table.caption(summary)
    assert "All are judged on the same 1,000 pictures" in table.caption(summary)
    plan.cells[0].recipe.data.val = 0.2  # of a comparison in which each seed set aside its own
    own = table.caption(table.summarise(plan, table.rows_of(plan, outcomes(plan), {})))
    assert "Each seed is judged on 1,000 pictures that it set aside itself" in own
    assert "same" not in own
    (row,) = [r for r in summary.for_machines() if r["weights"] == "mae" and r["labels"] == "1 %"]
    assert row["difference"] == pytest.approx(0.32 / 3)
    assert row["pairs"] == 3


def test_the_same_difference_with_each_seed_is_shown_without_a_test(plan, tmp_path):
    found = outcomes(plan)
    for seed, last in enumerate(SCORES["random", "1 %"]):
        found[f"mae/1/seed_{seed}"].result["top1_last"] = last + 0.1
    rows = table.rows_of(plan, found, {})
    summary = table.summarise(plan, rows)
    same = "the same difference with each seed, no test at 1 % (+10.0 points); not told apart at 100 % (+0.0 points)."
    assert summary.headline == [f"mae against random: {same}"]
    assert summary.sentences[0].startswith("mae against random: +10.0 points at 1 %, with each of 3 seeds: no spread to test by; not told")
    (row,) = [r for r in summary.for_machines() if r["weights"] == "mae" and r["labels"] == "1 %"]
    assert (row["low"], row["high"], row["p"], row["pairs"]) == (None, None, None, 3)
    run = Run.create(tmp_path / "out")
    plan.save(run.folder / plan.FILE)
    write_page(run, plan, summary, rows)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", run.report_file.read_text().partition("Differences from random")[2])
    assert cells[:7] == ["mae", "1 %", "the same difference with each seed, no test", "+10.0", "n/a", "n/a", "3"]


def test_a_run_without_a_number_is_one_that_failed(plan):
    found = outcomes(plan)
    found["mae/1/seed_0"].result["top1_last"] = None
    del found["mae/1/seed_1"].result["top1"], found["mae/1/seed_1"].result["top1_last"]
    rows = table.rows_of(plan, found, {})
    assert table.failures(rows) == [
        "mae/1/seed_0, mae/1/seed_1: its top-1 accuracy is not a number, see its log; a lower optim.lr may help"
    ]
    assert table.summarise(plan, rows).points["mae", "1 %"].scores == {2: 0.29}


def test_only_whole_pairs_are_compared_and_one_seed_has_no_test(plan):
    found = outcomes(plan)
    found["random/1/seed_0"] = found["random/1/seed_1"] = Outcome(1, reason="broken")
    for seed in range(3):
        found[f"mae/100/seed_{seed}"] = Outcome(1, reason="broken")
    summary = table.summarise(plan, table.rows_of(plan, found, {}))
    assert summary.points["mae", "1 %"].against.n == 1
    assert summary.headline == ["mae against random: one seed, no test at 1 % (+11.0 points)."]
    assert table.accuracies(summary)[2] == ["100 %", "5,000", "80.0 ± 1.0", "failed"]
    nothing = table.summarise(plan, table.rows_of(plan, {}, {"mae": "cannot be fetched", "random": "no"}))
    assert nothing.headline == ["mae against random: no pair of runs has finished."]


def test_the_page_has_the_table_the_plot_the_differences_and_links_to_the_runs(plan, tmp_path):
    run = Run.create(tmp_path / "out")
    plan.save(run.folder / plan.FILE)
    rows = table.rows_of(plan, outcomes(plan, **{"mae/1/seed_2": Outcome(1, reason="a <reason>")}), {})
    write_page(run, plan, table.summarise(plan, rows), rows)
    page = run.report_file.read_text()
    assert (run.pictures / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "data:image/png;base64",
        "Differences from random",
        'href="mae/1/seed_0/report.html"',
        "a &lt;reason&gt;",
        "a &lt;note&gt;",
    ):
        assert part in page
    assert "http" not in page.partition("base64,")[0]  # opened offline
    waiting = table.rows_of(plan, {}, {})
    write_page(run, plan, table.summarise(plan, waiting), waiting)
    assert "base64" not in run.report_file.read_text()
