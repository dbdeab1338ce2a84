"""Whole runs on annotated pictures: tables, parts by a column, class-aware sampling."""

import csv
import json
from pathlib import Path

import pytest
import yaml

import visiontune
from tests.conftest import run_command
from tests.test_fit import assert_same_run, killed, losses, write
from visiontune.__main__ import main as verb
from visiontune.fit import main


def files(folder: Path):
    return sorted(folder.rglob("*.png"))


@pytest.fixture
def annotated(pictures, tmp_path):
    """Writes a table of the `pictures`, with their folder as label and `train` or `val` as split; `of` may change or drop a row."""

    def write_table(name="labels.csv", of=lambda row: row):
        rows = [
            {"image": p.relative_to(pictures).as_posix(), "label": p.parent.name, "split": p.parent.parent.name}
            for part in ("train", "val")
            for p in files(pictures / part)
        ]
        rows = [row for row in map(of, rows) if row]
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    return write_table


def with_table(recipe, pictures, table, /, **data):
    """A recipe on a table instead of folders."""
    kept = {k: v for k, v in recipe["data"].items() if k not in ("train", "val")}
    return recipe | {"data": kept | {"train": str(table), "root": str(pictures)} | data}


def test_a_table_with_a_column_of_parts_is_all_that_a_classifier_needs(tmp_path, recipes, pictures, annotated):
    recipe = with_table(recipes["classify"], pictures, "labels.csv") | {"epochs": 6}
    annotated()
    recipe["data"]["root"] = str(pictures)
    write(tmp_path / "r.yaml", recipe)
    done = run_command("visiontune.fit", "r.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.train: labels.csv: pictures from column 'image', labels from 'label'" in done.stdout
    assert "parts from column 'split': train (48 rows), val (16 rows)" in done.stdout
    assert "pictures: 48 with labels to train, 16 to validate, 2 classes: lying, standing" in done.stdout
    assert "imbalance" not in done.stdout
    found = losses(tmp_path / "run")
    assert sum(found[-6:]) < sum(found[:6])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["val_pictures"] == 16
    assert visiontune.load(tmp_path / "run").class_names == ("lying", "standing")
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"]
    assert saved["train"] == str(tmp_path / "labels.csv")  # it means the same from any folder


def test_a_table_gives_the_run_that_its_folders_give(tmp_path, recipes, pictures, annotated):
    """The same pictures in the same order with the same labels: the same numbers, to the bit."""
    parts = {p: annotated(f"{p}.csv", lambda row, p=p: row if row["split"] == p else None) for p in ("train", "val")}
    recipe = with_table(recipes["classify"], pictures, parts["train"], val=str(parts["val"]))
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "table")]) == 0
    assert main([write(tmp_path / "f.yaml", recipes["classify"]), "--out", str(tmp_path / "folders")]) == 0
    assert_same_run(tmp_path / "table", tmp_path / "folders")


def uneven(row):
    """Four standing pictures for training, of 24."""
    few = row["label"] == "standing" and row["split"] == "train" and int(Path(row["image"]).stem) >= 4
    return None if few else row


