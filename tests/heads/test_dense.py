"""Choosing detections from what a head says everywhere, against torchvision's way of doing it."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from visiontune.heads import dense
from visiontune.heads.detect import find_head
from visiontune.heads.detect._shared import exact, floats


def head(name, **more):
    torch.manual_seed(0)
    net = find_head(name)(32, 3, score_threshold=0.01, **more).eval()
    with torch.no_grad():
        for key, weights in net.named_parameters():
            if ".conv." in key and weights.ndim == 4:
                torch.nn.init.kaiming_normal_(weights)  # RetinaNet's begin so small that all scores are one
            elif key.endswith(("cls_logits.weight", "bbox_reg.weight")):
                weights.normal_(std=0.03)  # scores that differ, and boxes that overlap
    return net, [torch.randn(2, 32, 128 // s, 128 // s) for s in (8, 16, 32)]


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_detections_are_torchvisions(name):
    net, features = head(name, max_detections=2000)
    net.topk_candidates = 40  # of a level: some are cut off
    with torch.no_grad():
        found = net.predict(features, (128, 128))
        maps = net.coarser(exact(net, features))
        anchors = net.anchor_generator.by_level(maps)
        levels = {k: list(v.split([len(a) for a in anchors], dim=1)) for k, v in floats(net.head(maps)).items()}
        theirs = net.postprocess_detections(levels, [anchors] * 2, [(128, 128)] * 2)
    for ours, other in zip(found, theirs, strict=True):
        area = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(dim=1)  # theirs have boxes without one, too
        assert len(ours) == int(area.sum()) > 20
        order, others = ours.scores.argsort(stable=True), other["scores"][area].argsort(stable=True)
        torch.testing.assert_close(ours.scores[order], other["scores"][area][others], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.xyxy[order], other["boxes"][area][others], atol=1e-3, rtol=0)
        assert torch.equal(ours.labels[order], other["labels"][area][others])


def test_lists_are_filled_up_with_scores_of_0_and_obey_their_limit():
    net, features = head("fcos", max_detections=5)
    levels = [(boxes, scores * (torch.arange(2)[:, None, None] == 0)) for boxes, scores in net.dense(features, (128, 128))]
    boxes, scores, labels = dense.best(levels, net.limits)  # nothing is there in the second picture
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 5, 4), (2, 5), (2, 5))
    assert (scores[0] > 0).all()
    assert (scores[0].diff() <= 0).all()
    assert not scores[1].any()
    assert [len(b) for b in dense.as_boxes(boxes, scores, labels)] == [5, 0]


def test_anchors_are_moved_as_torchvision_moves_them():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(7, 4, generator=generator) * 50
    anchors[:, 2:] += anchors[:, :2]
    shifts = torch.randn(2, 7, 4, generator=generator) * 3
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    ours = dense.moved(anchors, shifts, largest=coder.bbox_xform_clip)
    torch.testing.assert_close(ours, torch.stack([coder.decode_single(s, anchors) for s in shifts]))


def test_boxes_are_cut_to_a_picture():
    boxes = torch.tensor([[[-5.0, 2, 70, 50], [3, 4, 5, 6]]])
    assert dense.cut(boxes, (40, 60)).tolist() == [[[0, 2, 60, 40], [3, 4, 5, 6]]]
