import os
import pickle
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from visiontune.data.annotations import look_into, open_split
from visiontune.data.broken import FORGIVEN
from visiontune.data.columns import TableSettings
from visiontune.data.folder import list_pictures
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.missing import missing_files
from visiontune.data.order import EvalOrder
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Writes a table beside `img/0.png` to `img/39.png`, each of one grey: its number."""
    (tmp_path / "img").mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "img" / f"{i}.png")

    def write(text, name="labels.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return str(tmp_path / name)

    return write


def read(file, /, *, labelled=True, fewest=2, several=None, max_broken=0.01, **settings):
    table = TableSettings(**settings)
    return list_pictures(file, labelled=labelled, fewest=fewest, several=several, max_broken=max_broken, settings=table)


def read_split(path, **settings):
    return open_split(path, TableSettings(**settings), key="data.train")


def pairs(found):
    """Names below the root and labels by name, of a table."""
    return [(found.name(i).decode(), found.classes[found.label(i)]) for i in range(len(found))]


def sets(found):
    return [{found.classes[k] for k in np.flatnonzero(row)} for row in found.targets]


ROWS = [("img/0.png", "cat"), ("img/1.png", "dog"), ("img/2.png", "cat")]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", "path,label\nimg/0.png,cat\nimg/1.png,dog\nimg/2.png,cat\n", "utf-8"),
        ("a.tsv", "filename\tclass\nimg/0.png\tcat\nimg/1.png\tdog\nimg/2.png\tcat", "utf-8"),
        ("a.csv", "id;Image Path;Category;split\n1;img/0.png;cat;a\n\n2;img/1.png;dog;b\n3;img/2.png;cat;a\n", "utf-8-sig"),
        ("A.CSV", 'what,shot\r\ncat,./img/0.png\r\n" dog ",img//1.png\r\ncat,"img/2.png"\r\n', "utf-8"),
    ],
)
def test_columns_are_found_by_their_names_or_by_what_stands_in_them(table, name, text, encoding):
    found = read(table(text, name, encoding))
    assert pairs(found) == ROWS
    assert found.classes == ("cat", "dog")
    assert found.class_counts().tolist() == [2, 1]
    assert "pictures from column" in found.notes[0]


def test_the_recipes_columns_come_before_those_that_would_be_found(table):
    path = table("path,label,file,breed\nx,1,img/0.png,cat\ny,2,img/1.png,dog\nz,3,img/2.png,cat\n")
    assert pairs(read(path, path="file", label="breed")) == ROWS
    with pytest.raises(
        UserError, match=r"data.columns.label: got 'bread'; .* has the columns path, label, file, breed; did you mean 'breed'"
    ):
        read(path, label="bread")


def test_numbers_are_classes_in_their_order_and_words_in_that_of_the_alphabet(table):
    assert read(table("path,label\nimg/0.png,10\nimg/1.png,9\nimg/2.png,-1\n")).classes == ("-1", "9", "10")
    assert read(table("path,label\nimg/0.png,10\nimg/1.png,9\nimg/2.png,b\n")).classes == ("10", "9", "b")


def test_paths_are_relative_to_the_table_or_to_the_root_or_absolute(table, tmp_path):
    text = "path,label\n0.png,cat\n1.png,dog\n"
    path = table(text)
    with pytest.raises(UserError, match=r"none of the 2 files .* is there, the first is .*0.png; .* another folder: data.root=FOLDER"):
        read(path)
    found = read(path, root=str(tmp_path / "img"))
    assert found.path(1) == str(tmp_path / "img" / "1.png")
    mixed = read(table(f"path,label\n{tmp_path}/img/0.png,cat\nimg/1.png,dog\n"))
    assert [mixed.path(i) for i in range(2)] == [str(tmp_path / "img" / f"{i}.png") for i in range(2)]


def test_pictures_of_a_table_are_read_with_their_labels_by_any_number_of_workers(table):
    path = table("path,label\n" + "".join(f"img/{i}.png,{i % 3}\n" for i in range(20)))
    found = read(path)
    for workers in (0, 2):
        batches = list(make_loader(Pictures(found, CenterCrop((8, 8))), EvalOrder(20, 8), workers=workers))
        assert [int(x) for b in batches for x in b["images"][0][:, 0, 0, 0]] == list(range(20))
        assert [int(x) for b in batches for x in b["labels"]] == [i % 3 for i in range(20)]
    travelled = pickle.loads(pickle.dumps(found))
    assert pairs(travelled) == pairs(found)


# ---------------------------------------------------------------- several labels a picture


@pytest.mark.parametrize("text", ["a|b,1\n", "a;b,1\n", " a | b ,1\n", "b|a|b,1\n"])
def test_a_cell_of_several_names_is_several_labels_and_an_empty_one_none(table, text):
    lines = ["tags,x,path", *(f"{cell},img/{i}.png" for i, cell in enumerate([text.strip(), ",2", "c,3"]))]
    found = read(table("\n".join(lines)))
    assert found.labels is None
    assert (found.targets.dtype, found.targets.shape) == (np.uint8, (3, 3))
    assert sets(found) == [{"a", "b"}, set(), {"c"}]
    assert found.class_counts().tolist() == [1, 1, 1]
    assert "several labels a picture" in found.notes[1]


def test_the_separator_is_a_key_and_may_be_none(table):
    path = table("path,label\nimg/0.png,a+b;c\nimg/1.png,b\nimg/2.png,\n")
    assert sets(read(path, separator="+")) == [{"a", "b;c"}, {"b"}, set()]
    one = read(path, separator=False)
    assert pairs(one) == [("img/0.png", "a+b;c"), ("img/1.png", "b")]
    assert "1 row without a label left out (line 4)" in one.notes[1]


def test_one_class_is_enough_to_validate_on_and_to_look_at(table):
    path = table("path,label\nimg/0.png,cat\nimg/1.png,cat\n")
    for several in (None, False):
        assert read(path, fewest=1, several=several).labels.tolist() == [0, 0]
        with pytest.raises(UserError, match=r"are of one class \(cat\) in column 'label'; two classes are needed"):
            read(path, several=several)
    assert read(path, several=True).targets.tolist() == [[1], [1]]
    assert read(path, labelled=None).classes == ()
    assert read(table("path,label\nimg/0.png,cat\nimg/1.png,\n"), separator="|").targets.tolist() == [[1], [0]]


def test_columns_of_zeros_and_ones_are_a_class_each(table):
    path = table("path,tail,wings,legs\nimg/0.png,1,0,1\nimg/1.png,0,,True\nimg/2.png,0.0,0,0\n")
    found = read(path, label=("wings", "tail", "legs"))
    assert found.classes == ("wings", "tail", "legs")
    assert found.targets.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    with pytest.raises(UserError, match="tail, wings, legs hold 0 and 1.*name them all in a list"):
        read(table("path,tail,wings,legs\nimg/0.png,1,0,1\nimg/1.png,0,,1\n"))
    with pytest.raises(UserError, match=r"data.columns.label: .* got '-1' in column 'tail' \(line 3\)"):
        read(table("path,tail\nimg/0.png,1\nimg/1.png,-1\n"), label=("tail",))


def test_a_batch_of_several_labels_is_zeros_and_ones_in_float(table):
    found = read(table("path,label\nimg/0.png,a|c\nimg/1.png,b\nimg/x.png,a\nimg/2.png,\n"))
    (batch,) = make_loader(Pictures(found, CenterCrop((8, 8))), EvalOrder(4, 4), workers=0)
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert str(batch["labels"].dtype) == "torch.float32"
    assert batch["broken"] == [(found.path(2), "file is gone")]
    only_broken = next(iter(make_loader(Pictures(found.take([2]), CenterCrop((8, 8))), EvalOrder(1, 1), workers=0)))
    assert (only_broken["images"], tuple(only_broken["labels"].shape)) == ([], (0, 3))


# ---------------------------------------------------------------- what is wrong is told


def test_rows_that_cannot_be_used_are_counted_with_their_lines_in_one_note(table):
    lines = ["path,label", "img/0.png,cat", "img/1.png,dog", "img/1.png,dog", ",dog", "img/2.png,", "img/gone.png,cat", "img/3.png,cat"]
    found = read(table("\n".join(lines)))
    assert pairs(found) == [("img/0.png", "cat"), ("img/1.png", "dog"), ("img/gone.png", "cat"), ("img/3.png", "cat")]
    (note,) = [n for n in found.notes if "left out" in n]
    for part in (
        "1 row without a picture left out (line 5)",
        "1 row without a label left out (line 6)",
        "1 row naming a picture again left out (line 4: img/1.png, as in 3)",
        "1 row whose file is not there, counted as broken (line 7: img/gone.png)",
    ):
        assert part in note


def test_what_no_run_should_go_on_with_comes_in_one_error(table):
    lines = ["path,label", "img/0.png,cat", "img/0.png,dog", "img/1.png,cat,x", "img/2.png", "img/3.png,dog", ",cat"]
    with pytest.raises(UserError) as caught:
        read(table("\n".join(lines)))
    for part in (
        "2 rows with another number of cells than the 2 of the header (lines 4, 5)",
        "1 row without a picture",
        "1 row giving a picture another label than before; all labels of a picture stand in one row, as a|b (line 3: img/0.png, as in 2)",
    ):
        assert part in str(caught.value)


def test_few_missing_files_are_broken_pictures_and_many_are_an_error(table):
    def missing(count):
        return table("path,label\n" + "".join(f"img/{i}.png,{i % 2}\n" for i in range(30 + FORGIVEN + 5 + count))[:])

    assert len(read(missing(FORGIVEN))) == 40 + FORGIVEN
    with pytest.raises(
        UserError, match=rf"{FORGIVEN + 1} rows whose file is not there, more than data.max_broken allows \(0.01\) \(lines 42: "
    ):
        read(missing(FORGIVEN + 1))
    assert len(read(missing(FORGIVEN + 1), max_broken=0.5)) == 41 + FORGIVEN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "has no row with a picture"),
        ("img/0.png,cat\nimg/1.png,dog\n", "the first line of .* names a picture, not columns .*: put `path,label` above it"),
        ("path,label\nimg/0.png,cat\nimg/1.png,cat\n", r"all rows .* are of one class \(cat\) in column 'label'; two classes are needed$"),
        (
            "path,label\nimg/0.png,cat\nimg/1.png,\n",
            "two classes are needed, or say data.label_separator='|' if an empty cell is a picture without",
        ),
        ("path,label\nimg/0.png,\nimg/1.png,\n", "all rows .* are without a label"),
        ("a,b\n1,2\n", r"which column of .* holds the pictures cannot be told \(a, b\); name it with data.columns.path"),
        ("path,a,b\nimg/0.png,x,y\n", "which column holds the labels cannot be told; .*name it with data.columns.label"),
        ("path,label\nimg\\0.png,a\nimg\\1.png,b\n", r"here folders are separated by /, not by \\"),
        ("path,label\nhttp://x/0.png,a\nhttp://x/1.png,b\n", "an address cannot be read: fetch the pictures first"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(table, text, message):
    with pytest.raises(UserError, match=message):
        read(table(text))


def test_files_that_are_no_tables_say_so(table, tmp_path):
    with pytest.raises(UserError, match="is UTF-16; save it as UTF-8"):
        read(table("path,label\nimg/0.png,a\n", encoding="utf-16"))
    table("x", "other.csv")
    with pytest.raises(UserError, match="no file .*nothing.csv; .* holds the tables labels.csv, other.csv"):
        read(str(tmp_path / "nothing.csv"))
    with pytest.raises(UserError, match=r"labels.txt is a file; pictures lie in a folder, .* a table \(.csv, .tsv, .parquet"):
        read(table("x", "labels.txt"))


def test_names_that_are_not_utf8_are_kept(table, tmp_path):
    os.rename(tmp_path / "img" / "0.png", os.fsencode(tmp_path / "img") + b"/caf\xe9.png")
    (tmp_path / "l.csv").write_bytes(b"path,label\nimg/caf\xe9.png,a\nimg/1.png,\xe9\n")
    found = read(str(tmp_path / "l.csv"))
    assert found.name(0) == b"img/caf\xe9.png"
    assert missing_files(found.root, [found.name(i) for i in range(2)]) == []


def test_missing_files_are_found_by_listing_folders_and_by_asking(table, tmp_path):
    names = [f"img/{i}.png".encode() for i in range(45)] + [b"a/1.png", b"img/sub/2.png"]
    assert missing_files(str(tmp_path), names) == list(range(40, 47))
    assert missing_files(str(tmp_path), names[38:42]) == [2, 3]


def test_the_fingerprint_changes_with_a_label_and_with_a_class(table):
    def print_of(text):
        return read(table("path,label\n" + text)).fingerprint()

    texts = ["img/0.png,a\nimg/1.png,b\n", "img/0.png,b\nimg/1.png,a\n", "img/0.png,a\nimg/1.png,c\n", "img/0.png,a|b\nimg/1.png,b\n"]
    assert len({print_of(t) for t in [*texts, *texts]}) == len(texts)


# ---------------------------------------------------------------- parts by a column


def test_a_column_tells_training_from_validation_and_test_is_left_alone(table):
    text = "path,label,Set\nimg/0.png,a,train\nimg/1.png,b,Training\nimg/2.png,b,valid\nimg/3.png,a,DEV\nimg/nothing.png,c,test\n"
    train, val = read_split(table(text))
    assert pairs(train) == [("img/0.png", "a"), ("img/1.png", "b")]
    assert pairs(val) == [("img/2.png", "b"), ("img/3.png", "a")]
    assert train.classes == val.classes == ("a", "b")
    assert (
        "parts from column 'Set': train (1 row), Training (1 row), valid (1 row), DEV (1 row), test (1 row); 1 row for test left alone"
        in train.notes[1]
    )


def test_test_serves_where_nothing_is_for_validation(table):
    train, val = read_split(table("path,label,fold\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,b,test\n"), split="fold")
    assert (len(train), pairs(val)) == (2, [("img/2.png", "b")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("train", "train", "val2"), r"tells parts by other names than .*: it holds train \(2 rows\), val2 \(1 row\)"),
        (("train", "", "val"), r"tells parts by other names .*\(nothing\) \(1 row\)"),
        (("train", "train", "train"), "no row of .* has one of val, valid, validation, dev, test, testing in column 'split'"),
        (("val", "val", "val"), "no row of .* has one of train, training in column 'split'"),
    ],
)
def test_other_names_of_parts_are_an_error_that_lists_them(table, values, message):
    rows = "".join(f"img/{i}.png,{'ab'[i % 2]},{value}\n" for i, value in enumerate(values))
    with pytest.raises(UserError, match=message):
        read_split(table("path,label,split\n" + rows))


def test_a_picture_of_both_parts_is_an_error(table):
    text = "path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/1.png,b,val\n"
    with pytest.raises(UserError, match=r"1 row naming a picture of the other part again .*\(line 4: img/1.png, as in 3\)"):
        read_split(table(text))


def test_a_part_without_any_label_is_an_error(table):
    with pytest.raises(UserError, match="no row of .* for validation has a label"):
        read_split(table("path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,,val\n"))


def test_without_a_column_of_parts_the_cures_are_named(table):
    with pytest.raises(UserError, match=r"data.val: is missing, and .* has no column .*a share such as 0.2; .*data.columns.split"):
        read_split(table("path,label\nimg/0.png,a\nimg/1.png,b\n"))


def test_a_column_of_parts_is_looked_at_where_the_recipe_names_it(table):
    path = table("path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,a,val\n")
    whole, part = read(path), read(path, split="split")
    assert (len(whole), len(part)) == (3, 2)
    assert "all rows of" in whole.notes[1]
    assert len(read(table("path,split\nimg/0.png,train\nimg/1.png,val\n"), labelled=False, split="split")) == 1


def test_a_look_finds_what_is_wrong_with_the_whole_and_stops_at_the_first_picture(table):
    look = partial(look_into, settings=TableSettings(), key="data.train", labelled=True, split=False)
    look(table("path,label\ngone.png,a\nimg/1.png,b\nbroken"))  # the last line is told when the table is read
    with pytest.raises(UserError, match="none of the 2 files"):
        look(table("path,label\ngone.png,a\nnone.png,b\n"))
    with pytest.raises(UserError, match=r"data.val: is missing"):
        look(table("path,label\nimg/0.png,a\n"), split=True)


def test_the_millions_of_a_table_are_arrays_and_not_objects(table):
    path = table("path,label\n" + "".join(f"img/{i % 40}.png{'' if i < 40 else 'x' * i},{i % 7}\n" for i in range(400)))
    found = read(path, max_broken=1.0)
    assert len(found) == 400
    kept = [v for v in vars(found).values() if isinstance(v, (list, dict, set))]
    assert kept == []
    assert sum(map(sys.getsizeof, (found.classes, found.notes))) < 400
