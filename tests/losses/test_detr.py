from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from visiontune.losses import detr, matching
from visiontune.losses.matching import Truth

S, B, Q, K, N = 3, 3, 12, 4, 8
COUNTS = (3, 0, 2)
CONFIG = SimpleNamespace(
    num_labels=K, matcher_class_cost=2.0, matcher_bbox_cost=5.0, matcher_giou_cost=2.0, use_focal_loss=True, matcher_alpha=0.25,
    matcher_gamma=2.0, focal_loss_alpha=0.75, focal_loss_gamma=1.5, eos_coefficient=1e-4, weight_loss_vfl=1.0, weight_loss_bbox=5.0,
    weight_loss_giou=2.0, weight_loss_fgl=0.15, weight_loss_ddf=1.5, weight_loss_mal=1.0, mal_alpha=None, use_dense_one_to_one=True,
    max_num_bins=N, reg_scale=4.0, up=0.5,
)  # fmt: skip


def random_boxes(*size, dtype=torch.float32):
    centre, side = torch.rand(*size, 2, dtype=dtype), torch.rand(*size, 2, dtype=dtype)
    return torch.cat([0.3 + 0.4 * centre, 0.1 + 0.4 * side], dim=-1)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    truth = Truth.of([random_boxes(n) for n in COUNTS], [torch.randint(K, (n,)) for n in COUNTS])
    given = SimpleNamespace(truth=truth, logits=torch.randn(S, B, Q, K), boxes=random_boxes(S, B, Q), start=random_boxes(B, Q))
    given.sides = torch.randn(S, B, Q, 4, N + 1)
    given.own = torch.from_numpy(matching.match(given.logits, given.boxes, truth))
    given.joint = torch.from_numpy(matching.union(given.own.numpy(), max(COUNTS)))
    return given


def pairs(assigned):
    """As transformers has them: `(queries, boxes)` of each picture."""
    return [(row.ge(0).nonzero().flatten(), row[row >= 0]) for row in assigned]


def dicts(truth):
    return [{"boxes": b[:n], "class_labels": c[:n]} for b, c, n in zip(truth.boxes, truth.labels, truth.counts, strict=True)]


def theirs(name="loss_deimv2.Deimv2Loss", gamma=1.5):
    import importlib

    module, kind = name.split(".")
    config = SimpleNamespace(**vars(CONFIG) | {"focal_loss_gamma": gamma})
    return getattr(importlib.import_module(f"transformers.loss.{module}"), kind)(config)


def test_matches_are_those_of_transformers(batch):
    matcher = theirs().matcher
    for s in range(S):
        expected = matcher({"logits": batch.logits[s], "pred_boxes": batch.boxes[s]}, dicts(batch.truth))
        for (queries, boxes), (ours, of) in zip(expected, pairs(batch.own[s]), strict=True):
            assert dict(zip(queries.tolist(), boxes.tolist(), strict=True)) == dict(zip(ours.tolist(), of.tolist(), strict=True))


def test_each_box_has_one_query_and_what_is_not_finite_is_matched_last(batch):
    batch.logits[:, :, :6], batch.boxes[:, :, :6] = float("nan"), float("inf")
    own = matching.match(batch.logits, batch.boxes, batch.truth)
    assert (own[:, :, :6] == -1).all()
    for b, count in enumerate(COUNTS):
        assert all(sorted(row[row >= 0]) == list(range(count)) for row in own[:, b])


def test_more_boxes_than_queries_leave_boxes_without():
    truth = Truth.of([random_boxes(5)], [torch.zeros(5, dtype=torch.int64)])
    own = matching.match(torch.randn(1, 1, 3, K), random_boxes(1, 1, 3), truth)
    assert len(set(own.flatten())) == 3
    assert own.min() >= 0


def test_the_union_of_matches_is_that_of_transformers(batch):
    votes = (batch.own[..., None] == torch.arange(max(COUNTS))).sum(dim=0)
    first, *rest = [pairs(a) for a in batch.own]
    expected = theirs()._get_dense_o2o_indices(first, rest)
    for b, (queries, _) in enumerate(expected):
        ours, boxes = pairs(batch.joint)[b]
        assert set(queries.tolist()) == set(ours.tolist())
        assert all(votes[b, q, t] == votes[b, q].max() for q, t in zip(ours, boxes, strict=True))


def test_overlaps_are_torchvisions():
    a, b = (matching.corners(random_boxes(9)) for _ in range(2))
    iou, giou = matching.overlaps(a, b)
    assert torch.allclose(iou, box_iou(a, b).diag(), atol=1e-6)
    assert torch.allclose(giou, generalized_box_iou(a, b).diag(), atol=1e-6)
    nothing = torch.zeros(1, 4)
    assert all(v.isfinite().all() for v in matching.overlaps(nothing, nothing))


@pytest.mark.parametrize(("loss", "key", "gamma"), [(detr.varifocal, "vfl", 2.0), (detr.matchability_aware, "mal", 1.5)])
def test_losses_of_classes_are_those_of_transformers(batch, loss, key, gamma):
    for s in range(S):
        _, labels, there = detr.matched(batch.truth, batch.own[s])
        iou = detr.box_losses(batch.boxes[s], batch.truth, batch.own[s])[2]
        outputs = {"logits": batch.logits[s], "pred_boxes": batch.boxes[s]}
        expected = theirs(gamma=gamma).get_loss(key, outputs, dicts(batch.truth), pairs(batch.own[s]), 5)[f"loss_{key}"]
        assert loss(batch.logits[s], iou, labels, there).item() / 5 == pytest.approx(expected.item(), rel=1e-5)


