import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import SyncBatchNormAct

from tests.conftest import ROOT
from visiontune import SimCLR, backbones, build
from visiontune.build.tuning import fill_tuning
from visiontune.data.table import PictureTable
from visiontune.errors import UserError
from visiontune.export import save_timm_folder
from visiontune.recipe import parse_recipe

PRETRAIN = {"task": "pretrain", "method": "simclr", "backbone": {"name": "test_resnet"}, "data": {"train": "sample:digits/train"}}
CLASSIFY = {k: v for k, v in PRETRAIN.items() if k != "method"} | {"task": "classify"}
CLASSIFY["data"] = {"train": "sample:digits/train", "val": "sample:digits/test"}


def table(pictures, targets=None):
    """So many pictures, without their names."""
    offsets = np.zeros(pictures + 1, dtype=np.int64)
    return PictureTable("/photos", np.empty(0, np.uint8), offsets, None, ("a", "b", "c"), targets=targets)


def derived(pictures, raw=PRETRAIN, targets=None, **changes):
    """A recipe and its notes, derived for this many pictures."""
    tables = build.Tables(train=table(pictures, targets), val=None, probe=None, notes=[])
    return build.derive(parse_recipe(raw | changes).single, tables, processes=1)


def test_few_pictures_are_pretrained_for_more_epochs_unless_the_recipe_says_how_many():
    recipe, notes = derived(50_000)
    assert recipe.epochs == 506
    assert recipe.optim.warmup_epochs == 40
    assert any(n.startswith("epochs 506: few pictures need more passes") for n in notes)
    assert [derived(n)[0].epochs for n in (1_000, 320_000, 5_000_000)] == [800, 200, 100]
    recipe, notes = derived(1_000, epochs=7)
    assert (recipe.epochs, recipe.optim.warmup_epochs) == (7, 0.7)
    assert not any(n.startswith("epochs") for n in notes)


def test_a_batch_that_the_recipe_leaves_open_holds_no_more_than_there_is():
    recipe, notes = derived(50, CLASSIFY, epochs=3)
    assert recipe.data.batch_size == 50
    assert "batches of 50: there are 50 pictures to train on, and 64 is for more" in notes
    assert "steps 3: 3 epochs of 1 batch of 50" in notes
    assert derived(64, CLASSIFY)[0].data.batch_size == derived(6_400, CLASSIFY)[0].data.batch_size == 64
    recipe, notes = derived(100, optim={"lr": 1.0})
    assert (recipe.data.batch_size, recipe.optim.lr) == (100, 100 / 256)  # what follows from a batch follows from this one
    assert "learning rate 0.3906: 1 for a batch of 256, scaled linear to a batch of 100" in notes
    assert derived(50, CLASSIFY, trainer={"accumulate_grad_batches": 4})[0].data.batch_size == 48
    with pytest.raises(UserError, match="data.train: 3 pictures for 4 devices and accumulated batches; take fewer of them"):
        derived(3, CLASSIFY, trainer={"accumulate_grad_batches": 4})


def test_few_labels_are_trained_on_in_a_batch_of_them_unless_the_recipe_gives_its_size():
    data = CLASSIFY["data"] | {"labels_per_class": 5, "image_size": 32, "workers": 0}
    prepared = build.prepare(parse_recipe(CLASSIFY | ON_CPU | {"data": data, "epochs": 2}).single)
    assert (len(prepared.tables.train), prepared.recipe.data.batch_size, prepared.module.total_steps) == (50, 50, 2)
    given = parse_recipe(CLASSIFY | {"data": data | {"batch_size": 64}}).single
    with pytest.raises(UserError, match="data.batch_size: got 64, but there are no more than 50 pictures to train on"):
        build.find_pictures(given)


ON_CPU = {"trainer": {"accelerator": "cpu"}}
PRETRAINED = {"backbone": CLASSIFY["backbone"] | {"weights": "timm"}}


