"""`python -m visiontune probe`, as it is typed."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from visiontune import backbones, build
from visiontune.__main__ import main
from visiontune.export import save_timm_folder
from visiontune.fit import main as fit
from visiontune.probe import labelled_recipe, prepare
from visiontune.recipe import parse_recipe


def small(pictures, *more):
    return ["probe", "test_resnet", str(pictures / "train"), "--weights", "random", "--at", "32", *more]


def test_all_probes_are_scored_and_the_second_time_no_picture_is_embedded(tmp_path, pictures, capsys, monkeypatch):
    monkeypatch.setenv("VISIONTUNE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "scores.csv"
    command = small(pictures, "--val", str(pictures / "val"), "--shots", "1", "3", "30", "--csv", str(out))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("kept in") == 2
    assert "few labels: 30 a class left out, the smallest class has 24 pictures" in said
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["probe"], r["pictures"]) for r in rows] == [("knn", "48"), ("linear", "48"), ("few", "2"), ("few", "6")]
    for row in rows:
        top1, M = float(row["top1"]), 16
        assert row["val_pictures"] == "16"
        assert 0.2 < top1 <= 1
        assert float(row["standard_error"]) == pytest.approx((top1 * (1 - top1) / M) ** 0.5, abs=1e-4)
        assert row["weights"] == "random"
    assert {r["draws"] for r in rows if r["probe"] == "few"} == {"10"}

    monkeypatch.setattr("visiontune.probe.embed_all", None)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.count("read from") == 2
    assert again.splitlines()[-6:] == said.splitlines()[-6:]
    monkeypatch.undo()


def test_a_run_brings_its_network_and_is_better_than_the_same_network_at_random(tmp_path, pictures, recipes, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipes["classify"] | {"epochs": 12}))
    assert fit([str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]) == 0
    top1 = {}
    for name, more in (("trained", []), ("random", ["--weights", "random"])):
        out = tmp_path / f"{name}.csv"
        words = ["probe", str(tmp_path / "run"), str(pictures / "train"), "--val", str(pictures / "val"), "--probes", "linear"]
        assert main([*words, *more, "--csv", str(out)]) == 0
        said = capsys.readouterr().out
        assert "convnext_atto, embedding of 32, pictures of 32x32" in said
        with out.open() as file:
            (row,) = csv.DictReader(file)
        top1[name] = float(row["top1"])
    assert top1["trained"] > top1["random"]


def test_embeddings_are_those_of_plain_timm_behind_its_normalisation(tmp_path, pictures, capsys, monkeypatch):
    import numpy as np
    import safetensors.torch
    import timm
    from PIL import Image

    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=7)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setenv("VISIONTUNE_CACHE", str(tmp_path / "cache"))
    words = ["probe", "test_resnet", str(pictures / "train"), "--weights", str(tmp_path / "w.safetensors"), "--at", "32"]
    assert main([*words, "--val", str(pictures / "val"), "--probes", "knn"]) == 0
    kept = [safetensors.torch.load_file(f)["embeddings"] for f in (tmp_path / "cache" / "embeddings").iterdir()]
    (x,) = [k for k in kept if len(k) == 16]
    files = sorted((pictures / "val").rglob("*.png"))
    images = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        truth = backbones.embed(model.eval(), (images - mean) / std)
    assert torch.allclose(x, truth, atol=1e-5)


@pytest.mark.parametrize("told", [True, False])
def test_a_weights_file_of_a_named_backbone_is_probed_at_the_size_that_it_is_tuned_at(tmp_path, pictures, told):
    model = backbones.create("test_resnet", image_size=32)
    save_timm_folder(model, tmp_path / "made", model.spec, mean=[0.5] * 3, std=[0.5] * 3)
    if not told:
        (tmp_path / "made" / "config.json").unlink()
    file = str(tmp_path / "made" / "model.safetensors")
    size = 32 if told else 160  # what the config beside it says, else timm
    probed = labelled_recipe("test_resnet", str(pictures / "train"), weights=file)
    assert prepare(probed).recipe.data.image_size == size
    raw = {"task": "classify", "backbone": {"name": "test_resnet", "weights": file}}
    tuned = parse_recipe(raw | {"data": {"train": str(pictures / "train"), "val": str(pictures / "val"), "batch_size": 8}}).single
    assert build.derive(tuned, build.find_pictures(tuned), 1)[0].data.image_size == size


def test_a_broken_picture_is_left_out_and_told(tmp_path, pictures, capsys):
    shutil.copytree(pictures / "train", tmp_path / "photos")
    (tmp_path / "photos" / "lying" / "000.png").write_bytes(b"")
    words = ["probe", "test_resnet", str(tmp_path / "photos"), "--weights", "random", "--at", "32", "--val", str(pictures / "val")]
    assert main([*words, "--probes", "knn"]) == 0
    said = capsys.readouterr().out
    assert "cannot be read: " in said
    assert "lying/000.png (empty file" in said
    assert "left out: 1 picture of " in said
    assert "47" in said.splitlines()[-2]


def test_weights_that_diverged_have_no_score(tmp_path, pictures, capsys):
    import timm

    model = timm.create_model("test_resnet", num_classes=0)
    with torch.no_grad():
        model.conv1[0].weight[0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    words = ["probe", "test_resnet", str(pictures / "train"), "--weights", str(tmp_path / "w.pt"), "--at", "32"]
    assert main(words) == 2
    assert "error: probe: the embeddings of 38 of 38 pictures are not finite; its weights diverged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "resnet19", "TRAIN"], "probe: got 'resnet19', which is no folder, and timm "),
        (["probe", "resnet19", "TRAIN"], "did you mean 'resnet1"),
        (["probe", "test_resnet", "TRAIN/lying", "--weights", "random"], "has no class folders"),
        (["probe", "test_resnet", "/no/photos", "--weights", "random"], "data.train: no folder /no/photos"),
        (["probe", "test_resnet", "TRAIN/..", "--weights", "random"], "/train --val "),
        (["probe", "test_resnet", "TRAIN", "--weights", "w.pth"], "backbone.weights: no file or folder 'w.pth'"),
        (["probe", "test_resnet", "TRAIN", "--weights", "random", "--probes", "kn"], "--probes: got 'kn'; allowed: knn, linear, few"),
        (["probe", "TRAIN", "TRAIN"], "is neither a run with weights nor a folder with config.json"),
        *(
            (
                ["probe", "test_resnet", "TRAIN", "--val", val],
                f"--val: got {val}; expected a share between 0 and 1, or pictures, and there is no folder",
            )
            for val in ("1.5", "0", "1", "-0.2", "2012", "nan")
        ),
        (["probe", "test_resnet", "TRAIN", "--shots", "0"], "--shots: got 0; expected numbers of labelled pictures of each class, 1 or"),
        (["probe", "test_resnet", "TRAIN", "--shots", "1", "-3", "0"], "--shots: got -3, 0; expected"),
        (["probe", "test_resnet", "TRAIN", "--weights", "random", "data.sizes=3"], "data.sizes: unknown key"),
    ],
)
def test_mistakes_are_one_sentence(pictures, capsys, words, message):
    assert main([w.replace("TRAIN", str(pictures / "train")) for w in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_folder_whose_name_is_a_number_is_a_folder(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("2012", "1", "0.25"):
        Path(name).symlink_to(pictures / "val")
    for val, count in (("2012", 16), ("1", 16), ("./0.25", 16), ("0.25", 12), ("25e-2", 12)):
        assert main(small(pictures, "--probes", "knn", "--val", val)) == 0
        assert f"of {count} validation pictures" in capsys.readouterr().out


def test_a_weights_file_in_the_backbones_place_is_told_what_to_do(tmp_path, pictures, capsys):
    (tmp_path / "w.pth").write_bytes(b"x")
    assert main(["probe", str(tmp_path / "w.pth"), str(pictures / "train")]) == 2
    assert f"give the timm name of its network, and --weights {tmp_path}/w.pth" in capsys.readouterr().err
