"""Whole runs of detection: from annotations to a detector that is loaded again, resumed to the same numbers; what goes wrong is told."""

import csv
import json
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import visiontune
from tests.conftest import CONV
from tests.data.detection.sets import write_set
from tests.test_fit import assert_same_run, killed, write
from visiontune.__main__ import main as visiontune_main
from visiontune.build import derive, find_pictures, rehearse
from visiontune.build.detecting import fill_detection, words_on_small
from visiontune.data.detection.read import read_boxes
from visiontune.errors import UserError
from visiontune.fit import main
from visiontune.recipe import parse_recipe
from visiontune.run import given_data, recipe_data


def things(count, seed=0):
    """Pictures with one or two rectangles, and one empty one."""
    rng, found = np.random.default_rng(seed), {}
    for i in range(count):
        boxes = []
        for kind in ("cat", "dog")[: 1 + i % 2] if i else ():
            x, y = (int(v) for v in rng.integers(0, 30, 2))
            w, h = (int(v) for v in rng.integers(16, 30, 2))
            boxes.append((kind, (x, y, x + w, y + h)))
        found[f"{i:02}.png"] = ((64, 60), boxes)
    return found


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    return write_set(root / "train", things(14)), write_set(root / "val", things(5, seed=1))


@pytest.fixture
def recipe(annotated):
    train, val = annotated
    return {
        "task": "detect",
        "head": {"name": "fcos", "pyramid_width": 64, "convolutions": 1, "ema": 0.9},
        "backbone": CONV,
        "data": {"train": train.coco, "val": val.coco, "image_size": 64, "batch_size": 4, "workers": 0},
        "optim": {"lr": 0.003},
        "epochs": 2,
        "trainer": {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    }


def test_a_run_leaves_a_detector_that_says_what_was_validated(tmp_path, recipe, annotated, capsys):
    out = tmp_path / "run"
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "pictures: 14 with 20 boxes to train, 5 with" in said
    assert "views large_scale: random weights need more variety" in said
    assert "learning rate 0.001" not in said  # the recipe says it
    result = json.loads((out / "result.json").read_text())
    assert result["task"] == "detect"
    assert 0 <= result["map"] <= result["map50"] <= 1
    assert result["what"].startswith("fcos on 20 boxes in 14 pictures")

    model = visiontune.load(out)
    best = torch.load(out / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, best[f"average.{k}"]) for k, v in model.detector.trained.state_dict().items())
    assert model.class_names == ("cat", "dog")
    found = list(model.predict(str(annotated[1].images), score=0.0))
    assert [f.path.rsplit("/")[-1] for f in found] == [f"{i:02}.png" for i in range(5)]
    assert all((f.boxes.xyxy[:, 2] <= 64).all() and (f.boxes.xyxy[:, 3] <= 60).all() for f in found)  # in the pictures' own pixels
    # what the run calls its map is that of these boxes
    from torchmetrics.detection import MeanAveragePrecision

    metric, truth = MeanAveragePrecision(backend="faster_coco_eval"), read_boxes(**annotated[1].coco, classes=("cat", "dog"))
    for i, f in enumerate(found):
        t = truth.boxes_of(i)
        metric.update(
            [{"boxes": f.boxes.xyxy, "scores": f.boxes.scores, "labels": f.boxes.labels}], [{"boxes": t.xyxy, "labels": t.labels}]
        )
    assert float(metric.compute()["map"]) == pytest.approx(result["map"], abs=1e-6)


@pytest.mark.parametrize(("batches", "every"), [(4, "1e-6"), (4, "100")])
def test_killed_and_resumed_with_mosaics_of_many_sizes_meets_the_unbroken_runs_numbers(tmp_path, recipe, batches, every):
    recipe["data"]["augment"] = {"pipeline": "yolox", "sizes": [0.5, 1.5], "plain_end": 0.4}
    path = write(tmp_path / "r.yaml", recipe | {"checkpoint_minutes": float(every)})
    assert main([path, "--out", str(tmp_path / "whole")]) == 0
    done = killed(batches, [path, "--out", str(tmp_path / "broken")])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(["--resume", str(tmp_path / "broken"), "data.workers=1"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    whole, broken = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "broken"))
    assert {k: whole[k] for k in ("map", "map50", "best_step", "loss")} == {k: broken[k] for k in ("map", "map50", "best_step", "loss")}


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_other_formats_a_share_for_validation_and_few_pictures(tmp_path, recipe, annotated, capsys, kind):
    recipe["data"] |= {"train": annotated[0].of(kind), "val": 0.25, "labels_fraction": 0.6, "batch_size": 2}
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    used, there, val = map(int, re.search(r"pictures: (\d+) of (\d+) with .* to train, (\d+) with", capsys.readouterr().out).groups())
    assert there + val == 14
    assert val >= 3
    assert used == pytest.approx(0.6 * there, abs=1.5)