def test_what_fine_tuning_leaves_open_follows_from_weights_and_pictures_and_is_told():
    recipe, notes = derived(1_000, CLASSIFY | ON_CPU)
    assert (recipe.epochs, recipe.head.label_smoothing, recipe.head.mixup, recipe.optim.layer_decay) == (80, 0.1, 0.0, None)
    assert any(n.startswith("epochs 80: about 80,000 pictures seen on a CPU by random weights") for n in notes)
    assert derived(50_000, CLASSIFY | PRETRAINED)[0].head.mixup == 0.1
    vit = {"backbone": {"name": "vit_tiny_patch16_224", "weights": "timm"}}
    recipe, notes = derived(3_000, CLASSIFY | vit)
    assert (recipe.optim.layer_decay, recipe.optim.lr) == (0.75, 5e-4)
    assert any("layer decay 0.75" in n for n in notes)


def test_a_short_run_logs_often_enough_for_a_curve_unless_the_recipe_says_how_often():
    assert derived(640, CLASSIFY, epochs=3)[0].trainer.log_every_n_steps == 1
    assert derived(6_400, CLASSIFY, epochs=1)[0].trainer.log_every_n_steps == 5
    assert derived(64_000, CLASSIFY, epochs=1)[0].trainer.log_every_n_steps == 10
    assert derived(640, CLASSIFY, epochs=3, trainer={"log_every_n_steps": 10})[0].trainer.log_every_n_steps == 10


def test_several_labels_a_picture_are_smoothed_only_where_the_recipe_says_so():
    for head, smoothing in (({}, 0.0), ({"label_smoothing": 0.2}, 0.2)):
        recipe, notes = derived(1_000, CLASSIFY | ON_CPU, targets=np.zeros((1_000, 3), dtype=np.uint8), head=head)
        assert (recipe.epochs, recipe.head.label_smoothing) == (80, smoothing)
        assert not any(n.startswith("label smoothing") for n in notes)


def test_a_cpu_tunes_for_fewer_passes_and_says_so():
    found = {}
    for on_cpu in (True, False):
        for tune in ("full", "head"):
            recipe = parse_recipe(CLASSIFY | PRETRAINED | {"tune": tune}).single
            notes = fill_tuning(recipe, 3_000, fresh=recipe.backbone.weights == "random", on_cpu=on_cpu)
            found[on_cpu, tune] = recipe.epochs
            assert ("a GPU would make 21" in notes[0]) == on_cpu
            assert recipe.head.label_smoothing == (0.1 if (tune, on_cpu) == ("full", False) else 0.0)  # few passes are better without
    assert found == {(True, "full"): 5, (True, "head"): 11, (False, "full"): 21, (False, "head"): 21}
    big = parse_recipe(CLASSIFY | PRETRAINED).single
    assert "a GPU" not in fill_tuning(big, 10**6, fresh=False, on_cpu=False)[0].split("; ")[-1]
    assert big.epochs == 10


