"""Backbones that are trained on the pictures: `--probe finetune`, and `--probe detect` on boxes. Jobs run inside this process."""

import contextlib
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from matplotlib.figure import Figure

import visiontune
from tests.benchmark.test_benchmark import rows, small
from tests.data.detection.sets import write_set
from tests.test_fit_detect import things
from visiontune import fit, jobs
from visiontune.__main__ import main
from visiontune.benchmark import child, recipes, training
from visiontune.benchmark.steps import Steps
from visiontune.callbacks.checkpoints import Checkpoints
from visiontune.errors import UserError
from visiontune.jobs import Outcome
from visiontune.recipe import parse_recipe
from visiontune.run import Run

MORE = ["--no-training", "--weights", "random", "data.workers=0"]


class Ended:
    """A process that has done what it was begun for."""

    def __init__(self, status):
        self.returncode = status

    def poll(self):
        return self.returncode

    def terminate(self):
        pass

    wait = poll


SPEED = {"images_per_second": 5.0, "low": 4.0, "high": 6.0, "batch_size": 8, "channels_last": False, "warnings": [], "latency_ms": 3.0}
SPEED |= {"latency_ms_low": 2.9, "latency_ms_high": 3.1, "peak_memory_bytes": 2**28, "idle_memory_bytes": 2**27}


@pytest.fixture
def trained(monkeypatch, functions):
    """Names of the folders around the runs that were begun, in this process; children are functions, too. Nothing is timed or drawn."""
    began = []
    monkeypatch.setitem(child.PARTS, "inference", lambda parts: dict(SPEED))
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: Path(path).write_bytes(b"\x89PNG"))

    def start(job, overrides, slot, *, quiet):
        began.append(job.folder.parent.name)
        with (job.folder / jobs.CONSOLE).open("w") as console, contextlib.redirect_stdout(console), contextlib.redirect_stderr(console):
            return Ended(fit.main(["--resume", str(job.folder), *overrides]))

    monkeypatch.setattr(jobs, "_start", start)
    return began


def tuned(pictures, out, *names, more=()):
    return small(pictures, out, *names, more=[*MORE, "--probe", "finetune", *more])


def test_a_backbone_is_tuned_and_kept_and_one_that_cannot_be_is_a_row_with_its_reason(
    tmp_path, pictures, networks, functions, trained, capsys
):
    out = tmp_path / "out"
    names = [networks / "one", networks / "diverged.safetensors"]
    assert main(tuned(pictures, out, *names, more=["--epochs", "2", "--at", "32"])) == 1
    said = capsys.readouterr().out
    assert "finetune: all of each backbone, by a recipe's defaults, 2 epochs of 48 pictures: about 96 pictures seen by each" in said
    assert "Most accurate by fine-tuning: " in said
    found = rows(out)
    assert {name: row["status"] for name, row in found.items()} == {"one": "finished", "diverged": "failed"}
    assert found["diverged"]["reason"].startswith("finetune: training: {'loss': nan} at step ")
    assert float(found["diverged"]["images_per_second"]) > 0  # what could be measured is kept
    job, one = Run(out / "backbones" / "one" / "finetune"), found["one"]
    recipe = yaml.safe_load(job.recipe_file.read_text())
    assert (recipe["tune"], recipe["epochs"], recipe["data"]["batch_size"], recipe["data"]["image_size"]) == ("full", 2, 48, 32)
    assert recipe["trainer"]["accelerator"] == "cpu"
    assert job.result["best_step"] == 2  # judged once: nothing was chosen on the validation pictures
    assert float(one["finetune_top1"]) == pytest.approx(job.result["top1"], abs=1e-5)
    assert (one["finetune_images_seen"], one["val_pictures"]) == ("96", "16")
    assert float(one["finetune_seconds"]) > 0
    assert not job.last.parent.exists()
    assert len(list(visiontune.load(job.folder).predict(str(pictures / "val")))) == 16
    page = (out / "report.html").read_text()
    assert "fine-tuning, %" in page
    assert "the same number of pictures seen by all" in page

    # the same command again trains what failed alone; more epochs are another training, and nothing else is measured again
    del functions[:], trained[:]
    assert main(tuned(pictures, out, *names, more=["--epochs", "2", "--at", "32"])) == 1
    assert (functions, trained) == ([], ["diverged"])
    assert main(tuned(pictures, out, networks / "one", more=["--epochs", "1", "--at", "32", "--probe", "knn", "finetune"])) == 1
    assert trained[1:] == ["one", "diverged"]
    assert functions == ["one", "diverged"]  # of the embedding
    again = rows(out)["one"]
    assert (again["finetune_images_seen"], again["images_per_second"]) == ("48", found["one"]["images_per_second"])


