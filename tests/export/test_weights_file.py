"""One safetensors file, or a folder, that others load."""

import pytest
import safetensors.torch
import timm
import torch

from tests.conftest import CONV
from visiontune.__main__ import main
from visiontune.backbones import create, load_weights, spec_of
from visiontune.errors import UserError
from visiontune.export import export_weights_file, save_timm_folder
from visiontune.predict import load

NAMES = ["ash", "birch", "cedar"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = create(CONV["name"], image_size=32, num_classes=3, args=CONV["args"])
    folder, facts = tmp_path / "model", {"num_classes": 3, "class_names": NAMES, "temperature": 2.0}
    save_timm_folder(network, folder, network.spec, mean=[0.5] * 3, std=[0.5] * 3, **facts)
    return folder


def test_one_file_gives_the_same_model_by_visiontune_and_by_plain_timm(folder, capsys):
    assert main(["export", str(folder), "safetensors"]) == 0
    file = folder.with_name("model.safetensors")
    assert capsys.readouterr().out == f"{file}\n"
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole, alone = load(folder), load(file)
    assert alone.class_names == tuple(NAMES)
    assert (alone.image_size, alone.temperature, alone.config) == ((32, 32), 2.0, whole.config)
    assert alone(images).equal(whole(images))
    plain = timm.create_model(CONV["name"], checkpoint_path=str(file), num_classes=3, **CONV["args"]).eval()
    assert plain((images / 255 - 0.5) / 0.5).equal(whole(images))
    backbone = create(CONV["name"], image_size=32, args=CONV["args"])
    load_weights(backbone, file)
    assert backbone.stages[0].blocks[0].mlp.fc1.weight.equal(whole.network.stages[0].blocks[0].mlp.fc1.weight)


def test_a_folder_is_written_where_the_name_is_none_of_a_file(folder, tmp_path):
    assert main(["export", str(folder), "safetensors", "--out", str(tmp_path / "copy")]) == 0
    images = torch.randn(2, 3, 32, 32)
    plain = timm.create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True).eval()
    assert plain(images).equal(load(folder)(images))
    assert load(tmp_path / "copy").class_names == tuple(NAMES)


def test_a_small_stem_travels_in_one_file(tmp_path):
    network = create("resnet10t", image_size=32, num_classes=2, args={"channels": [8, 8, 16, 16]}, stem="small").eval()
    save_timm_folder(network, tmp_path / "model", spec_of(network), mean=[0.5] * 3, std=[0.5] * 3, num_classes=2, class_names=["a", "b"])
    model = load(tmp_path / "model")
    file = export_weights_file(model.network, model.config, tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert load(file)(images).equal(network(images))
    other = create("resnet10t", image_size=32, args={"channels": [8, 8, 16, 16]})
    with pytest.raises(UserError, match="was made with the stem 'small'"):
        load_weights(other, file)


def test_half_precision_halves_the_bytes_and_loads(folder, tmp_path):
    sizes, images = [], torch.randn(2, 3, 32, 32)
    for name, more in (("full", []), ("half", ["--fp16"])):
        file = tmp_path / f"{name}.safetensors"
        assert main(["export", str(folder), "safetensors", "--out", str(file), *more]) == 0
        sizes.append(sum(t.nbytes for t in safetensors.torch.load_file(file).values()))
    assert sizes[1] * 2 == sizes[0]
    torch.testing.assert_close(load(tmp_path / "half.safetensors")(images), load(folder)(images), atol=1e-3, rtol=1e-2)
    model = load(folder)
    torch.nn.init.constant_(model.network.head.fc.bias, 1e6)
    with pytest.raises(UserError, match="head.fc.bias has weights above 65,504"):
        export_weights_file(model.network, model.config, tmp_path / "large.safetensors", fp16=True)
    assert not (tmp_path / "large.safetensors").exists()


def test_what_is_there_is_not_overwritten(folder, capsys):
    for out in (folder, folder / "config.json"):
        assert main(["export", str(folder), "safetensors", "--out", str(out)]) == 2
        assert f"{out} is there already; give another name with --out" in capsys.readouterr().err


def test_the_same_weights_give_the_same_bytes(folder, tmp_path):
    model = load(folder)
    written = [export_weights_file(model.network, model.config, tmp_path / f"{i}.safetensors").read_bytes() for i in range(4)]
    assert len(set(written)) == 1
