"""Parquet, and folders that `datasets` 5.2.0 wrote: `saved_by_datasets/one` (two shards; label: ClassLabel of zebra, ant, unused; tags:
lists of a, b) and `two` (parts train and test)."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visiontune.data.annotations import open_split
from visiontune.data.columns import TableSettings
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.read import read_bytes
from visiontune.data.rows import is_table
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SAVED = Path(__file__).parent / "saved_by_datasets"


@pytest.fixture
def photos(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def first_pixels(table):
    return [np.asarray(Image.open(io.BytesIO(read_bytes(table, i))))[0, 0].tolist() for i in range(len(table))]


@pytest.mark.parametrize("labels", [["b", "a", None, "b"], [2, 1, None, 2], [2.0, 1.0, float("nan"), 2.0]])
def test_a_parquet_file_is_a_table_like_any_other(photos, labels):
    parquet.write_table(pa.table({"file": [f"{i}.png" for i in range(4)], "label": labels}), photos / "t.parquet")
    found = list_pictures(photos / "t.parquet", labelled=True)
    assert found.classes == (("a", "b") if isinstance(labels[0], str) else ("1", "2"))
    assert [found.name(i) for i in range(3)] == [b"0.png", b"1.png", b"3.png"]
    assert found.labels.tolist() == [1, 0, 1]
    assert "1 row without a label left out (row 3)" in found.notes[1]


def test_lists_in_a_parquet_file_are_several_labels(photos):
    rows = {"path": [f"{i}.png" for i in range(4)], "label": [["b"], [], None, ["a", "b"]]}
    parquet.write_table(pa.table(rows), photos / "t.parquet")
    found = list_pictures(photos / "t.parquet", labelled=True)
    assert (found.classes, found.targets.tolist()) == (("a", "b"), [[0, 1], [0, 0], [0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([1.0, 0.0, float("inf"), 1.0], "inf in column 'label' (row 3)"),
        ([-float("inf"), 0.0, None, float("inf")], "-inf in column 'label' (row 1), inf in column 'label' (row 4)"),
        ([[1.0], [0.0, float("inf")], [1.0], [0.0]], "(0.0, inf) in column 'label' (row 2)"),
    ],
)
def test_a_label_that_is_infinite_is_told_with_its_place(photos, labels, got):
    parquet.write_table(pa.table({"file": [f"{i}.png" for i in range(4)], "label": labels}), photos / "t.parquet")
    with pytest.raises(UserError) as raised:
        list_pictures(photos / "t.parquet", labelled=True)
    assert f"data.columns.label: a label is a name or a whole number, got {got}; mend the table" in str(raised.value)


def test_columns_of_zeros_and_ones_in_a_parquet_file_may_be_of_any_kind(photos):
    rows = {"path": [f"{i}.png" for i in range(3)], "a": [True, False, True], "b": [0, 1, None], "c": [0.0, 1.0, 0.0]}
    parquet.write_table(pa.table(rows), photos / "t.parquet")
    found = list_pictures(photos / "t.parquet", labelled=True, settings=TableSettings(label=("c", "b", "a")))
    assert found.targets.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 1]]


def test_class_names_that_datasets_writes_into_a_parquet_file_are_kept(photos):
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    table = pa.table({"path": ["0.png", "1.png", "2.png"], "label": [1, 0, -1]})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(about), photos / "t.parquet")
    found = list_pictures(photos / "t.parquet", labelled=True)
    assert (found.classes, found.labels.tolist()) == (("zebra", "ant"), [1, 0])


def test_a_parquet_file_that_cannot_be_used_says_why(photos):
    (photos / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"data.train: .*t.parquet is no Parquet file"):
        list_pictures(photos / "t.parquet", labelled=True)
    inside = pa.table({"image": [{"bytes": b"\x89PNG", "path": "x.png"}], "label": [1]})
    parquet.write_table(inside, photos / "t.parquet")
    with pytest.raises(UserError, match=r"column 'image' .* holds the pictures themselves, compressed; .*save_to_disk"):
        list_pictures(photos / "t.parquet", labelled=True)


@pytest.mark.parametrize("path", [SAVED / "one", "t.parquet"])
def test_without_pyarrow_the_extra_is_named(photos, monkeypatch, path):
    parquet.write_table(pa.table({"path": ["0.png"], "label": [1]}), photos / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"data.train: .* needs pyarrow to be read: pip install 'visiontune\[tables\]'"):
        list_pictures(photos / path, labelled=True)


# ---------------------------------------------------------------- folders of datasets


def test_pictures_in_a_saved_dataset_are_read_at_their_places_with_the_class_names_of_the_dataset():
    assert is_table(str(SAVED / "one"))
    found = list_pictures(SAVED / "one", labelled=True)
    assert found.classes == ("zebra", "ant")  # in the order of its ClassLabel, without the one that no picture has
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert "1 row without a label left out (row 7)" in found.notes[1]
    # the pictures were made so, in this order
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)[0, 0].tolist() for _ in range(6)]
    assert first_pixels(found) == made
    batches = list(make_loader(Pictures(found, CenterCrop((8, 8))), EvalOrder(6, 4), workers=2))
    assert [x.tolist() for b in batches for x in b["images"][0][:, :, 0, 0]] == made
    assert found.path(5) == str(SAVED / "one" / "data-00001-of-00002.arrow" / "0000006.png")


def test_lists_of_class_labels_are_several_labels():
    found = list_pictures(SAVED / "one", labelled=True, settings=TableSettings(label="tags"))
    assert (found.classes, found.targets.tolist()) == (("a", "b"), [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 0]])


def test_the_parts_of_a_saved_dataset_are_training_and_validation():
    train, val = open_split(str(SAVED / "two"), TableSettings(), key="data.train")
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1, 0, 1, 0, 1], [0, 1])
    assert first_pixels(val) == [first_pixels(train)[i] for i in (0, 3)]


def test_a_saved_dataset_of_paths_is_a_table_of_paths(photos):
    folder = photos / "saved"
    shutil.copytree(SAVED / "one", folder)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
    for shard, numbers in enumerate(((0, 1), (2, 3))):
        rows = [{"image": {"bytes": None, "path": f"{i}.png"}, "label": "ab"[i % 2]} for i in numbers]
        with pa.OSFile(str(folder / f"data-0000{shard}-of-00002.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_table(pa.Table.from_pylist(rows, schema=schema))
    found = list_pictures(folder, labelled=True, settings=TableSettings(root=str(photos)))
    assert found.members is None
    assert [p[0] for p in first_pixels(found)] == [0, 1, 2, 3]
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_a_saved_dataset_that_is_not_whole_says_so(tmp_path):
    shutil.copytree(SAVED / "one", tmp_path / "one")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002.arrow cannot be read"):
        list_pictures(tmp_path / "one", labelled=True)
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json cannot be read; .* is no whole folder of `datasets.save_to_disk`"):
        list_pictures(tmp_path / "one", labelled=True)


def test_what_the_installed_datasets_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    png = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(png, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = {"image": [{"bytes": png.getvalue(), "path": None}] * 6, "label": [0, 1, 0, 1, 1, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.shuffle(seed=0).select([0, 1, 2, 3]).save_to_disk(str(tmp_path / "d"))
    found = list_pictures(tmp_path / "d", labelled=True)
    assert found.classes == ("b", "a")
    assert found.labels.tolist() == made.shuffle(seed=0)["label"][:4]
    assert first_pixels(found) == [[9, 9, 9]] * 4
