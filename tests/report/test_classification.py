import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluate.test_classification import multi, single
from visiontune.evaluate import classification as c
from visiontune.report import classification as figures
from visiontune.report import measured


def counts(cells, K):
    matrix = np.zeros((K, K), dtype=int)
    for cell in cells:
        matrix[cell.truth, cell.label] = cell.pictures
    return matrix


def pairs_of(K, n=4000, seed=0):
    """Classes k and k + K/2 are taken for each other, now and then."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (n,), generator=generator)
    said = torch.where(torch.rand(n, generator=generator) < 0.3, (labels + K // 2) % K, labels)
    return c.Answers(torch.nn.functional.one_hot(said, K).float(), labels)


@pytest.mark.parametrize("K", [2, 30])
def test_of_few_classes_the_matrix_is_drawn_as_it_is(K):
    cells = c.confusions(pairs_of(K))
    matrix, shown = figures._matrix(cells)
    assert shown == list(range(K))
    assert (matrix == counts(cells, K)).all()
    assert figures.confusion_words(cells) == ""


def test_of_many_classes_those_that_are_confused_stand_side_by_side():
    cells = c.confusions(pairs_of(60))
    matrix, shown = figures._matrix(cells)
    assert sorted(shown) == list(range(60))
    assert (matrix == counts(cells, 60)[np.ix_(shown, shown)]).all()
    assert all(abs(shown.index(k) - shown.index(k + 30)) == 1 for k in range(30))
    assert figures.confusion_words(cells) == "Classes that are taken for each other stand side by side."


def test_of_very_many_classes_those_in_most_mistakes_are_drawn():
    """Two hundred classes, of which the odd ones are always right."""
    labels = torch.arange(200).repeat(5)
    said = torch.where(labels % 2 == 0, (labels + 2) % 200, labels)
    cells = c.confusions(c.Answers(torch.nn.functional.one_hot(said, 200).float(), labels))
    _, shown = figures._matrix(cells)
    assert sorted(shown) == list(range(0, 200, 2))
    assert figures.confusion_words(cells).startswith("Of 200 classes the 100 that are in most mistakes are drawn.")


def test_classes_that_were_neither_there_nor_said_are_not_drawn():
    cells = c.confusions(c.Answers(torch.eye(5)[[0, 3, 3]], torch.tensor([0, 0, 3])))
    assert figures._matrix(cells)[1] == [0, 3]


@pytest.mark.parametrize(("K", "least", "most"), [(2, 150, 600), (100, 1200, 2400)])
def test_the_figure_grows_with_the_classes_and_takes_any_name(tmp_path, K, least, most, recwarn):
    names = ["$x^2", "a name that is much too long to stand beside anything \udce9", *(f"写真 {k}" for k in range(K - 2))]
    figures.confusion(c.confusions(pairs_of(K)), names, tmp_path / "c.png")
    assert all(least < side < most for side in Image.open(tmp_path / "c.png").size)
    assert [w for w in recwarn if "Glyph" in str(w.message)] == []


def test_long_names_keep_both_ends():
    assert figures.shortened("Canis lupus familiaris, brown") == "Canis lupus …aris, brown"
    assert figures.shortened("cat") == "cat"
    assert len(figures.shortened("x" * 99, 16)) == 16


def test_mistakes_and_reliability_are_drawn_also_where_there_are_none(tmp_path):
    picture = np.zeros((8, 12, 3))
    for wrong in ([], [figures.Shown(picture, "cat 0.9", "is dog")] * 7):
        groups = {"Wrong": (wrong, False), "Right": ([figures.Shown(picture, "a$_{b", "is $")], True)}
        figures.cases(groups, tmp_path / f"{len(wrong)}.png")
    none, two_lines = (Image.open(tmp_path / f"{n}.png").size for n in (0, 7))
    assert two_lines[1] > 2 * none[1]
    figures.reliability({"scores": c.calibration(multi())}, tmp_path / "r.png")
    assert (tmp_path / "r.png").is_file()


@pytest.mark.parametrize("make", [single, multi])
def test_what_is_written_is_read_again_and_every_picture_has_its_row(tmp_path, make):
    answers = c.fitted(make())
    names = [f"class {k}, or so" for k in range(answers.K)]
    classes = c.class_results(answers)
    cells = c.confusions(answers) if make is single else []
    measured.write_tables(tmp_path, answers, classes, cells, names)
    again = measured.read_classes(tmp_path)
    assert list(again) == names
    for row, found in zip(again.values(), classes, strict=True):
        assert (row.pictures, row.said) == (found.pictures, found.said)
        for share in ("precision", "recall", "f1", "ap", "auroc", "threshold"):
            assert getattr(row, share) == pytest.approx(getattr(found, share), abs=1e-5, nan_ok=True)
    assert [(x.truth, x.label, x.pictures) for x in measured.read_confusions(tmp_path, names)] == [
        (x.truth, x.label, x.pictures) for x in cells
    ]
    measured.write_predictions(tmp_path / "p.csv", answers, (f"{i}\udce9.jpg" for i in range(answers.N)), names)
    rows = measured.read_rows(tmp_path / "p.csv")
    assert [r["path"] for r in rows] == [f"{i}\udce9.jpg" for i in range(answers.N)]
    if make is single:
        assert [names.index(r["truth"]) for r in rows] == answers.truth.tolist()
        assert [names.index(r["label"]) for r in rows] == answers.label.tolist()
        assert [float(r["score"]) for r in rows] == pytest.approx(answers.score.tolist(), abs=1e-4)
    else:
        for r, has, said, scores in zip(rows, answers.truth.numpy(), answers.said, answers.scores, strict=True):
            assert {names.index(x) for x in r["truth"].split("|") if x} == set(np.flatnonzero(has))
            assert {names.index(x) for x in r["label"].split("|") if x} == set(np.flatnonzero(said))
            assert [float(x) for x in r["score"].split("|") if x] == pytest.approx(sorted(scores[said], reverse=True), abs=1e-4)


def test_classes_are_listed_worst_first_and_absent_ones_last():
    classes = dict(zip("abcdefg", c.class_results(single(absent=(3,))), strict=True))
    rows = measured.class_table(classes)["table"]["rows"]
    f1 = [float(r[5].rstrip(" %")) for r in rows[:-1]]
    assert f1 == sorted(f1)
    assert rows[-1][:2] == ["d", "0"]
    assert rows[-1][3:] == ["n/a"] * 5
    assert "The 4 best are in classes.csv" in measured.class_table(classes, most=3)["caption"]


def test_the_page_says_where_temperature_and_thresholds_were_chosen():
    own, other = ({"task": task, "temperature": 1.5} for task in ("classify", "evaluate"))
    assert "fitted on these same pictures" in measured.chosen_on(own)
    assert "came with the model" in measured.chosen_on(other)
    assert "chosen on these same pictures" in measured.chosen_on({"task": "classify"})


def test_confused_pairs_are_told_in_a_line():
    answers = c.Answers(torch.eye(3)[[1, 1, 0, 2]], torch.tensor([0, 0, 0, 2]))
    assert measured.pair_words(c.confusions(answers), ["cat", "dog", "cow"]) == "cat taken for dog 2 times (67 %)"