def test_a_share_for_validation_is_drawn_by_its_own_seed_where_it_has_one(recipe):
    def set_aside(seed, **keys):
        given = parse_recipe(recipe | {"seed": seed, "data": recipe["data"] | {"val": 0.3} | keys}).single
        val = find_pictures(given).val
        return [val.path(i) for i in range(len(val))]

    assert set_aside(0, val_seed=3) == set_aside(1, val_seed=3) == set_aside(3)
    assert set_aside(0) != set_aside(3)
    with pytest.raises(UserError, match="data.val_seed: got 3; expected data.val to be a share of data.train, whose pictures it draws"):
        parse_recipe(recipe | {"data": recipe["data"] | {"val_seed": 3}})


def test_every_head_by_its_name_alone(tmp_path, recipe):
    for head in ("retinanet", "faster_rcnn"):
        path = write(tmp_path / "r.yaml", recipe | {"head": head})
        assert main([path, "head.pyramid_width=64", "--out", str(tmp_path / "run"), "--dry-run"]) == 0


@pytest.mark.parametrize(("head", "lr"), [("fcos", 1e-3), ("dfine", 1e-4)])
def test_short_runs_take_larger_steps_but_of_a_detr(recipe, head, lr):
    del recipe["optim"]
    parsed = parse_recipe(recipe | {"head": head}).single
    found, notes = derive(parsed, find_pictures(parsed), 1)
    assert found.optim.lr == lr
    assert any("learning rate 0.001: 6 steps are few" in note for note in notes) == (lr == 1e-3)


def test_a_pretrained_convnet_learns_as_fast_as_its_head_in_short_runs_a_transformer_does_not(recipe):
    for head, name, factor in (("fcos", "resnet10t", 1), ("dfine", "resnet10t", 0.1), ("fcos", "vit_tiny_patch16_224", 0.1)):
        parsed = parse_recipe(recipe | {"head": head, "backbone": {"name": name, "weights": "timm"}}).single
        notes = fill_detection(parsed, 100, fresh=False, on_cpu=True)
        assert parsed.head.backbone_lr_factor == factor
        assert ("learning rate of the backbone as of the head: a convnet, and few steps (ours; benchmarks/detect_bccd.csv)" in notes) == (
            factor == 1
        )
    given = parse_recipe(recipe | {"head": {"name": "fcos", "backbone_lr_factor": 0.3}, "backbone": {"name": "resnet10t"}}).single
    fill_detection(given, 100, fresh=False, on_cpu=True)
    assert given.head.backbone_lr_factor == 0.3


def test_a_layer_decay_is_not_slowed_a_second_time(recipe):
    recipe |= {"optim": {"layer_decay": 0.75}, "backbone": {"name": "vit_tiny_patch16_224", "weights": "timm"}}
    for head, factor in (("fcos", 1), ({"name": "fcos", "backbone_lr_factor": 0.3}, 0.3)):
        parsed = parse_recipe(recipe | {"head": head}).single
        notes = fill_detection(parsed, 100, fresh=False, on_cpu=True)
        assert parsed.head.backbone_lr_factor == factor
        assert any("optim.layer_decay 0.75 slows it already" in note for note in notes) == (factor == 1)


def test_boxes_that_no_position_may_lie_in_are_told(recipe):
    parsed = parse_recipe(recipe).single
    boxes = find_pictures(parsed).boxes[0]
    sides = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).min(axis=1)
    scale = (24 / boxes.sizes).min(axis=1)[boxes.owner]
    few = int((sides * scale < 8).sum())
    assert 0 < few < len(sides)
    assert words_on_small(boxes, (24, 24))[0].startswith(f"small boxes: {few} of {len(sides)} boxes are narrower than 8 pixels at 24x24")
    assert words_on_small(boxes, (1024, 1024)) == []
    unsaid = replace(boxes, sizes=np.zeros_like(boxes.sizes))
    assert words_on_small(unsaid, (24, 24)) == []


