import os
from dataclasses import replace

import pytest
import torch

from visiontune.data.folder import list_pictures
from visiontune.evaluate.cache import cached, network_key, pictures_key, shrink


def made(counter, value=1.0):
    def make():
        counter.append(1)
        return torch.full((3, 2), value), torch.arange(3)

    return make


def test_what_was_made_is_read_again_and_made_anew_where_it_is_asked_or_cannot_be_read(tmp_path):
    calls = []
    x, pictures, where = cached(tmp_path / "c", "key", made(calls))
    (file,) = (tmp_path / "c").iterdir()
    assert where == f"kept in {file}"
    again, same, where = cached(tmp_path / "c", "key", made(calls, 2.0))
    assert (len(calls), where) == (1, f"read from {file}")
    assert torch.equal(x, again)
    assert torch.equal(pictures, same)
    assert cached(tmp_path / "c", "key", made(calls, 2.0), fresh=True)[0][0, 0] == 2
    cached(tmp_path / "c", "another key", made(calls))
    assert len(calls) == 3
    file.write_bytes(file.read_bytes()[:50])
    assert cached(tmp_path / "c", "key", made(calls, 4.0))[0][0, 0] == 4
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_told_and_costs_nothing_else(tmp_path):
    (tmp_path / "c").write_text("a file")
    x, _, where = cached(tmp_path / "c", "key", made([]))
    assert x.shape == (3, 2)
    assert "set VISIONTUNE_CACHE" in where


@pytest.mark.parametrize("change", ["weight", "name", "shape", "setting", "type"])
def test_the_key_of_a_network_changes_with_anything(change):
    tensors, settings = {"a.weight": torch.zeros(2, 3), "a.count": torch.tensor(0)}, {"size": [32, 32]}
    before = network_key(tensors, settings)
    assert before == network_key({k: v.clone() for k, v in tensors.items()}, {"size": (32, 32)})
    if change == "weight":
        tensors["a.weight"][1, 2] = 1e-30
    elif change == "name":
        tensors = {k.replace("a", "b"): v for k, v in tensors.items()}
    elif change == "shape":
        tensors["a.weight"] = tensors["a.weight"].T
    elif change == "type":
        tensors["a.weight"] = tensors["a.weight"].half()
    else:
        settings = {"size": [32, 33]}
    assert network_key(tensors, settings) != before


def test_the_key_of_pictures_changes_when_one_is_written_again_and_not_with_labels(tmp_path, pictures):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((pictures / "train" / "lying" / f"00{i}.png").read_bytes())
    table = list_pictures(tmp_path)
    before = pictures_key(table)
    assert pictures_key(replace(table, labels=torch.arange(3).numpy(), mapped=None)) == before
    os.utime(tmp_path / "1.png", (1, 1))
    assert pictures_key(table) != before
    (tmp_path / "1.png").unlink()
    assert pictures_key(table) != before


def test_the_folder_keeps_what_was_used_last_within_its_limit(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.safetensors").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{i}.safetensors", (i, i))
    shrink(tmp_path, 250)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["2", "3"]
    shrink(tmp_path, 50)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["3"]
