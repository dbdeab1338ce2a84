"""The files that predict and embed leave."""

import csv
import io
import os
import shutil
import sys
import threading

import numpy as np
import pyarrow.parquet
import pytest

from visiontune.__main__ import main
from visiontune.errors import UserError
from visiontune.predict import Prediction, Predictor, load, whole_file, write_csv, write_embeddings


def rows_of(predictions, **more):
    file = io.StringIO()
    write_csv(predictions, file, **more)
    return list(csv.reader(io.StringIO(file.getvalue())))


def test_each_kind_of_prediction_has_its_columns():
    one, two, none = Prediction("a.png", ("x", "y"), (0.9, 0.05)), Prediction("b.png", ("z",), (0.75,)), Prediction("c.png")
    assert rows_of([two]) == [["path", "label", "score"], ["b.png", "z", "0.7500"]]
    assert rows_of([one, two, none])[1:] == [["a.png", "x|y", "0.9000|0.0500"], ["b.png", "z", "0.7500"], ["c.png", "", ""]]
    assert rows_of([one], top=2) == [["path", "label", "score", "label2", "score2"], ["a.png", "x", "0.9000", "y", "0.0500"]]


def test_predict_writes_good_pictures_in_order_and_tells_of_broken_ones(tuned, mixed, tmp_path, capsys):
    assert main(["predict", str(tuned), str(mixed), "--csv", str(tmp_path / "out.csv"), "--top", "2", "--tta"]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    said = capsys.readouterr()
    assert [r["path"] for r in rows] == [str(mixed / f"{i:02d}.png") for i in range(21) if i not in (0, 7, 20)]
    assert said.out == f"18 pictures labelled in {tmp_path / 'out.csv'}, 3 left out\n"
    assert [line.partition(" (")[0] for line in said.err.splitlines()] == [f"left out: {mixed / f'{i:02d}.png'}" for i in (0, 7, 20)]
    expected = {p.path: p for p in load(tuned).predict(mixed, top=2, tta=True)}
    for r in rows:
        assert (r["label"], r["label2"]) == expected[r["path"]].labels
        assert (float(r["score"]), float(r["score2"])) == pytest.approx(expected[r["path"]].scores, abs=1e-4)


def test_a_dash_reads_paths_of_any_kind_from_standard_input(tuned, mixed, tmp_path, capsys, monkeypatch):
    odd = tmp_path / "b\udce9ta.png"  # a name that is not UTF-8
    odd.write_bytes((mixed / "02.png").read_bytes())
    lines = f"{mixed / '05.png'}\n{odd}\r\n\n{tmp_path / 'gone.png'}\n".encode("utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main(["predict", str(tuned), str(mixed / "03.png"), "-", "--csv", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="", errors="surrogateescape") as file:
        assert [r["path"] for r in csv.DictReader(file)] == [str(mixed / "03.png"), str(mixed / "05.png"), str(odd)]
    assert "gone.png (file is gone)" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_every_format_holds_the_same_paths_and_embeddings(tuned, mixed, tmp_path, suffix, capsys):
    out = tmp_path / f"e{suffix}"
    assert main(["embed", str(tuned), str(mixed), "--out", str(out), "--batch-size", "4"]) == 0
    assert capsys.readouterr().out == f"18 embeddings of 32 numbers in {out}, 3 left out\n"
    if suffix == ".npz":
        found = np.load(out)
        paths, vectors = found["paths"].tolist(), found["embeddings"]
    elif suffix == ".parquet":
        table = pyarrow.parquet.read_table(out)
        paths, vectors = table["path"].to_pylist(), np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    else:
        with out.open(newline="") as file:
            rows = list(csv.reader(file))
        paths, vectors = [r[0] for r in rows[1:]], np.array([r[1:] for r in rows[1:]], dtype=np.float32)
        assert rows[0][:2] == ["path", "e0"]
    expected = [e for e in load(tuned).embeddings(mixed, batch_size=4) if not e.broken]
    assert paths == [e.path for e in expected]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([e.vector for e in expected]))
    assert list(tmp_path.iterdir()) == [out]


def test_an_unfinished_file_of_embeddings_has_not_its_name(tuned, mixed, tmp_path):
    def breaks_off():
        yield from load(tuned).embeddings(mixed / "01.png")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(breaks_off(), tmp_path / "e.csv")
    assert not (tmp_path / "e.csv").exists()


def test_predict_that_breaks_off_leaves_an_older_file_as_it_was(tuned, mixed, tmp_path, monkeypatch, capsys):
    """Also where there is none: a file under the final name would look finished."""
    rows = Predictor._try

    def breaks_off(self, source):
        if source.name.endswith("05.png"):
            raise KeyboardInterrupt
        return rows(self, source)

    out, old = tmp_path / "new.csv", tmp_path / "old.csv"
    old.write_text("kept")
    words = ["predict", str(tuned), str(mixed), "--workers", "0", "--batch-size", "1", "--csv"]
    monkeypatch.setattr(Predictor, "_try", breaks_off)
    for file in (out, old):
        assert main([*words, str(file)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not out.exists()
    assert old.read_text() == "kept"
    assert len((tmp_path / "new.csv.part").read_text().splitlines()) == 5  # a header and 01 to 04

    monkeypatch.undo()
    assert main([*words, str(out)]) == 0
    assert len(out.read_text().splitlines()) == 19
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.csv", "old.csv", "old.csv.part"]


def test_files_of_a_folder_that_are_not_read_are_told(tuned, mixed, tmp_path, capsys):
    shutil.copy(mixed / "01.png", tmp_path / "1.png")
    (tmp_path / "2.heic").write_bytes(b"")
    assert main(["predict", str(tuned), str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "predict: 1 file of .heic left out, which are not read here; convert them to JPEG or PNG\n" in error
    assert main(["embed", str(tuned), str(tmp_path), "--out", str(tmp_path / "e.csv")]) == 0
    assert "embed: 1 file of .heic left out" in capsys.readouterr().err


def test_devices_and_links_are_written_to_as_what_they_are(tuned, mixed, tmp_path, capsys):
    pipe, link, real = tmp_path / "pipe", tmp_path / "link.csv", tmp_path / "there.csv"
    os.mkfifo(pipe)
    link.symlink_to(real)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(pipe.read_text().splitlines()))
    reader.start()
    with whole_file(pipe) as part, part.open("w") as file:
        write_csv([Prediction("a.png", ("x",), (1.0,))], file)
    reader.join()
    assert read == ["path,label,score", "a.png,x,1.0000"]
    assert main(["predict", str(tuned), str(mixed / "01.png"), "--csv", str(link)]) == 0
    assert link.is_symlink()
    assert len(real.read_text().splitlines()) == 2


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match="--out: .parquet needs pyarrow; pip install 'visiontune\\[tables\\]', or name a file that ends in .npz"
    ):
        write_embeddings(iter(()), tmp_path / "e.parquet")