def test_a_training_that_is_told_to_stop_goes_on_from_its_checkpoint(tmp_path, pictures, networks, trained, capsys, monkeypatch):
    ends = Checkpoints.on_train_epoch_end

    def stops(self, trainer, pl_module):
        ends(self, trainer, pl_module)
        if trainer.current_epoch == 0:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", stops)
    words = tuned(pictures, tmp_path / "out", networks / "one", "resnet19", more=["--epochs", "3"])
    assert main(words) == 143
    assert trained == ["one"]
    assert "stopped; the same command goes on with it" in capsys.readouterr().out
    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", ends)
    assert main(words) == 1
    assert trained == ["one", "one"]
    went_on = Run(tmp_path / "out" / "backbones" / "one" / "finetune")
    assert "resumed from " in (went_on.folder / "log.txt").read_text()
    assert (rows(tmp_path / "out")["one"]["finetune_images_seen"], went_on.result["best_step"]) == ("144", 3)


def train(folder, recipe, asked, status, *, fresh=False, monkeypatch):
    """What `training.train` says where the job leaves a file and ends so; and whether that file was there before."""
    seen = []

    def run_jobs(run, jobs, **options):
        (name,) = jobs
        job = run.folder / name
        job.mkdir(parents=True, exist_ok=True)
        seen.append((job / "half").exists())
        (job / "half").write_text("")
        return {name: Outcome(status)}

    monkeypatch.setattr(training, "run_jobs", run_jobs)
    outcome = training.train(Run(folder.parent), folder, "finetune", recipe, asked, fresh=fresh)
    return outcome.status, seen[0]


