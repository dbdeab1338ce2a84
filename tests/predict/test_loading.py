"""What can be loaded, and what is said of what cannot."""

import json

import pytest
import timm
import torch

import visiontune
from tests.conftest import JOINT, VIT, make_joint
from visiontune.__main__ import main
from visiontune.backbones import create, embed
from visiontune.errors import UserError
from visiontune.export import export_weights_file, image_statistics, save_timm_folder
from visiontune.predict import load, load_or_create
from visiontune.verbs.models import _device

SWIN = {"name": "swin_tiny_patch4_window7_224"}
SWIN["args"] = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}


def masked(name):
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    predictor = {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, "target_scale": 0.15}
    if name == "mae":
        return visiontune.MAE(VIT["name"], backbone_args=VIT["args"], image_size=32, **decoder)
    if name == "ijepa":
        return visiontune.IJEPA(VIT["name"], backbone_args=VIT["args"], image_size=32, **predictor)
    if name == "simmim":
        return visiontune.SimMIM(SWIN["name"], backbone_args=SWIN["args"], image_size=32, mask_size=8)
    return visiontune.SparK("resnet10t", backbone_args={"channels": [8, 8, 16, 16]}, image_size=64, decoder_dim=16)


@pytest.mark.parametrize("method", [*JOINT, "mae", "ijepa", "simmim", "spark"])
def test_what_a_method_exports_embeds_pictures_as_its_module_did(method, tmp_path):
    """`represent` is the one definition of the embedding: it survives release, export and loading."""
    torch.manual_seed(0)
    if method in JOINT:
        module = make_joint(method, VIT["name"], backbone_args=VIT["args"], image_size=32)
    else:
        module = masked(method)
    module.eval()
    images = torch.randint(0, 256, (3, 3, *module.picture_size), dtype=torch.uint8)
    with torch.no_grad():
        expected = module.represent(images)
        mean, std = image_statistics(module)
        save_timm_folder(module.release(), tmp_path, module.spec, mean=mean, std=std)
        model = load(tmp_path)
        assert model.image_size == module.picture_size
        assert model.class_names == ()
        torch.testing.assert_close(model.embed(images), expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model(images), expected, atol=2e-5, rtol=1e-4)


def test_a_timm_name_embeds_as_timm_does_and_takes_a_weights_file(tmp_path):
    torch.manual_seed(0)
    network = create("test_vit", image_size=64)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model = load_or_create("test_vit", weights=str(tmp_path / "w.pt"), image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(images), embed(network.eval(), images))
    assert model.mean.flatten().tolist() == pytest.approx(network.pretrained_cfg["mean"])
    assert model.view.share == network.pretrained_cfg["crop_pct"]


def test_a_file_of_other_tensors_than_it_says_is_refused(tuned, tmp_path):
    model = load(tuned)
    export_weights_file(model.network, model.config | {"architecture": "test_vit", "model_args": {}}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="are not those of test_vit, which it says it is"):
        load(tmp_path / "w.safetensors")


