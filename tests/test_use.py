"""From a trained run to files elsewhere, through the commands."""

import csv

import numpy as np
import yaml

from visiontune.__main__ import main
from visiontune.fit import main as fit


def test_a_tuned_run_is_used_in_every_form_with_the_same_outcome(tmp_path, recipes, pictures, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipes["classify"]))
    run = tmp_path / "run"
    assert fit([str(tmp_path / "r.yaml"), "--out", str(run)]) == 0
    for format in ("onnx", "safetensors"):
        assert main(["export", str(run), format]) == 0
    forms = [run, run / "weights/model", run / "weights/model.onnx", run / "weights/model.safetensors"]
    labels, scores = [], []
    for i, form in enumerate(forms):
        out = tmp_path / f"{i}.csv"
        assert main(["predict", str(form), str(pictures / "val"), "--csv", str(out)]) == 0
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 16
        labels.append([(r["path"], r["label"]) for r in rows])
        scores.append([float(r["score"]) for r in rows])
    assert labels == [labels[0]] * 4
    np.testing.assert_allclose(scores, [scores[0]] * 4, atol=2e-4)  # written with four digits
    vectors = []
    for i, form in enumerate((run, run / "weights/backbone", run / "weights/model.safetensors")):
        assert main(["embed", str(form), str(pictures / "val"), "--out", str(tmp_path / f"{i}.npz")]) == 0
        vectors.append(np.load(tmp_path / f"{i}.npz")["embeddings"])
    assert vectors[0].shape == (16, 32)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)
    np.testing.assert_array_equal(vectors[2], vectors[0])