def test_batch_norms_of_random_weights_learn_unless_all_of_the_backbone_is_kept(recipe):
    learns, frozen = (parse_recipe(recipe | {"head": {"name": "fcos", "freeze_backbone": kept}}).single for kept in (False, True))
    assert derive(learns, find_pictures(learns), 1)[0].head.freeze_batch_norms is False
    found, notes = derive(frozen, find_pictures(frozen), 1)
    assert found.head.freeze_batch_norms is True
    assert not any("batch norms" in note or "learning rate of the backbone" in note for note in notes)


@pytest.mark.parametrize(("head", "slim"), [("fcos", (96, 2)), ("retinanet", (96,)), ("faster_rcnn", (96,)), ("rtdetrv2", ())])
def test_few_pictures_on_a_cpu_get_small_batches_and_a_slim_head(recipe, head, slim):
    del recipe["data"]["batch_size"]
    parsed = parse_recipe(recipe | {"head": head}).single
    found, notes = derive(parsed, find_pictures(parsed), 1)
    assert found.data.batch_size == 8
    assert "batches of 8: of 16 there would be 0 steps, and below 2,000 more of them help (ours)" in notes
    assert tuple(getattr(found.head, key) for key in ("pyramid_width", "convolutions")[: len(slim)]) == slim
    assert any(note.startswith("a slim head, pyramid_width 96 instead of 256") for note in notes) == bool(slim)


@pytest.mark.parametrize(
    ("pictures", "batch"),
    [(100, 2), (1_000, 4), (2_000, 8), (30_000, 16)],  # 12 epochs: 600 steps of 2; 3,000 of 4; 3,000 of 8; 22,500 of 16
)
def test_the_fewer_the_steps_the_smaller_the_batches_unless_batch_norms_learn_from_them(recipe, pictures, batch):
    del recipe["data"]["batch_size"]
    recipe |= {"epochs": 12, "backbone": {"name": "resnet10t", "weights": "timm"}}
    for head, least in ({"name": "fcos"}, 2), ({"name": "fcos", "freeze_batch_norms": False}, 8), ({"name": "dfine"}, 8):
        parsed = parse_recipe(recipe | {"head": head}).single
        fill_detection(parsed, pictures, fresh=False, on_cpu=True)
        assert parsed.data.batch_size == max(batch, least)


def test_a_small_encoder_and_decoder_on_a_cpu_where_the_authors_have_one(recipe):
    for head, size in (("dfine", "n"), ("deimv2", "n"), ("rtdetrv2", "s"), ({"name": "dfine", "size": "s"}, "s")):
        parsed = parse_recipe(recipe | {"head": head}).single
        found, notes = derive(parsed, find_pictures(parsed), 1)
        assert found.head.size == size
        assert any(note.startswith("a slim head, size n instead of s") for note in notes) == (size == "n")


def test_what_the_recipe_says_of_batch_and_head_stays(recipe):
    given = parse_recipe(recipe | {"head": {"name": "fcos", "pyramid_width": 64}, "data": recipe["data"] | {"batch_size": 14}}).single
    found, _ = derive(given, find_pictures(given), 1)
    assert (found.data.batch_size, found.head.pyramid_width, found.head.convolutions) == (14, 64, 2)


def test_a_recipe_that_is_written_down_leaves_open_what_it_left_open(recipe):
    del recipe["data"]["batch_size"]
    given = parse_recipe(recipe | {"head": {"name": "fcos", "ema": None}}).single
    plan = parse_recipe(given_data(given)).single
    for section in ("head", "data", "optim", "trainer", "backbone"):
        assert getattr(plan, section).model_fields_set == getattr(given, section).model_fields_set
    found, _ = derive(plan, find_pictures(plan), 1)
    assert (found.head.ema, found.data.batch_size) == (None, 8)
    again = parse_recipe(recipe_data(found)).single
    assert derive(again, find_pictures(again), 1)[0].model_dump() == again.model_dump()  # a run that goes on has the same numbers


MISTAKES = [
    ("a head that is none", {"head": "fcoss"}, "head: got 'fcoss'; allowed: "),
    (
        "an option of another head",
        {"head": {"name": "fcos", "anchor_size": 4}},
        "head.anchor_size: unknown key; it is an option of another",
    ),
    ("a head of one's own that is not there", {"head": "my.head.Class"}, "head.name: got 'my.head.Class', but No module named 'my'"),
    ("no folder of pictures", {"data": {"train": {"images": "none"}}}, "data.train.images: "),
    ("no annotations", {"data": {"train": {"boxes": "none.json"}}}, "data.train.boxes: there is no none.json"),
    ("a share that is none", {"data": {"val": 1.5}}, "data.val: got 1.5; expected a section of key: value lines or a number below 1"),
    ("an augmentation that is none", {"data": {"augment": {"mosaik": 1}}}, "data.augment.mosaik: unknown key; did you mean 'mosaic'?"),
    ("a metric that is none", {"monitor": "top1"}, "monitor: got 'top1'; allowed here: map, map50, map75"),
    ("a way of classifying", {"tune": "head"}, "tune: unknown key"),
]