def test_what_cannot_be_loaded_is_named(tmp_path, tuned, mixed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half/recipe.yaml").write_text("task: classify\n")
    (tmp_path / "w.pt").write_bytes(b"x")
    for path, message in (
        ("flower", "load: flower is not there; did you mean 'flowers'?; give a finished run"),
        ("half/x", "load: half/x is not there; half holds recipe.yaml; give a finished run"),
        ("flowers", "holds no recipe.yaml, and no config.json with model.safetensors"),
        ("half", "the run half is not finished, and has no backbone; python -m visiontune.fit --resume half"),
        ("w.pt", "does not tell which network it is of"),
    ):
        with pytest.raises(UserError) as raised:
            load(path)
        assert message in str(raised.value)
    with pytest.raises(UserError, match="--device: got 'cuda:99'|--device: got 'gpu'"):
        load(tuned, device="gpu")
    with pytest.raises(UserError, match="embed: rsnet18 is no run, folder or file here, and timm .* did you mean 'resnet18'"):
        load_or_create("rsnet18")
    for weights in ("timm", "random"):
        with pytest.raises(UserError, match="--weights is for backbones by name"):
            load_or_create(str(tuned), weights=weights)


def test_a_backbone_by_name_has_timms_weights_unless_others_are_named(mixed, tmp_path, monkeypatch, capsys):
    """As in `probe`: random ones must be asked for."""
    asked = []

    def create(name, *, pretrained=False, **more):
        asked.append(pretrained)
        return timm.create_model(name, num_classes=0)

    monkeypatch.setattr("visiontune.backbones.create", create)
    for more in ([], ["--weights", "timm"], ["--weights", "random"]):
        assert main(["embed", "test_vit", str(mixed / "01.png"), "--out", str(tmp_path / "e.npz"), *more]) == 0
    assert asked == [True, True, False]


def test_timms_weights_that_cannot_be_fetched_are_told_with_what_to_take_instead(mixed, tmp_path, monkeypatch, capsys):
    def create_model(name, pretrained=False, **more):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", create_model)
    assert main(["embed", "test_vit", str(mixed), "--out", str(tmp_path / "e.npz")]) == 2
    error = capsys.readouterr().err
    assert "timm could not fetch weights for test_vit (no network); without a network, give a weights file, or random" in error
    assert len(error.splitlines()) == 1


def test_the_verbs_end_in_one_sentence(tuned, mixed, tmp_path, make_exported, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    backbone = make_exported(num_classes=0)
    for words, message in (
        (("predict", tuned, "photoz"), "predict: no file or folder photoz; "),
        (("predict", tuned, mixed, "--top", "9"), "predict: got top=9; expected a number from 1 to 4"),
        (("predict", backbone, mixed), "these weights have no classifier"),
        (("predict", tuned, mixed, "--device", "tpu9"), "--device: got 'tpu9'; "),
        (("embed", tuned, mixed, "--out", "e.npy"), "--out: got e.npy; expected a name that ends in .npz, .parquet, .csv"),
        (("embed", tuned, mixed / "00.png", "--out", "e.npz"), "embed: no picture could be read"),
        (("export", tuned, "safetensors", "--dynamic"), "export: --dynamic is for onnx alone"),
        (("export", tuned, "onnx", "--opset", "9"), "--opset: got 9; expected a number from 18 to 23"),
        (("export", tuned, "onnx", "--out", "no/such/m.onnx"), "--out: there is no folder no/such"),
    ):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_config_json_says_nothing_of_what_is_usual(tuned, make_exported):
    assert not {"labels", "temperature", "thresholds"} & json.loads((tuned / "config.json").read_text()).keys()
    model = load(make_exported(labels="multi", temperature=1.5, thresholds=[0.25] * 4))
    assert (model.several, model.temperature, model.thresholds.tolist()) == (True, 1.5, [0.25] * 4)


NO_CUDA = "--device: got 'cuda:0', but onnxruntime's CUDAExecutionProvider does not start here; do this"


@pytest.mark.parametrize(
    ("fastest", "problem", "chosen", "note"),
    [
        ("cuda:0", NO_CUDA, "cpu", "onnxruntime's CUDAExecutionProvider does not start here; do this"),
        ("mps", None, "cpu", "onnxruntime does not compute on mps"),
        ("cuda:0", "load: there is no file flowers.onnx", "cpu", None),  # told when it is loaded
        ("cuda:0", None, "cuda:0", None),
        ("cpu", None, "cpu", None),
    ],
)
def test_an_onnx_file_is_given_a_device_that_onnxruntime_has_and_another_than_torchs_is_told(
    monkeypatch, capsys, fastest, problem, chosen, note
):
    def open_session(path, device):
        if problem:
            raise UserError(problem)

    monkeypatch.setattr("visiontune.predict.devices", lambda: [fastest])
    monkeypatch.setattr("visiontune.export.onnx_session.open_session", open_session)
    assert _device("auto", "flowers.onnx") == chosen
    assert capsys.readouterr().err == (f"note: --device auto: flowers.onnx is computed on the CPU: {note}\n" if note else "")
    assert _device("auto", "runs/flowers") == fastest
    assert _device("cuda:1", "flowers.onnx") == "cuda:1"
