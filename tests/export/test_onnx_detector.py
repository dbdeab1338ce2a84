"""Detectors as ONNX files against PyTorch, through onnxruntime."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import visiontune
from tests.conftest import CONV
from visiontune import Detector
from visiontune.__main__ import main
from visiontune.boxes import FILL
from visiontune.errors import UserError
from visiontune.export import export_detector_onnx, image_statistics, onnx_detector, save_detector_folder
from visiontune.export.onnx_compare import compare_detections, compare_everywhere, scenes
from visiontune.export.onnx_file import Differs
from visiontune.heads.dense import Limits
from visiontune.predict import OnnxDetector

NAMES = ["cat", "dog", "elk"]
DETRS = ("dfine", "rtdetrv2", "deimv2")


def exported(folder, head="fcos", **more):
    """A folder of random weights that find much, as a run leaves it."""
    torch.manual_seed(0)
    options = {"head": head, "pyramid_width": 64, "max_detections": 20, **more}
    if head == "fcos":
        options["head_args"] = {"convolutions": 1}
    if head in DETRS:
        options["head_args"] = {"hidden": 32, "decoder_layers": 2, "queries": 30, "denoising": 0}
    args = {"num_classes": len(NAMES), "class_names": NAMES, "freeze_batch_norms": False, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    detector = Detector(CONV["name"], backbone_args=CONV["args"], image_size=64, **options, **args).eval()
    with torch.no_grad():
        for name, weights in detector.head.named_parameters():
            if ".conv." in name and weights.ndim == 4:
                torch.nn.init.kaiming_normal_(weights)  # RetinaNet's begin so small that all scores are one
            elif name.endswith(("cls_logits.weight", "bbox_reg.weight")):
                weights.normal_(std=0.05)
            elif name.endswith("cls_logits.bias"):
                weights.fill_(-1.0)
            elif "enc_score_head" in name or "class_embed" in name:
                weights.normal_(std=0.5)
    mean, std = image_statistics(detector)
    facts = {"options": options, "mean": mean, "std": std, "class_names": NAMES, "shown_from": 0.2}
    save_detector_folder(detector.trained, folder, detector.spec, **facts)
    return visiontune.load(folder)


def agree(ours, theirs):
    """The same boxes in any order: scores that are nearly equal may change places."""
    assert len(ours) == len(theirs) > 0
    same = (ours.labels[:, None] == theirs.labels) & ((ours.scores[:, None] - theirs.scores).abs() < 1e-4)
    apart = (ours.xyxy[:, None] - theirs.xyxy).abs().amax(dim=-1)  # pixels; not IoU, for boxes in what is filled up have no area outside
    assert apart.where(same, torch.inf).amin(dim=1).max() < 0.01


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(64, 64), (90, 50), (40, 70)]):
        Image.fromarray(scenes(i + 1, 3, size)[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def test_a_file_with_nms_inside_predicts_as_the_run_does_and_tells_what_it_is(tmp_path, photos, capsys):
    model = exported(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "onnx", "--with-preprocessing", "nhwc"]) == 0
    file = tmp_path / "model.onnx"
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: ")
    assert int(said.split("MB; ")[1].split(" boxes of it and PyTorch found in the other")[0]) > 20
    other = visiontune.load(file)
    assert isinstance(other, OnnxDetector)
    assert (other.class_names, other.image_size, other.shown_from, other.max_detections) == (tuple(NAMES), (64, 64), 0.2, 20)
    for options in ({}, {"score": 0.05}, {"tile": 48, "score": 0.05}):
        for ours, theirs in zip(*(list(m.predict(photos, **options)) for m in (model, other)), strict=True):
            assert ours.path == theirs.path
            agree(ours.boxes, theirs.boxes)
    assert main(["predict", str(file), str(photos), "--csv", str(tmp_path / "out.csv")]) == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(p.boxes) for p in model.predict(photos))

    session = other.file.session
    assert [(o.name, o.shape[1:]) for o in session.get_outputs()] == [("boxes", [20, 4]), ("scores", [20]), ("labels", [20])]
    blank = np.full((5, 64, 64, 3), FILL, dtype=np.uint8)
    boxes, scores, labels = session.run(None, {"pictures": blank})  # as many pictures as one likes
    assert (boxes.shape, scores.shape, labels.shape, labels.dtype) == ((5, 20, 4), (5, 20), (5, 20), np.int64)
    facts = {p.key: p.value for p in onnx.load(file).metadata_props}
    read = {k: json.loads(facts[k]) for k in ("class_names", "image_size", "mean", "std", "score_threshold", "nms_iou", "shown_from")}
    assert read == {
        "class_names": NAMES,
        "image_size": [64, 64],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "score_threshold": 0.01,
        "nms_iou": 0.6,
        "shown_from": 0.2,
    }
    assert json.loads(facts["preprocessing"]) == {"resize": "letterbox", "place": "upper left", "fill": 114}
    assert (facts["input"], facts["output"], facts["nms"]) == ("nhwc", "detections", "inside")


def test_nms_outside_gives_boxes_and_scores_of_all_anchors_and_is_done_where_the_file_is_loaded(tmp_path, photos):
    model = exported(tmp_path / "model", "retinanet")
    done = export_detector_onnx(model.detector, model.config, tmp_path / "m.onnx", nms="outside")
    assert 0 < done.difference < 1e-3
    other = visiontune.load(tmp_path / "m.onnx")
    positions = 9 * (64 + 16 + 4 + 1 + 1)
    assert [(o.name, o.shape[1:]) for o in other.file.session.get_outputs()] == [("boxes", [positions, 4]), ("scores", [positions, 3])]
    for ours, theirs in zip(*(list(m.predict(photos, score=0.05)) for m in (model, other)), strict=True):
        agree(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("head", [DETRS[0], *(pytest.param(head, marks=pytest.mark.slow) for head in DETRS[1:])])
def test_a_head_with_queries_predicts_in_a_file_as_the_run_does(tmp_path, photos, head, capsys):
    model = exported(tmp_path / "model", head)
    done = export_detector_onnx(model.detector, model.config, tmp_path / "m.onnx", input="nchw")
    assert done.boxes > 20
    assert "NonMaxSuppression" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    for ours, theirs in zip(*(list(visiontune.load(f).predict(photos)) for f in (tmp_path / "model", tmp_path / "m.onnx")), strict=True):
        agree(ours.boxes, theirs.boxes)
    for more, said in ((["--dynamic"], "--dynamic: a head with queries"), (["--nms", "outside"], "--nms outside: a head with queries")):
        assert main(["export", str(tmp_path / "model"), "onnx", *more]) == 2
        assert said in capsys.readouterr().err


def test_half_precision_and_pictures_in_which_nothing_is_found(tmp_path):
    model = exported(tmp_path / "model", score_threshold=0.999)
    done = export_detector_onnx(model.detector, model.config, tmp_path / "none.onnx", fp16=True)  # nothing is found, in no picture
    assert done.boxes == 0
    assert next(model.detector.parameters()).dtype == torch.float32
    found = visiontune.load(tmp_path / "none.onnx")(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert [len(f) for f in found] == [0, 0]


def test_a_file_that_finds_other_boxes_does_not_get_the_name(tmp_path, monkeypatch):
    model = exported(tmp_path / "model")
    inner = onnx_detector.trace

    def wrong(graph, *args):
        with torch.no_grad():
            graph.detector.head.head.regression_head.bbox_reg.bias += 0.3
        return inner(graph, *args)

    monkeypatch.setattr(onnx_detector, "trace", wrong)
    with pytest.raises(UserError, match=r"\d+ of \d+ boxes of PyTorch and the ONNX file have no partner .* kept as .*m.differs.onnx"):
        export_detector_onnx(model.detector, model.config, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
    assert (tmp_path / "m.differs.onnx").is_file()


def detections(*rows):
    """x, score and label of boxes 10 wide, of one picture, in a list that is not full."""
    rows = (*rows, (0.0, 0.0, 0))
    x, scores, labels = (torch.tensor([r[i] for r in rows]) for i in range(3))
    return torch.stack([x, x * 0, x + 10, x * 0 + 10], dim=1)[None], scores[None], labels[None]


LIMITS = Limits(num_classes=2, score=0.01, nms=0.5, candidates=9, detections=4)
TWO = ((0.0, 0.9, 0), (20.0, 0.8, 1), (0.0, 0.0, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (((20.0, 0.8, 1), (0.0, 0.9, 0), (5.0, 0.0, 1)), None),  # another order, and another filling
        (((0.05, 0.9005, 0), (20.0, 0.8, 1), (0.0, 0.0, 0)), None),
        (((0.2, 0.9, 0), (20.0, 0.8, 1), (0.0, 0.0, 0)), "no partner in the other, but one that overlaps"),
        (((0.0, 0.9, 1), (20.0, 0.8, 1), (0.0, 0.0, 0)), "of class 0"),
        (((0.0, 0.9, 0), (20.0, 0.79, 1), (0.0, 0.0, 0)), "score 0.800"),
        (((0.0, 0.9, 0), (20.0, 0.8, 1), (40.0, 0.5, 0)), "the ONNX file's box"),
        (((0.0, 0.9, 0), (0.0, 0.0, 0), (0.0, 0.0, 0)), "PyTorch's box"),
        (((0.0, 0.9, 0), (20.0, float("nan"), 1), (0.0, 0.0, 0)), "no partner"),
    ],
)
def test_boxes_are_compared_as_sets(changed, message):
    if message is None:
        worst, asked = compare_detections(detections(*TWO), detections(*changed), LIMITS, fp16=False)
        assert (worst < 1e-3, asked) == (True, 4)
    else:
        with pytest.raises(Differs, match=message):
            compare_detections(detections(*TWO), detections(*changed), LIMITS, fp16=False)


def test_places_are_compared_one_by_one():
    boxes, scores = torch.rand(2, 5, 4) * 64, torch.rand(2, 5, 3)
    assert compare_everywhere((boxes, scores), (boxes + 0.0064, scores), longest=64, fp16=False) == pytest.approx(1e-4, rel=0.01)
    for other in ((boxes + 1, scores), (boxes, scores + 0.01), (boxes * torch.nan, scores), (boxes[:1], scores)):
        with pytest.raises(Differs):
            compare_everywhere((boxes, scores), other, longest=64, fp16=False)


def test_what_cannot_be_exported_is_told_in_one_sentence(tmp_path, photos, capsys):
    model = exported(tmp_path / "model", "faster_rcnn", head_args={"hidden": 32})
    assert main(["export", str(tmp_path / "model"), "onnx"]) == 2
    assert "head faster_rcnn cannot be written as ONNX, only those whose predictions have a fixed number" in capsys.readouterr().err
    with pytest.raises(UserError, match="--nms: got 'no'; allowed: inside, outside"):
        export_detector_onnx(model.detector, model.config, tmp_path / "m.onnx", nms="no")
    assert main(["export", str(tmp_path / "model"), "safetensors", "--nms", "inside"]) == 2
    assert "--nms is for onnx alone" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "model"), str(photos), "--out", str(tmp_path / "e.csv")]) == 2
    assert "detects, and has no embedding of a whole picture; give its backbone" in capsys.readouterr().err


def test_a_detector_as_one_file_of_weights_loads_again(tmp_path):
    model = exported(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "safetensors"]) == 0
    again = visiontune.load(tmp_path / "model.safetensors")
    assert again.class_names == tuple(NAMES)
    ours, theirs = (m.detector.trained.state_dict() for m in (model, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