@pytest.mark.parametrize(("changes", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_the_cause_is_named(tmp_path, recipe, capsys, changes, message):
    from visiontune.recipe.load import merge

    assert main([write(tmp_path / "r.yaml", merge(recipe, changes)), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_that_nothing_can_count_is_told_before_anything_is_trained(tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.setattr("visiontune.metrics.detection.COUNTERS", ())
    assert main([write(tmp_path / "r.yaml", recipe), "--out", str(tmp_path / "run")]) == 2
    assert "pip install faster-coco-eval" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stage_of_boxes_takes_the_backbone_that_an_earlier_one_made(tmp_path, recipe, annotated):
    first = {"task": "pretrain", "method": "simclr", "backbone": CONV, "epochs": 1, "optim": {"lr": 0.01}}
    first["data"] = {"train": str(annotated[0].images), "image_size": 32, "batch_size": 8, "workers": 0}
    second = recipe | {"backbone": {"weights": "stage:pretrain"}, "epochs": 1}
    trainer = recipe.pop("trainer")
    second.pop("trainer", None)
    path = write(tmp_path / "r.yaml", {"trainer": trainer, "stages": {"pretrain": first, "boxes": second}})
    assert main([path, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/boxes/result.json").read_text())["what"].endswith("from the weights of pretrain, 1 epoch")
    assert len(list(visiontune.load(tmp_path / "run").predict(str(annotated[1].images), score=0.0))) == 5

    # What the rehearsal found before there were weights is what the stage will find: size, epochs, views and what learns.
    del second["epochs"], second["data"]["image_size"], second["data"]["batch_size"]
    for name in ({}, {"name": f"{CONV['name']}.d2_in1k"}):
        second["backbone"] = name | {"weights": "stage:pretrain"}
        before = rehearse(parse_recipe({"trainer": trainer, "stages": {"pretrain": first, "boxes": second}}).stages)["boxes"]
        later = parse_recipe(second | {"trainer": trainer, "backbone": name | {"weights": str(tmp_path / "run/pretrain")}}).single
        found, notes = derive(later, find_pictures(later), 1)
        assert before.recipe.data.image_size == 320
        own = {"backbone": {"weights"}, "monitor": True}  # the monitor is the module's, which was not made here
        assert before.recipe.model_dump(exclude=own) == found.model_dump(exclude=own)
        assert set(notes) - set(before.notes) == {n for n in notes if "as its weights were made" in n}


def test_compare_of_detectors_is_by_their_map(tmp_path, recipe, annotated):
    recipe["epochs"] = 1
    folder = tmp_path / "cmp"
    argv = [
        "compare",
        write(tmp_path / "r.yaml", recipe),
        "--weights",
        "random",
        "--labels",
        "50%",
        "100%",
        "--min-steps",
        "0",
        "--seeds",
        "1",
    ]
    assert visiontune_main([*argv, "--out", str(folder)]) == 0
    rows = list(csv.DictReader((folder / "compare.csv").open()))
    assert [(r["labels"], r["status"]) for r in rows] == [("50 %", "finished"), ("100 %", "finished")]
    for row in rows:
        run = json.loads((folder / row["run"] / "result.json").read_text())
        assert float(row["map"]) == pytest.approx(run["map_last"], abs=1e-6)
        trained = yaml.safe_load((folder / row["run"] / "recipe.yaml").read_text())
        assert trained["head"]["freeze_batch_norms"] is False  # as of any run from random weights: the comparison leaves it open, too
        assert trained["head"]["backbone_lr_factor"] == 1


def test_compare_counts_pictures_with_boxes_by_shares_alone(tmp_path, recipe, capsys):
    argv = ["compare", write(tmp_path / "r.yaml", recipe), "--weights", "random", "--labels", "10", "--out", str(tmp_path / "cmp")]
    assert visiontune_main(argv) == 2
    assert "--labels: got '10'; a picture has boxes of several classes" in capsys.readouterr().err