def test_losses_of_boxes_are_those_of_transformers(batch):
    l1, giou, _ = detr.box_losses(batch.boxes, batch.truth, batch.joint.expand(S, B, Q))
    outputs = [{"pred_boxes": boxes} for boxes in batch.boxes]
    expected = [theirs().get_loss("boxes", o, dicts(batch.truth), pairs(batch.joint), 5) for o in outputs]
    assert l1.item() / 5 == pytest.approx(sum(e["loss_bbox"] for e in expected).item(), rel=1e-5)
    assert giou.item() / 5 == pytest.approx(sum(e["loss_giou"] for e in expected).item(), rel=1e-5)


@pytest.mark.parametrize("far", [False, True])
def test_losses_of_distributions_are_those_of_transformers(batch, far):
    if far:  # sides beyond both ends of the distributions
        batch.start[:, ::2, 2:] = 0.01
        batch.start[:, 1::2, :2] += 2
    iou = detr.box_losses(batch.boxes, batch.truth, batch.joint.expand(S, B, Q))[2]
    expected = [
        theirs().get_loss("local", {
            "pred_corners": batch.sides[s].flatten(2), "ref_points": batch.start, "pred_boxes": batch.boxes[s],
            "teacher_corners": batch.sides[-1].flatten(2), "teacher_logits": batch.logits[-1],
        }, dicts(batch.truth), pairs(batch.joint), 5)
        for s in range(S)
    ]  # fmt: skip
    ours = detr.fine_grained_localization(batch.sides, batch.start, batch.truth, batch.joint, iou)
    assert ours.item() / 5 == pytest.approx(sum(e["loss_fgl"] for e in expected).item(), rel=1e-5)
    ours = detr.self_distillation(batch.sides, batch.logits[-1], batch.joint, iou)
    assert ours.item() == pytest.approx(sum(e["loss_ddf"] for e in expected).item(), rel=1e-4)


def test_what_is_perfect_costs_nothing(batch):
    assigned = torch.arange(Q).where(torch.arange(Q) < torch.tensor(COUNTS)[:, None], -1)
    wanted, labels, there = detr.matched(batch.truth, assigned)
    l1, giou, iou = detr.box_losses(wanted, batch.truth, assigned)
    assert l1.item() == 0
    assert giou.item() == pytest.approx(0, abs=1e-5)
    assert iou[there] == pytest.approx(torch.ones(sum(COUNTS)), abs=1e-5)
    logits = torch.full((B, Q, K), -40.0)
    logits[there] = logits[there].scatter(-1, labels[there][:, None], 40.0)
    assert detr.varifocal(logits, iou, labels, there).item() == pytest.approx(0, abs=1e-4)
    assert detr.self_distillation(batch.sides[:1].expand(S, -1, -1, -1, -1), batch.logits[-1], assigned, iou.expand(S, B, Q)).item() == 0
    sides = torch.full((1, B, Q, 4, N + 1), -40.0)
    sides[..., N // 2] = 40.0  # W of the middle is 0: the start is right
    assert detr.fine_grained_localization(sides, wanted, batch.truth, assigned, iou[None]).item() == pytest.approx(0, abs=1e-3)


def test_pictures_without_boxes_cost_only_what_is_said_in_them(batch):
    truth = Truth.of([torch.zeros(0, 4)] * B, [torch.zeros(0, dtype=torch.int64)] * B)
    own = matching.match(batch.logits, batch.boxes, truth)
    assert (own == -1).all()
    assert (matching.union(own, 0) == -1).all()
    own = torch.from_numpy(own)
    l1, giou, iou = detr.box_losses(batch.boxes, truth, own)
    assert (l1, giou, iou.sum()) == (0, 0, 0)
    _, labels, there = detr.matched(truth, own)
    assert detr.varifocal(batch.logits, iou, labels, there) > 0
    assert detr.self_distillation(batch.sides, batch.logits[-1], own[0], iou).isfinite()


def test_of_each_group_of_noised_boxes_the_first_stand_for_theirs(batch):
    assert matching.noised_assignment(batch.truth, 2)[2].tolist() == [0, 1, -1, -1, -1, -1] * 2
    assert matching.noised_assignment(batch.truth, 1)[1].tolist() == [-1] * 6


def test_gradcheck(batch):
    double = torch.float64
    truth = Truth(batch.truth.boxes.double(), batch.truth.labels, COUNTS)
    boxes = batch.boxes.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: detr.box_losses(b, truth, batch.own)[:2], boxes)
    iou, start = torch.rand(S, B, Q, dtype=double), batch.start.double()
    sides = batch.sides.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: detr.fine_grained_localization(x, start, truth, batch.joint, iou), sides, fast_mode=True)
    last, scores = batch.sides[-1:].double(), batch.logits[-1].double()
    early = batch.sides[:-1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: detr.self_distillation(torch.cat([x, last]), scores, batch.joint, iou), early, fast_mode=True)


def test_half_precision_is_raised(batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        l1, giou, iou = detr.box_losses(batch.boxes.bfloat16(), batch.truth, batch.own)
    assert l1.dtype == giou.dtype == iou.dtype == torch.float32
    assert np.issubdtype(matching.match(batch.logits.bfloat16(), batch.boxes.bfloat16(), batch.truth).dtype, np.integer)
