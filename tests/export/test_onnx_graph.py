"""ONNX files against PyTorch, through onnxruntime."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.conftest import CONV, VIT
from visiontune.__main__ import main
from visiontune.backbones import create
from visiontune.errors import UserError
from visiontune.export import export_onnx, onnx_graph, onnx_session, save_timm_folder
from visiontune.predict import OnnxModel, load

SWIN = {"name": "swin_tiny_patch4_window7_224"}
SWIN["args"] = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
SAME = {"name": "tf_mobilenetv3_small_minimal_100", "args": {}}  # pads by the size of the picture, as TensorFlow does
NAMES = ["ash", "birch", "cedar", "douglas fir"]


def exported(folder, backbone=CONV, num_classes=4, **more):
    torch.manual_seed(0)
    network = create(backbone["name"], image_size=32, num_classes=num_classes, args=backbone["args"])
    names = {"num_classes": num_classes, "class_names": NAMES[:num_classes]} if num_classes else {}
    save_timm_folder(network, folder, network.spec, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], **names, **more)
    return load(folder)


def pixels(count, size=(32, 32)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("backbone", [CONV, SAME, VIT, SWIN], ids=lambda b: b["name"])
def test_outputs_are_pytorchs_for_any_number_of_pictures(backbone, tmp_path):
    model = exported(tmp_path / "model", backbone)
    done = export_onnx(model.network, model.config, tmp_path / "m.onnx")
    assert done.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    mean, std = np.array([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1), np.array([0.2, 0.25, 0.3]).reshape(1, 3, 1, 1)
    for B in (1, 2, 7):
        images = pixels(B)
        with torch.no_grad():
            expected = model(images).numpy()
        (got,) = session.run(["logits"], {"pictures": ((images.numpy() / 255 - mean) / std).astype(np.float32)})
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_an_exported_run_predicts_as_the_run_does_and_tells_what_it_is(tmp_path, pictures, capsys):
    model = exported(tmp_path / "model", temperature=1.7)
    assert main(["export", str(tmp_path / "model"), "onnx", "--with-preprocessing", "nhwc"]) == 0
    file = tmp_path / "model.onnx"
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: ")
    assert "outputs differ from PyTorch's by " in said
    other = load(file)
    assert isinstance(other, OnnxModel)
    assert (other.class_names, other.image_size, other.temperature) == (tuple(NAMES), (32, 32), 1.7)
    for tta in (False, True):
        ours, theirs = (list(m.predict(pictures / "val", top=4, tta=tta)) for m in (model, other))
        assert [(p.path, p.labels) for p in ours] == [(p.path, p.labels) for p in theirs]
        assert [p.scores for p in theirs] == [pytest.approx(p.scores, abs=1e-5) for p in ours]
    assert main(["predict", str(file), str(pictures / "val"), "--csv", str(tmp_path / "out.csv")]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 17
    facts = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert json.loads(facts["class_names"]) == NAMES
    assert [json.loads(facts[k]) for k in ("image_size", "mean", "std", "temperature")] == [
        [32, 32],
        [0.4, 0.5, 0.6],
        [0.2, 0.25, 0.3],
        1.7,
    ]
    assert (facts["input"], facts["output"], facts["labels"]) == ("nhwc", "logits", "single")


@pytest.mark.parametrize("kind", ["nchw", "nhwc"])
def test_pixels_are_normalised_inside_where_it_is_asked_for(tmp_path, kind):
    model = exported(tmp_path / "model", VIT)
    export_onnx(model.network, model.config, tmp_path / "m.onnx", input=kind)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images = pixels(3)
    with torch.no_grad():
        expected = model(images).numpy()
    given = images.numpy() if kind == "nchw" else images.permute(0, 2, 3, 1).contiguous().numpy()
    np.testing.assert_allclose(session.run(None, {"pictures": given})[0], expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    with pytest.raises(UserError, match="normalises pictures itself, and takes uint8; got torch.float32"):
        load(tmp_path / "m.onnx")(torch.zeros(1, 3, 32, 32))


def test_a_backbone_gives_its_embedding_and_a_classifiers_file_has_none(tmp_path):
    backbone = exported(tmp_path / "backbone", VIT, num_classes=0)
    export_onnx(backbone.network, backbone.config, tmp_path / "b.onnx")
    images = pixels(2)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "b.onnx").embed(images), backbone.embed(images), atol=1e-5, rtol=1e-4)
    tuned = exported(tmp_path / "model", VIT)
    export_onnx(tuned.network, tuned.config, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="m.onnx ends in a classifier"):
        load(tmp_path / "m.onnx").embed(images)


def test_dynamic_takes_other_sizes_and_is_refused_where_the_network_has_one(tmp_path):
    model = exported(tmp_path / "model")
    export_onnx(model.network, model.config, tmp_path / "m.onnx", dynamic=True)
    images = pixels(2, (48, 80))
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(load(tmp_path / "m.onnx")(images), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    fixed = exported(tmp_path / "vit", VIT)
    with pytest.raises(UserError, match="cannot export vit_tiny_patch16_224 for pictures of any size; leave --dynamic out"):
        export_onnx(fixed.network, fixed.config, tmp_path / "v.onnx", dynamic=True)


def test_half_precision_is_half_the_size_and_near(tmp_path):
    model = exported(tmp_path / "model", VIT)
    full = export_onnx(model.network, model.config, tmp_path / "m.onnx")
    half = export_onnx(model.network, model.config, tmp_path / "h.onnx", fp16=True)
    assert half.size < 0.7 * full.size
    assert 1e-6 < half.difference < 1e-2
    assert next(model.network.parameters()).dtype == torch.float32


def test_a_file_that_differs_does_not_get_the_name_and_is_not_thrown_away(tmp_path, monkeypatch, capsys):
    exported(tmp_path / "model")
    inner = onnx_graph.trace

    def wrong(graph, *args):
        with torch.no_grad():
            graph.network.head.fc.bias += 0.01
        return inner(graph, *args)

    monkeypatch.setattr(onnx_graph, "trace", wrong)
    assert main(["export", str(tmp_path / "model"), "onnx"]) == 2
    error = capsys.readouterr().err
    assert "error: export: the ONNX file's outputs differ from PyTorch's by " in error
    assert "more than 1e-04; it is kept as" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "model.onnx").exists()
    assert (tmp_path / "model.differs.onnx").is_file()


def test_the_file_names_no_place_and_is_the_same_each_time(tmp_path):
    model = exported(tmp_path / "model", VIT)
    for name in ("a", "b"):
        export_onnx(model.network, model.config, tmp_path / f"{name}.onnx")
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data
    assert str(tmp_path).encode() not in data


def test_what_is_there_is_kept_and_missing_packages_are_named(tmp_path, monkeypatch):
    model = exported(tmp_path / "model")
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(UserError, match="m.onnx is there already"):
        export_onnx(model.network, model.config, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="onnxruntime cannot read"):
        load(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    with pytest.raises(UserError, match="load: there is no file"):
        load(tmp_path / "gone.onnx")
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="ONNX needs onnxscript, onnxruntime; pip install 'visiontune\\[onnx\\]'"):
        export_onnx(model.network, model.config, tmp_path / "n.onnx")
    with pytest.raises(UserError, match="needs onnxruntime; pip install 'visiontune\\[onnx\\]'"):
        load(tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_that_onnxruntime_does_not_compute_on_is_told_with_what_to_install(tmp_path, monkeypatch):
    """It takes the CPU without a word where CUDA's libraries do not load, though it lists the provider."""
    model = exported(tmp_path / "model")
    export_onnx(model.network, model.config, tmp_path / "m.onnx")
    there = onnxruntime.get_available_providers()
    if onnx_session.CUDA_PROVIDER in there:
        pytest.skip("this onnxruntime computes by CUDA")
    with pytest.raises(
        UserError, match=r"--device: got 'cuda', and this .* alone; pip uninstall onnxruntime, then pip install 'onnxruntime-"
    ):
        load(tmp_path / "m.onnx", device="cuda")
    with pytest.raises(UserError, match="--device: got 'mps', and this onnxruntime computes by .* alone; take --device cpu"):
        load(tmp_path / "m.onnx", device="mps")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnx_session.CUDA_PROVIDER, *there])
    with pytest.raises(UserError, match="got 'cuda:0', but onnxruntime's CUDAExecutionProvider does not start here; pip uninstall"):
        load(tmp_path / "m.onnx", device="cuda:0")
    device, why = onnx_session.fastest_device(tmp_path / "m.onnx", "cuda:0")
    assert (device, why.partition(";")[0]) == ("cpu", "onnxruntime's CUDAExecutionProvider does not start here")
    (tmp_path / "bad.onnx").write_text("mine")
    with pytest.raises(UserError, match="--device: got 'cuda:1', but onnxruntime cannot open there"):
        load(tmp_path / "bad.onnx", device="cuda:1")
