from visiontune.report.numbers import best_score, headlines, score_rows


def test_scores_are_told_with_their_time_and_the_error_of_counting():
    result = {
        "top1": 0.9,
        "top1_last": 0.8,
        "val_pictures": 100,
        "temperature": 1.5,
        "knn_top1_start": 0.25,
        "macro_f1": None,
        "seconds": 3,
    }
    assert score_rows(result) == [
        ["top-1 accuracy", "90.00 ± 3.00 %"],
        ["top-1 accuracy (last epoch)", "80.00 %"],
        ["macro F1", "n/a"],
        ["k-NN top-1 (before training)", "25.00 %"],
        ["temperature", "1.5000"],
    ]
    assert headlines(result) == ["top-1 accuracy 90.0 %", "top-1 accuracy (last epoch) 80.0 %", "k-NN top-1 (before training) 25.0 %"]
    assert headlines({"top1": None}) == ["top-1 accuracy n/a"]


def test_a_stage_is_judged_by_its_classifier_before_its_probe():
    assert best_score({"probe_top1": 0.4, "top1": 0.7}) == ("top1", 0.7)
    assert best_score({"probe_top1": 0.4, "macro_ap": 0.3, "top1": None}) == ("macro_ap", 0.3)
    assert best_score({"loss": 2.0}) is None