def test_a_training_of_something_else_is_begun_anew(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for asked, fresh, kept in (({"epochs": 2}, False, False), ({"epochs": 2}, False, True), ({"epochs": 3}, False, False)):
        assert train(tmp_path / "a", None, asked, 1, fresh=fresh, monkeypatch=monkeypatch) == (1, kept)
    assert train(tmp_path / "a", None, {"epochs": 3}, 1, fresh=True, monkeypatch=monkeypatch) == (1, False)


def test_a_score_that_is_no_number_is_a_failure():
    result = {"top1": None, "seconds": 1.0, "images_seen": 4, "val_pictures": 2}
    recipe = parse_recipe({"task": "classify", "backbone": {"name": "resnet18"}, "data": {"train": "t", "val": "v"}}).single
    assert training.entry_of("finetune", recipe, result)["failed"].startswith("its top1 is not a number, see the log of its run")
    assert training.entry_of("finetune", recipe, result | {"top1": 0.9, "top1_last": 0.8})["finetune_top1"] == 0.8


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    return write_set(root / "train", things(9)), write_set(root / "val", things(4, seed=1))


def on_boxes(annotated, out, *names, more=()):
    train, val = (made.coco for made in annotated)
    words = ["benchmark", train["boxes"], f"images={train['images']}", "--val", val["boxes"], f"val.images={val['images']}"]
    head = ["head.pyramid_width=32", "head.convolutions=1"]
    return [*words, "--out", str(out), "--seconds", "0.002", "--device", "cpu", *MORE, *head, *more, "--backbones", *map(str, names)]


def test_on_boxes_a_head_is_trained_on_each_backbone_which_stays_as_it_is(tmp_path, networks, annotated, functions, trained, capsys):
    out = tmp_path / "out"
    words = on_boxes(annotated, out, networks / "one", "test_vit", "resnet19", more=["--epochs", "1", "--at", "64"])
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "detect: fcos on each frozen backbone, by a recipe's defaults, 1 epoch of 9 pictures" in said
    found = rows(out)
    states = {"one": "finished", "test_vit (random)": "finished", "resnet19 (random)": "failed"}
    assert {name: row["status"] for name, row in found.items()} == states
    for name, folder in (("one", "one"), ("test_vit (random)", "test_vit_random")):
        row, result = found[name], Run(out / "backbones" / folder / "detect").result
        assert float(row["detect_map"]) == pytest.approx(result["map"], abs=1e-5)
        assert float(row["detect_map50"]) == pytest.approx(result["map50"], abs=1e-5)
        assert (row["image_size"], row["val_pictures"], row["detect_images_seen"]) == ("64", "4", "8")
        assert float(row["images_per_second"]) > 0
        assert float(row["detect_seconds"]) > 0
    start = safetensors.torch.load_file(networks / "one" / "model.safetensors")
    end = safetensors.torch.load_file(out / "backbones" / "one" / "detect" / "weights" / "backbone" / "model.safetensors")
    assert start.keys() == end.keys()
    assert all(torch.equal(tensor, start[name]) for name, tensor in end.items())
    recipe = yaml.safe_load((out / "backbones" / "test_vit_random" / "detect" / "recipe.yaml").read_text())
    assert (recipe["head"]["freeze_backbone"], recipe["data"]["augment"]["pipeline"]) == (True, "standard")
    page = (out / "report.html").read_text()
    assert "mAP, %" in page
    assert "mean average precision on 4 pictures" in page
    assert "one standard error" not in page
    del functions[:], trained[:]
    assert main(words) == 1
    assert (functions, trained) == ([], [])


def test_with_boxes_the_backbone_alone_is_counted_and_timed(annotated, networks, tmp_path):
    train, val = (made.coco for made in annotated)
    boxes = {"images": train["images"], "val_images": val["images"]}
    spec = {"data": train["boxes"], "val": val["boxes"], "boxes": boxes, "image_size": 64, "overrides": [], "device": "cpu", "epochs": 1}
    parts = child.Parts(spec | {"backbone": str(networks / "one"), "weights": None}, tmp_path)
    cost = parts.cost()
    backbone = parts.found.module.backbone
    assert (cost["image_size"], cost["parameters"]) == ([64, 64], sum(p.numel() for p in backbone.parameters()))
    steps = Steps(backbone, size=parts.size, channels=3, device=torch.device("cpu"), precision="32-true")
    assert steps.inference(2, False)().shape == (2, 4)
    steps.training(2, False)()  # of all of it, though its training keeps it as it is


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["DATA", "--probe", "detect"],
            "--probe: got detect, which wants boxes, and DATA is taken for labelled pictures; give annotations",
        ),
        (["DATA", "--probe", "tune"], "--probe: got 'tune'; allowed: knn, linear, few, finetune; did you mean 'finetune'?"),
        (["DATA", "--probe", "finetune", "--epochs", "0"], "--epochs: got 0; expected 1 or more"),
        (["DATA", "--epochs", "3"], "--epochs: got 3, but nothing is trained; add finetune to --probe, or leave it out"),
        (["DATA", "--probe", "finetune", "--epochs", "2", "epochs=3"], "--epochs: got 2 beside epochs=3; give one of them"),
        (["BOXES"], "is taken for annotations; add images=FOLDER, where their pictures are"),
        (
            ["BOXES", "images=IMAGES", "--probe", "knn", "detect"],
            "--probe: got knn, which want a label for each picture, and BOXES has boxes",
        ),
        (
            ["BOXES", "images=IMAGES", "val.images=IMAGES"],
            "val.images says something of validation pictures, but --val names no annotations",
        ),
        (["BOXES", "images=/no/photos"], "data.train.images: no folder /no/photos"),
        (["none.json", "images=IMAGES"], "data.train.boxes: there is no "),
        (["BOXES", "images=IMAGES", "head.widht=3"], "head.widht: unknown key"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_measured(pictures, annotated, functions, capsys, words, message):
    places = {"DATA": str(pictures / "train"), "BOXES": annotated[0].coco["boxes"], "IMAGES": annotated[0].coco["images"]}

    def placed(text):
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    assert main(["benchmark", *map(placed, words), "--backbones", "resnet18", "--weights", "random"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert placed(message) in error
    assert functions == []


def test_the_budget_is_the_recipes_own_of_few_pictures_and_many():
    recipe = parse_recipe({"task": "classify", "backbone": {"name": "resnet18"}, "data": {"train": "t", "val": "v"}}).single
    assert [recipes.budget(recipe, n, None)[0] for n in (48, 3_000, 50_000)] == [200, 5, 4]
    assert recipes.budget(recipe, 3_000, 2)[0] == 2
    assert recipes.budget(recipe, 3_000, 2)[1].startswith("finetune: all of each backbone, ")
    tune = recipes.tune_of(["data.workers=0", "tune=last:2"])
    assert recipes.budget(recipe, 3_000, 2, tune=tune)[1].startswith("finetune: last:2 of each backbone, ")
    with pytest.raises(UserError, match="--epochs: got -1"):
        recipes.budget(recipe, 3_000, -1)
    source = {"images": "i", "boxes": "b.json"}
    boxes = parse_recipe({"task": "detect", "backbone": {"name": "resnet18"}, "data": {"train": source, "val": 0.2}}).single
    assert [recipes.budget(boxes, n, None)[0] for n in (10, 400, 100_000)] == [300, 20, 12]


@pytest.mark.parametrize(("device", "place"), [("cpu", ("cpu", 1)), ("cuda:1", ("gpu", [1])), ("mps", ("mps", 1))])
def test_a_training_is_where_the_timings_are_unless_the_user_says_otherwise(pictures, device, place):
    spec = {"data": str(pictures / "train"), "val": 0.25, "image_size": 32, "device": device, "epochs": 4}
    words = {"backbone": "test_vit", "weights": "random"}
    given = recipes.finetune_recipe(spec | {"overrides": ["trainer.check_val_every_n_epoch=2", "tune=lora"]}, words, 48)
    assert (given.trainer.accelerator, given.trainer.devices) == place
    assert (given.epochs, given.trainer.check_val_every_n_epoch, given.tune) == (4, 2, "lora")
    plain = recipes.finetune_recipe(spec | {"overrides": []}, words, 480)
    assert (plain.trainer.check_val_every_n_epoch, plain.data.batch_size, plain.tune) == (4, 64, "full")
