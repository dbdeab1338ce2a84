import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from visiontune.boxes import Boxes
from visiontune.errors import UserError
from visiontune.heads.detect import find_head, head_names
from visiontune.heads.detect._shared import Anchors

DENSE = {"fcos": {}, "retinanet": {}, "faster_rcnn": {"hidden": 32}}
DETRS = {name: {"hidden": 32, "decoder_layers": 2, "queries": 30, "denoising": 10} for name in ("dfine", "deimv2", "rtdetrv2")}
HEADS = DENSE | DETRS
TRUTH = [
    Boxes(torch.tensor([[4.0, 6, 40, 30], [20, 20, 60, 60]]), torch.tensor([0, 2])),
    Boxes.none(),
    Boxes(torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([1])),
]


def features(size=64, B=3, width=32, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, width, size // s, size // s, generator=generator) for s in (8, 16, 32)]


def head(name: str, num_classes=3, width=32, **more):
    torch.manual_seed(0)
    return find_head(name)((width,) * 3 if name in DETRS else width, num_classes, **HEADS[name] | more)


def test_every_head_here_is_tried():
    assert set(head_names()) == set(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_losses_are_finite_and_fall_on_one_batch(name):
    net, maps = head(name), features()
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=1e-3), []
    for _ in range(6):
        torch.manual_seed(0)  # Faster R-CNN samples, DETRs noise
        loss = sum(net.loss(maps, TRUTH, (64, 64)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_empty_pictures_has_a_finite_loss_and_gradients(name):
    net = head(name)
    loss = sum(net.loss(features(), [Boxes.none()] * 3, (64, 64)).values())
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_boxes_inside_the_picture_best_first(name):
    net = head(name, score_threshold=0.0, max_detections=7).eval()
    maps = features(96)
    with torch.no_grad():
        found = net.predict(maps, (80, 90))  # filled up to 96
    assert len(found) == 3
    for boxes in found:
        assert 0 < len(boxes) <= 7
        assert boxes.xyxy.dtype == boxes.scores.dtype == torch.float32
        assert boxes.labels.dtype == torch.int64
        assert boxes.labels.min() >= 0
        assert boxes.labels.max() < 3
        assert (boxes.xyxy >= 0).all()
        assert (boxes.xyxy <= torch.tensor([90, 80, 90, 80])).all()
        assert (boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all()
        assert (boxes.scores.diff() <= 0).all()


@pytest.mark.parametrize("name", DENSE)
def test_loss_and_predictions_do_not_hang_on_the_mode_of_the_head(name):
    net, maps = head(name, score_threshold=0.0), features()
    with torch.no_grad():
        by_mode = []
        for mode in (True, False):
            net.train(mode)
            torch.manual_seed(0)
            by_mode.append((sum(net.loss(maps, TRUTH, (64, 64)).values()), net.predict(maps, (64, 64))))
    (loss, found), (other, others) = by_mode
    assert torch.equal(loss, other)
    assert all(torch.equal(a.xyxy, b.xyxy) for a, b in zip(found, others, strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_boxes_under_bfloat16_are_those_of_float32(name):
    net = head(name, score_threshold=0.0).eval()
    maps = [m.bfloat16() for m in features(512, B=1)]
    with torch.no_grad():
        (plain,) = net.predict([m.float() for m in maps], (512, 512))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (mixed,) = net.predict(maps, (512, 512))
    assert len(plain) == len(mixed) > 20
    assert (plain.xyxy - mixed.xyxy).abs().max() < 0.1
    assert torch.equal(plain.labels, mixed.labels)


@pytest.mark.parametrize("name", DENSE)
def test_the_loss_under_bfloat16_is_nearly_that_of_float32(name):
    net, maps = head(name), features(512, B=1)
    truth = [Boxes(torch.tensor([[301.0, 203, 437, 411], [257, 3, 269, 17]]), torch.tensor([0, 2]))]
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(net.loss([m.bfloat16() if enabled else m for m in maps], truth, (512, 512)))
    for key, value in losses[0].items():
        assert losses[1][key].dtype == torch.float32
        assert losses[1][key].item() == pytest.approx(value.item(), rel=0.02)


def test_anchors_of_bfloat16_features_stay_exact_where_torchvisions_are_off_by_pixels():
    maps = [torch.zeros(1, 1, 1536 // s, 1536 // s) for s in (8, 16, 32, 64, 128)]
    halves = [m.bfloat16() for m in maps]
    images = ImageList(torch.zeros(1, 1, 1536, 1536), [(1536, 1536)])
    sizes = tuple((s,) for s in (8, 16, 32, 64, 128))
    ours = Anchors(sizes, ((1.0,),) * 5)
    theirs = AnchorGenerator(sizes, ((1.0,),) * 5)
    assert torch.equal(ours(images, maps)[0], ours(images, halves)[0])
    assert (theirs(images, maps)[0] - theirs(images, halves)[0].float()).abs().max() >= 1


def test_anchors_stand_on_the_centres_of_what_positions_cover_also_where_a_map_was_rounded_up():
    sizes = tuple((s,) for s in (8, 16, 32, 64, 128))
    maps = [torch.zeros(1, 1, n, n) for n in (12, 6, 3, 2, 1)]  # 96 pixels
    levels = Anchors(sizes, ((1.0,),) * 5).by_level(maps)
    for boxes, stride, m in zip(levels, (8, 16, 32, 64, 128), maps, strict=True):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert centres[0].tolist() == [stride / 2] * 2
        assert centres[-1].tolist() == [(m.shape[-1] - 0.5) * stride] * 2


class Painted(torch.nn.Module):
    """Features of strides 8, 16 and 32 from a painting, enough to tell colours and edges."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Conv2d(a, 64, k, stride=k), torch.nn.GELU(), torch.nn.Conv2d(64, 64, 3, padding=1))
            for a, k in ((3, 8), (64, 2), (64, 2))
        )

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


STEPS = {**dict.fromkeys(DENSE, 200), "dfine": 50, "deimv2": 80, "rtdetrv2": 100}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("deimv2", "rtdetrv2")]


@pytest.mark.parametrize("name", [*DENSE, "dfine", *SLOW])
def test_one_picture_is_learned_with_its_two_classes(name):
    net, body = head(name, width=64), Painted()
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 4:36, 4:28] = 2
    picture[:, 1, 30:62, 34:62] = 2
    truth = Boxes(torch.tensor([[4.0, 4, 28, 36], [34, 30, 62, 62]]), torch.tensor([0, 2]))
    optimizer = torch.optim.AdamW([*net.parameters(), *body.parameters()], lr=2e-3)
    for _ in range(STEPS[name]):
        optimizer.zero_grad()
        sum(net.loss(body(picture), [truth], (64, 64)).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = net.predict(body(picture), (64, 64))
    best = found.take(found.scores > 0.3)
    assert set(best.labels.tolist()) == {0, 2}
    overlap = box_iou(best.xyxy, truth.xyxy)
    for label, of in ((0, 0), (2, 1)):
        first = int((best.labels == label).nonzero()[0])
        assert overlap[first, of] > 0.7


def test_a_head_of_ones_own_is_found_by_its_path_and_a_wrong_name_is_told():
    assert find_head(f"{__name__}.Painted") is Painted
    with pytest.raises(
        UserError, match="head.name: got 'fcoz'; allowed: deimv2, dfine, faster_rcnn, fcos, retinanet, rtdetrv2, .*; did you mean 'fcos'"
    ):
        find_head("fcoz")
    with pytest.raises(UserError, match="head.name: got 'visiontune.nothing.Head'"):
        find_head("visiontune.nothing.Head")