MALLOC = """
import gc, numpy as np, resource
from visiontune.build.memory import keep_freed_memory
def left():  # of 512 MB that were freed, in MB
    before = int(open("/proc/self/statm").read().split()[1])
    np.ones(2**26)
    gc.collect()
    return (int(open("/proc/self/statm").read().split()[1]) - before) * resource.getpagesize() / 2**20
print(left(), keep_freed_memory(), left())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_that_is_kept_stays_with_the_process(monkeypatch):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", MALLOC], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    default, kept, after = done.stdout.split()
    if kept == "False":
        pytest.skip("needs glibc")
    assert float(default) < 100
    assert float(after) > 500
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not build.keep_freed_memory()  # a user's own settings stand


def test_what_a_fine_tuning_recipe_says_itself_stays_as_it_is():
    own = {"epochs": 3, "head": {"label_smoothing": 0.0, "mixup": 0.0}, "optim": {"layer_decay": 1.0, "lr": 0.01}}
    recipe, notes = derived(50_000, CLASSIFY | own | {"backbone": {"name": "vit_tiny_patch16_224", "weights": "timm"}})
    assert (recipe.epochs, recipe.head.label_smoothing, recipe.head.mixup) == (3, 0.0, 0.0)
    assert (recipe.optim.layer_decay, recipe.optim.lr) == (1.0, 0.01)
    assert not any(n.startswith(("epochs", "label", "mixup", "layer")) for n in notes)


def test_synchronised_batch_norms_keep_the_activation_inside_them():
    module = SimCLR("test_efficientnet", projector_hidden=8, projector_out=4)
    recipe = SimpleNamespace(trainer=SimpleNamespace(sync_batchnorm=True))
    build.sync_batch_norms(module, recipe, SimpleNamespace(world_size=1))
    assert any(isinstance(m, SyncBatchNormAct) for m in module.backbone.modules())
    assert isinstance(module.projector[1], torch.nn.SyncBatchNorm)
    assert not any(isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) for m in module.modules())


def test_a_warm_up_that_the_run_never_leaves_is_told():
    _, notes = derived(1_000, epochs=4, optim={"name": "sgd", "lr": 0.1, "lr_scale": "none", "warmup_epochs": 10})
    assert "warm-up 10 in a run of 4 epochs: the learning rate only rises, to 0.04 of 0.1 at its end" in notes
    assert not any("only rises" in n for n in derived(1_000, epochs=4, optim={"warmup_epochs": 3.9})[1])


def test_pictures_have_the_size_that_the_weights_were_made_for_unless_the_recipe_says_another(tmp_path):
    model = backbones.create("test_resnet", image_size=(32, 64))
    for size, folder in (((32, 64), tmp_path / "wide"), (48, tmp_path / "square")):
        save_timm_folder(model, folder, replace(model.spec, image_size=size), mean=[0.5] * 3, std=[0.5] * 3)
        recipe, notes = derived(1_000, CLASSIFY, backbone={"weights": str(folder)})
        assert recipe.data.image_size == size
        assert f"image_size {'32x64' if size != 48 else 48}: as its weights were made" in notes
    recipe, notes = derived(1_000, CLASSIFY, backbone={"weights": str(folder)}, data=CLASSIFY["data"] | {"image_size": 64})
    assert recipe.data.image_size == 64
    assert not any("image_size" in n for n in notes)
    recipe, notes = derived(1_000)
    assert recipe.data.image_size == 224
    assert "image_size 224: neither the recipe nor the weights tell" in notes


def test_timms_weights_are_tuned_at_the_size_that_they_were_trained_at(tmp_path):
    torch.save(backbones.create("test_resnet").state_dict(), tmp_path / "w.pth")
    for weights, size, why in (
        ("timm", 160, "as timm's weights were made"),
        (str(tmp_path / "w.pth"), 160, "timm's for test_resnet, the weights do not tell"),
        ("random", 224, "neither the recipe nor the weights tell"),
    ):
        recipe, notes = derived(1_000, CLASSIFY, backbone={"name": "test_resnet", "weights": weights})
        assert recipe.data.image_size == size
        assert f"image_size {size}: {why}" in notes
    assert derived(1_000, CLASSIFY | PRETRAINED, data=CLASSIFY["data"] | {"image_size": 64})[0].data.image_size == 64
    recipe, notes = derived(1_000, PRETRAIN | PRETRAINED)  # pretraining goes by its own
    assert recipe.data.image_size == 224
    assert "image_size 224: the recipe leaves it open" in notes
    assert backbones.timm_size("vit_base_patch16_384.augreg_in21k_ft_in1k") == 384
    assert backbones.timm_size("vit_base_patch16_sapiens2") == (1024, 768)
    assert backbones.timm_size("test_resnet.no_such_tag") is None


def test_the_last_epoch_must_be_a_validated_one():
    recipe = parse_recipe(CLASSIFY | {"epochs": 12, "trainer": {"check_val_every_n_epoch": 4}}).single
    build.check_validation(recipe)
    recipe.epochs = 10
    with pytest.raises(UserError, match="does not divide 10 epochs, so the last would not be validated; try 2, or epochs=12"):
        build.check_validation(recipe)
    recipe.epochs = 3
    with pytest.raises(UserError, match="try 3, or epochs=4"):
        build.check_validation(recipe)
