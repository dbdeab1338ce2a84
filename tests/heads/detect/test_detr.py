"""The DETR family against transformers' own whole models, on the same maps with the same weights."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import Deimv2ForObjectDetection, DFineForObjectDetection, RTDetrV2ForObjectDetection
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deimv2 import Deimv2Loss

from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.heads.detect import find_head
from visiontune.heads.detect._detr import Predicted, normalized
from visiontune.losses.matching import corners, match, noised_assignment, union

WHOLE = {"dfine": DFineForObjectDetection, "deimv2": Deimv2ForObjectDetection, "rtdetrv2": RTDetrV2ForObjectDetection}
WIDTHS, SIZE = (16, 24, 32), (64, 96)
TRUTH = [
    Boxes(torch.tensor([[4.0, 6, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, 2])),
    Boxes.none(),
    Boxes(torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([1])),
]


def head(name, num_classes=3, **more):
    torch.manual_seed(0)
    small = {"hidden": 32, "decoder_layers": 3, "queries": 20, "denoising": 12, "score_threshold": 0.0}
    return find_head(name)(WIDTHS, num_classes, **small | more)


def stirred(name):
    """With weights that move boxes and sides away from where they start."""
    net = head(name)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05 * parameter.requires_grad)
    return net


def features(size=SIZE, B=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(B, d, size[0] // s, size[1] // s, generator=generator) for d, s in zip(WIDTHS, (8, 16, 32), strict=True)]


def whole(name, net, maps):
    """transformers' model from pictures to losses, over a backbone that gives these maps, with the head's weights."""
    model = WHOLE[name](net.model.config).eval()
    theirs = getattr(model.model, "backbone", None) or model.model.conv_encoder
    theirs.model.forward = lambda pictures: SimpleNamespace(feature_maps=[m.clone() for m in maps])
    projections = "model.conv_encoder.encoder_input_proj" if name == "deimv2" else "model.encoder_input_proj"
    places = {"model": net.model, "model.encoder": net.encoder, projections: net.projections}
    weights = {f"{place}.{key}": value for place, part in places.items() for key, value in part.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith(("class_embed", "bbox_embed")) for key in missing)  # copies of the decoder's, unused
    return model


def labels():
    truth = normalized(TRUTH, SIZE)
    return [{"class_labels": c[:n], "boxes": b[:n]} for b, c, n in zip(truth.boxes, truth.labels, truth.counts, strict=True)]


@pytest.mark.parametrize("name", WHOLE)
def test_predictions_are_those_of_transformers_whole_model(name):
    net, maps = stirred(name).eval(), features()
    with torch.no_grad():
        found = net.predict(maps, SIZE)
        expected = whole(name, net, maps)(torch.zeros(3, 3, *SIZE))
    H, W = SIZE
    for boxes, logits, where in zip(found, expected.logits, expected.pred_boxes, strict=True):
        scores, index = logits.sigmoid().flatten().topk(min(100, logits.numel()))
        xyxy = (corners(where[index // 3]) * torch.tensor([W, H, W, H])).clamp(min=0).minimum(torch.tensor([W, H, W, H]))
        there = (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)
        assert len(boxes) > 5
        assert torch.allclose(boxes.scores, scores[there], atol=1e-6)
        assert torch.allclose(boxes.xyxy, xyxy[there], atol=1e-3)
        assert torch.equal(boxes.labels, (index % 3)[there])


def test_the_loss_of_rtdetrv2_is_that_of_transformers_whole_model():
    net, maps = stirred("rtdetrv2").train(), features()
    model = whole("rtdetrv2", net, maps).train()
    torch.manual_seed(3)
    losses = net.loss(maps, TRUTH, SIZE)
    torch.manual_seed(3)
    expected = model(torch.zeros(3, 3, *SIZE), labels=labels())
    assert sum(losses.values()).item() == pytest.approx(expected.loss.item(), rel=1e-4)
    of_noise = sum(v for k, v in expected.loss_dict.items() if "_dn_" in k)
    assert losses["denoising"].item() == pytest.approx(of_noise.item(), rel=1e-4)


def pairs(assigned):
    return [(row.ge(0).nonzero().flatten(), row[row >= 0]) for row in assigned]


@pytest.mark.parametrize(("name", "kind", "classes"), [("dfine", DFineLoss, "vfl"), ("deimv2", Deimv2Loss, "mal")])
def test_the_loss_with_distributions_is_transformers_layer_by_layer_each_with_its_own_sides(name, kind, classes):
    net, maps = stirred(name).train(), features()
    torch.manual_seed(3)
    losses = net.loss(maps, TRUTH, SIZE)
    torch.manual_seed(3)
    truth = normalized(TRUTH, SIZE)
    outputs = net.decode(net.encode(maps), truth)
    criterion = kind(net.model.config)
    if classes == "mal":
        criterion.gamma = 1.5  # the authors'; transformers has 2 by default
    noised, groups = outputs.denoising_meta_values["dn_num_split"][0], outputs.denoising_meta_values["dn_num_group"]
    predicted = Predicted.of(outputs)
    plain = predicted.part(slice(noised, None)).after(outputs.enc_topk_logits, outputs.enc_topk_bboxes)
    own = torch.from_numpy(match(plain.logits, plain.boxes, truth))
    joint = torch.from_numpy(union(own.numpy(), 2))
    fixed = noised_assignment(truth, groups)

    def total(part, own, joint, count, joint_count):
        parts = {"classes": 0.0, "boxes": 0.0, "overlaps": 0.0, "sides": 0.0, "distilled": 0.0}
        S, L = len(part.logits), len(part.sides)
        for s in range(S):
            layer = {"logits": part.logits[s], "pred_boxes": part.boxes[s]}
            parts["classes"] += criterion.get_loss(classes, layer, labels(), pairs(own[s]), count)[f"loss_{classes}"]
            of_boxes = criterion.get_loss("boxes", layer, labels(), pairs(joint), joint_count)
            parts["boxes"] += 5 * of_boxes["loss_bbox"]
            parts["overlaps"] += 2 * of_boxes["loss_giou"]
            if s >= S - L:
                layer |= {"pred_corners": part.sides[s - S].flatten(2), "ref_points": part.start}
                layer |= {"teacher_corners": part.sides[-1].flatten(2), "teacher_logits": part.logits[-1]}
                of_sides = criterion.get_loss("local", layer, labels(), pairs(joint), joint_count)
                parts["sides"] += 0.15 * of_sides["loss_fgl"]
                parts["distilled"] += 1.5 * of_sides["loss_ddf"]
        return parts

    expected = total(plain, own, joint, 3, int((joint >= 0).sum()))
    expected["denoising"] = sum(total(predicted.part(slice(noised)), [fixed] * 4, fixed, 3 * groups, 3 * groups).values())
    assert losses["distilled"] > 0
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value.item(), rel=1e-3), key


@pytest.mark.parametrize("name", WHOLE)
def test_the_decoder_stays_in_float32_under_autocast_and_with_weights_of_bfloat16(name):
    net, maps = stirred(name).train(), [m * 3 for m in features()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = net.encode(maps)
        outputs = net.decode(encoded, normalized(TRUTH, SIZE))
        losses = net.loss(maps, TRUTH, SIZE)
    assert encoded[0].dtype == torch.bfloat16
    assert outputs.intermediate_reference_points.dtype == outputs.intermediate_logits.dtype == torch.float32
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    half = net.bfloat16()
    losses = half.loss([m.bfloat16() for m in maps], TRUTH, SIZE)
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert half.eval().predict([m.bfloat16() for m in maps], SIZE)[0].xyxy.dtype == torch.float32


def test_every_parameter_is_reached_also_by_a_batch_without_boxes():
    net = head("dfine")
    sum(net.loss(features(), [Boxes.none()] * 3, SIZE).values()).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", WHOLE)
def test_sizes_change_from_batch_to_batch_also_after_prediction_in_inference_mode(name):
    net = head(name)
    for size in ((64, 96), (96, 32), (64, 96)):
        net.eval()
        with torch.inference_mode():
            net.predict(features(size), size)
        loss = sum(net.train().loss(features(size), TRUTH, size).values())
        loss.backward()
        assert loss.isfinite()
    plain, wide = ([a.xyxy for a in net.eval().predict(features(size), size)] for size in ((96, 96), (96, 160)))
    assert max(b[:, 2].max() for b in wide) > max(b[:, 2].max() for b in plain)


def test_boxes_are_shares_of_what_the_maps_lie_over():
    truth = normalized(TRUTH, (64, 128))
    assert truth.boxes[0, 0].tolist() == [22 / 128, 18 / 64, 36 / 128, 24 / 64]
    assert truth.labels.tolist() == [[0, 2], [-1, -1], [1, -1]]


def test_a_given_nms_is_obeyed_and_none_is_the_default():
    net = head("dfine").eval()
    with torch.no_grad():
        net.model.enc_bbox_head.layers[-1].bias[2:] = 4  # large boxes, that overlap
        many = net.predict(features(), SIZE)[0]
        net.nms = 0.5
        few = net.predict(features(), SIZE)[0]
    assert head("dfine").nms is None
    assert head("dfine", nms=0.5).nms == 0.5
    assert 0 < len(few) < len(many)


def test_sizes_by_name_and_by_numbers():
    config = head("dfine", hidden=None, decoder_layers=None, size="n").model.config
    assert (config.d_model, config.decoder_layers, config.decoder_ffn_dim) == (128, 3, 512)
    config = head("dfine", hidden=64, decoder_layers=2, size="m").model.config
    assert (config.d_model, config.decoder_layers, config.depth_mult) == (64, 2, 0.67)
    with pytest.raises(UserError, match="head.hidden: got 40; .* a multiple of 32"):
        head("dfine", hidden=40)


def test_few_classes_start_as_unlikely_as_many():
    for K in (1, 80):
        scores = head("dfine", num_classes=K).eval().predict(features(), SIZE)[0].scores
        assert scores.median() < 0.1


def test_without_transformers_the_cure_is_one_sentence(monkeypatch):
    for name in ("dfine", "_detr", "_transformers"):
        monkeypatch.delitem(sys.modules, f"visiontune.heads.detect.{name}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"head.name: dfine is built on transformers, .*; pip install 'visiontune\[detr\]', or take fcos"):
        find_head("dfine")
    assert find_head("fcos").__module__ == "visiontune.heads.detect.fcos"