def test_class_aware_sampling_is_resumed_exactly_with_other_workers(tmp_path, recipes, pictures, annotated, capsys):
    recipe = with_table(recipes["classify"], pictures, annotated(of=uneven), sampling="balanced", batch_size=8)
    path = write(tmp_path / "r.yaml", recipe | {"checkpoint_minutes": 1e-6})
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    assert "sampling balanced: each class comes equally often (24 pictures of lying, 4 of standing)" in capsys.readouterr().out
    assert len(losses(tmp_path / "whole")) == 2 * (28 // 8)  # an epoch keeps its number of steps
    assert killed(4, [path, "--out", str(tmp_path / "broken"), "data.workers=2"]).returncode != 0
    assert main(["--resume", str(tmp_path / "broken"), "data.workers=1"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_imbalance_is_told_with_counts_and_what_can_be_done(tmp_path, recipes, pictures, annotated, capsys):
    recipe = with_table(recipes["classify"], pictures, annotated(of=uneven), batch_size=8)
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "imbalance: 24 pictures of lying, 4 of standing, 6 times as many" in said
    assert "shows rare classes more often, or head.class_weights=balanced weighs them in the loss: one of the two" in said
    assert main([str(tmp_path / "r.yaml"), "head.class_weights=balanced", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "look at balanced_accuracy; head.class_weights=balanced is set against it" in said
    assert "data.sampling" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.sampling=sqrt", "head.class_weights=balanced"], "data.sampling: got sqrt beside head.class_weights=balanced; each "),
        (["data.sampling=balanced", "head.logit_adjustment=1"], "data.sampling: got balanced beside head.logit_adjustment=1; "),
        (
            ["head.class_weights=balanced", "head.logit_adjustment=0.5"],
            "head.class_weights: got balanced beside head.logit_adjustment=0.5; ",
        ),
        (
            ["data.sampling=balanced", "head.class_weights=balanced", "head.logit_adjustment=1"],
            "data.sampling: got balanced beside head.class_weights=balanced and head.logit_adjustment=1; ",
        ),
    ],
)
def test_uneven_classes_are_made_up_for_once(tmp_path, recipes, words, told, capsys):
    path = write(tmp_path / "r.yaml", recipes["classify"])
    assert main([path, *words, "--out", str(tmp_path / "run")]) == 2
    header, error = capsys.readouterr().err.splitlines()
    assert header.endswith("1 problem, nothing was run")
    assert told in error
    assert error.endswith("together they favour the rare ones: take one of them")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("settings", "expected"), [({"labels_per_class": 3}, 6), ({"labels_fraction": 0.5}, 24)])
def test_few_labels_of_a_table_and_a_share_for_validation(tmp_path, recipes, pictures, annotated, capsys, settings, expected):
    table = annotated("train.tsv", lambda row: row if row["split"] == "train" else None)
    recipe = with_table(recipes["classify"], pictures, table, val=0.25, batch_size=4, **settings)
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    total = 48 - 12
    assert f"pictures: {min(expected, total // 2)} of {total} with labels to train, 12 to validate" in capsys.readouterr().out


def test_a_table_without_labels_is_enough_to_pretrain_and_one_with_them_to_probe(tmp_path, recipes, pictures, annotated, capsys):
    table = str(annotated())
    recipe = with_table(recipes["mae"], pictures, table, columns={"split": "split"}) | {"epochs": 1}
    recipe["probe"] = {"train": table, "root": str(pictures)}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "pictures: 48 without labels" in said
    assert "probe: 48 labelled pictures to fit, 16 to score" in said
    assert "probe_top1" in json.loads((tmp_path / "run" / "result.json").read_text())


def test_parquet_tables_train_through_the_command(tmp_path, recipes, pictures, annotated):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with annotated().open() as file:
        parquet.write_table(pa.Table.from_pylist(list(csv.DictReader(file))), tmp_path / "t.parquet")
    recipe = with_table(recipes["classify"], pictures, tmp_path / "t.parquet") | {"epochs": 1}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["val_pictures"] == 16


# ---------------------------------------------------------------- mistakes


def test_what_is_wrong_with_tables_comes_with_all_else_before_anything_runs(tmp_path, recipes, pictures, annotated, capsys):
    recipe = with_table(recipes["classify"], pictures, annotated(of=lambda row: {"image": row["image"], "label": row["label"]}))
    recipe["data"] |= {"sampling": "balancd"}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert "r.yaml:" in error
    assert "data.val: is missing, and" in error
    assert "data.sampling: got 'balancd'" in error
    assert "did you mean 'balanced'" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": "/nowhere"}, "data.train: none of the 64 files of"),
        ({"columns": {"label": "kind"}}, "data.columns.label: got 'kind'; "),
        ({"columns": {"lable": "kind"}}, "data.columns.lable: unknown key; did you mean 'label'"),
        ({"val": "val.csv"}, "data.val: no file val.csv; "),
        ({"train": "sample:digits/train"}, "data.val: is missing; folder or table with the same classes, or a share"),
    ],
)
def test_mistakes_with_tables_are_found_by_check(tmp_path, recipes, pictures, annotated, capsys, change, message):
    recipe = with_table(recipes["classify"], pictures, annotated(), **change)
    assert verb(["check", write(tmp_path / "r.yaml", recipe)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "1 problem" in error


def test_a_label_that_validation_alone_has_is_named(tmp_path, recipes, pictures, annotated, capsys):
    def tilted(row):
        return row | {"label": "tilted"} if row["split"] == "val" and row["image"].endswith("003.png") else row

    recipe = with_table(recipes["classify"], pictures, annotated(of=tilted))
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 2
    assert "has classes in its rows for validation that those for training have not: tilted" in capsys.readouterr().err
    two = with_table(recipes["classify"], pictures, annotated("a.csv", lambda r: r if r["split"] == "train" else None))
    two["data"]["val"] = str(annotated("b.csv", lambda r: tilted(r) if r["split"] == "val" else None))
    assert main([write(tmp_path / "r.yaml", two), "--out", str(tmp_path / "run")]) == 2
    assert "classes that training has not: tilted; training has lying, standing" in capsys.readouterr().err


def test_a_probe_takes_one_label_a_picture(tmp_path, recipes, pictures, annotated, capsys):
    recipe = recipes["mae"] | {"probe": {"train": str(annotated(of=lambda r: r | {"label": "a|b"})), "root": str(pictures)}}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 2
    assert "probe.train: " in (error := capsys.readouterr().err)
    assert "k-NN and linear probe take one each" in error


# ---------------------------------------------------------------- the verb check


def test_check_looks_through_a_table_as_through_a_folder(pictures, annotated, tmp_path, capsys):
    table = annotated(of=lambda row: row | {"label": "lying" if row["image"].endswith("001.png") else row["label"]})
    with table.open("a") as file:
        file.write("train/gone.png,lying,train\n")
    out = tmp_path / "found.csv"
    assert verb(["check", str(table), f"data.root={pictures}", "--csv", str(out)]) == 1
    said = capsys.readouterr().out
    assert "65 pictures in" in said
    assert "2 classes: lying 35, standing 30" in said
    assert "broken: 1: 1 file is gone" in said
    assert "1 row whose file is not there, counted as broken (line 66: train/gone.png)" in said
    with out.open() as file:
        assert [(Path(r["path"]).name, r["problem"]) for r in csv.DictReader(file) if r["problem"] == "broken"] == [("gone.png", "broken")]
    assert verb(["check", str(table), f"data.root={pictures}", "data.columns.label=split"]) == 1
    assert "2 classes: train 49, val 16" in capsys.readouterr().out
    assert verb(["check", str(table), "data.batch_size=3"]) == 2
    assert "data.columns.label=NAME" in capsys.readouterr().err
    assert verb(["check", str(pictures / "train")]) == 0
    assert "2 classes: lying 24, standing 24" in capsys.readouterr().out


def test_shard_packs_a_table_of_one_label_a_picture(pictures, annotated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    (table := pictures / "labels_for_shards.csv").write_text(annotated().read_text())
    try:
        assert verb(["shard", str(table), str(tmp_path / "s")]) == 0
        assert "64 pictures in 1 shard" in capsys.readouterr().out
        assert (tmp_path / "s" / "classes.txt").read_text() == "lying\nstanding\n"
        table.write_text(table.read_text().replace("000.png,lying", "000.png,lying|x"))
        assert verb(["shard", str(table), str(tmp_path / "t")]) == 2
        assert "may have several labels" in capsys.readouterr().err
    finally:
        table.unlink()
