"""How good a backbone's embedding is on labelled pictures, without tuning it: k-NN, a linear probe, few labels.

N training and M validation pictures, D width.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from visiontune import backbones, build
from visiontune.checks import CHECKS
from visiontune.data.folder import parts_among
from visiontune.data.loader import Pictures, make_loader
from visiontune.data.order import EvalOrder
from visiontune.data.sample import cache_folder
from visiontune.data.table import PictureTable
from visiontune.data.views import CenterCrop
from visiontune.errors import UserError, counted, near, some
from visiontune.evaluate import embed_all, few_labels, knn_predict, linear_probe
from visiontune.evaluate.cache import cached, network_key, pictures_key
from visiontune.recipe import ClassifyRecipe, parse_recipe

PROBES = ("knn", "linear", "few")
# Pictures that the linear probe is fitted on at most; its accuracy hardly changes beyond.
MOST = 20_000
NEIGHBOURS = 20
DRAWS = 10


@dataclass(frozen=True)
class Score:
    """One probe's outcome.

    Attributes:
        probe: `knn`, `linear` or `few`.
        setting: what was chosen or given, in words.
        pictures: labelled ones that it was fitted on.
        top1: accuracy in [0, 1]; of several draws their mean.
        standard_error: of an accuracy counted on that many validation pictures (binomial).
        val_pictures: how many those were.
        draws: of the labelled pictures.
        spread: standard deviation over draws; None for one.
    """

    probe: str
    setting: str
    pictures: int
    top1: float
    standard_error: float
    val_pictures: int
    draws: int = 1
    spread: float | None = None


def probe(
    backbone: str,
    data: str,
    *,
    val: str | float | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    probes: Sequence[str] = PROBES,
    shots: Sequence[int] = (1, 5, 10),
    overrides: Sequence[str] = (),
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Embed the pictures once (or read what was kept), and score each probe.

    Args:
        backbone: a timm name, a run folder, an exported folder or file.
        data: labelled pictures, as `data.train` of a classify recipe.
        val: pictures to score on, or a share of `data` to set aside, by class; None: a fifth of a folder, of a table what it says itself.
        weights: of a timm name: `timm` (the default, fetched), `random`, a file or a run; of a folder `random` or None.
        image_size: pixels; default: those that the weights were made for.
        probes: which of `PROBES`.
        shots: labelled pictures of each class for `few`.
        overrides: more `key=value` of a classify recipe, e.g. `data.channels=4`.
        fresh: embed again, whatever is kept.
        say: where to tell.

    Raises:
        UserError: in one sentence.
    """
    check_probes(probes, shots)
    found = prepare(labelled_recipe(backbone, data, val=val, weights=weights, image_size=image_size, overrides=overrides))
    say("\n".join(found.notes))
    return judge(found, probes=probes, shots=shots, fresh=fresh, say=say)


def check_probes(probes: Sequence[str], shots: Sequence[int], *, key: str = "--probes") -> None:
    """Raises UserError for a probe that is none, or no number of labels."""
    for name in probes:
        if name not in PROBES:
            raise UserError(f"{key}: got {name!r}; allowed: {', '.join(PROBES)}{near(name, PROBES)}")
    if wrong := [k for k in shots if k < 1]:
        raise UserError(f"--shots: got {some(wrong)}; expected numbers of labelled pictures of each class, 1 or more, e.g. 1 5 10")


@dataclass(frozen=True)
class Frozen:
    """A backbone that is not tuned, and the pictures that it is judged on.

    Attributes:
        recipe: a classify recipe that names both, derived.
        tables: the pictures, with labels.
        module: a `Classifier`, in evaluation mode, whose backbone has its weights.
        notes: what was found, in words.
    """

    recipe: ClassifyRecipe
    tables: build.Tables
    module: Any
    notes: list[str]


def prepare(recipe: ClassifyRecipe) -> Frozen:
    """The network and the pictures of a `labelled_recipe`; no picture is opened.

    Raises:
        UserError: in one sentence.
    """
    tables = find_labelled(recipe)
    recipe.tune, recipe.compile, recipe.head.ema = "head", False, None  # whatever is said of a training: the network is judged as it is
    derived: Any = build.derive(recipe, tables, 1)[0]  # its notes are of a training that will not be
    module, notes = build.make_module(derived, tables)
    made = f"{derived.backbone.name}, embedding of {module.face.width}, pictures of {'x'.join(map(str, build.picture_size(derived)))}"
    return Frozen(derived, tables, module.eval(), [*tables.notes, *(n for n in notes if "to train" not in n), made])


def find_labelled(recipe: ClassifyRecipe, verb: str = "probe") -> build.Tables:
    """The pictures of a `labelled_recipe`, listed. No weights are read.

    Raises:
        UserError: in one sentence, which begins with `verb`.
    """
    tables = build.find_pictures(recipe)
    if tables.train.labels is None or tables.val is None or tables.val.labels is None:
        raise UserError(
            f"{verb}: {recipe.data.train} has several labels a picture, and these probes take one; train a recipe with `tune: head` instead"
        )
    return tables


def judge(
    found: Frozen, *, probes: Sequence[str], shots: Sequence[int], fresh: bool, say: Callable[[str], None], device: str | None = None
) -> list[Score]:
    """Embed the pictures on the device (None: CUDA where it is there), and score each probe."""
    found.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tables = found.tables
    assert tables.val is not None, "find_labelled() sees to it"
    seen = Embeddings(found.recipe, found.module, fresh=fresh, say=say)
    (x, y), (z, truth) = seen.of(tables.train), seen.of(tables.val)
    M = len(truth)

    def score(name: str, setting: str, pictures: int, top1: float, **more: Any) -> Score:
        return Score(name, setting, pictures, top1, (top1 * (1 - top1) / M) ** 0.5, M, **more)

    scores = []
    if "knn" in probes:
        chunk = max(16, min(1024, 2**27 // len(x)))  # half a gigabyte of similarities
        top1 = float((knn_predict(x, y, z, k=NEIGHBOURS, chunk=chunk) == truth).double().mean())
        scores.append(score("knn", f"k {min(NEIGHBOURS, len(x))}", len(x), top1))
    if "linear" in probes:
        linear = linear_probe(x, y, z, truth, most=MOST)
        scores.append(score("linear", f"C {linear.C:.2g}", min(len(x), MOST), linear.top1))
    if "few" in probes:
        done = few_labels(x, y, z, truth, shots=shots, draws=DRAWS)
        for few in done:
            used = few.shots * len(tables.train.classes)
            scores.append(score("few", f"{few.shots} a class", used, few.mean, draws=DRAWS, spread=few.spread))
        if left := sorted(set(shots) - {few.shots for few in done}):
            fewest = int(torch.bincount(y, minlength=len(tables.train.classes)).min())
            say(f"few labels: {some(left)} a class left out, the smallest class has {counted(fewest, 'picture')}")
    return scores


class Embeddings:
    """Of tables of pictures, by one module; kept under the user's cache folder."""

    def __init__(self, recipe: ClassifyRecipe, module: Any, *, fresh: bool, say: Callable[[str], None]) -> None:
        self.recipe, self.module, self.fresh, self.say = recipe, module, fresh, say
        self.size, self.reading = build.picture_size(recipe), build.reading_of(recipe)
        spec, heads = module.spec, backbones.head_names(module.backbone)
        settings = {"spec": asdict(spec), "size": self.size, "reading": asdict(self.reading), "timm": timm.__version__}
        settings |= {"mean": module.mean.flatten().tolist(), "std": module.std.flatten().tolist()}
        self.key = network_key({k: v for k, v in module.backbone.state_dict().items() if not k.startswith(heads)}, settings)

    def of(self, table: PictureTable) -> tuple[Tensor, Tensor]:
        """Embeddings `(N, D)` float32 and labels `(N,)` of the pictures that can be read."""

        def make() -> tuple[Tensor, Tensor]:
            numbered = replace(table, labels=np.arange(len(table)), mapped=None)
            dataset = Pictures(numbered, CenterCrop(self.size), reading=self.reading)
            workers = self.recipe.data.workers
            assert isinstance(workers, int), "derive() comes first"
            return embed_all(self.module, make_loader(dataset, EvalOrder(len(table), 64), workers=workers), self._tell_broken)

        folder = cache_folder() / "embeddings"
        x, pictures, where = cached(folder, f"{self.key} {pictures_key(table)}", make, fresh=self.fresh)
        self.say(f"embeddings of {counted(len(x), 'picture', ',')}: {where}")
        if not x.isfinite().all():
            some_lost = f"of {int((~x.isfinite().all(dim=1)).sum())} of {counted(len(x), 'picture', ',')}"
            raise UserError(f"probe: the embeddings {some_lost} are not finite; its weights diverged, give those of another run")
        if len(x) < len(table):
            self.say(f"left out: {counted(len(table) - len(x), 'picture')} of {table.root} that cannot be read")
        assert table.labels is not None
        return x, torch.from_numpy(table.labels.astype(np.int64))[pictures]

    def _tell_broken(self, broken: list[tuple[str, str]]) -> None:
        self.say(f"cannot be read: {some(f'{path} ({cause})' for path, cause in broken)}")


def labelled_recipe(
    backbone: str,
    data: str,
    *,
    val: str | float | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    overrides: Sequence[str] = (),
    tune: str = "head",
    batch_size: int = 1,
    verb: str = "probe",
) -> ClassifyRecipe:
    """A classify recipe that names the same network and pictures, as `probe` takes them: whatever it can read, a probe can.

    Raises:
        UserError: in one sentence, which begins with `verb`.
    """
    _check_splits(data, verb)
    settings: dict[str, Any] = {"train": data, "batch_size": batch_size}
    if val is None and not Path(data).is_file():
        val = 0.2
    if val is not None:
        settings["val"] = val
    network, size = network_of(backbone, weights)
    if image_size or size:
        settings["image_size"] = image_size or size
    raw = {"task": "classify", "tune": tune, "backbone": network, "data": settings}
    recipe: Any = parse_recipe(raw, None, overrides, CHECKS, name=verb).single
    return recipe


def network_of(backbone: str, weights: str | None) -> tuple[dict[str, Any], Any]:
    """A recipe's `backbone` for what `probe` takes as one, and the size of pictures that it was made for, where a recipe must say it.

    Raises:
        UserError: in one sentence.
    """
    path = Path(backbone)
    if not path.exists():
        if problem := backbones.check_name(backbone):
            raise UserError(f"probe: got {backbone!r}, which is no folder, and {problem}")
        # random ones see what timm's do; for others a recipe asks the weights, and timm
        return {"name": backbone, "weights": weights or "timm"}, backbones.timm_size(backbone) if weights == "random" else None
    place = build.weights_path(backbone)
    config = backbones.read_config(place)
    if config is None and path.is_file():
        raise UserError(f"probe: {backbone} is a file; give the timm name of its network, and --weights {backbone}")
    if weights not in (None, "random"):
        raise UserError(
            f"--weights: got {weights}, but {backbone} brings its own; leave it out, or say random for the same network without"
        )
    if config is None:
        raise UserError(f"probe: {backbone} is neither a run with weights nor a folder with config.json and model.safetensors")
    if "detector" in config:
        raise UserError(f"probe: {backbone} detects, and has no embedding of a whole picture; give its backbone, RUN/weights/backbone")
    if weights != "random":
        return {"weights": str(place)}, None
    spec = backbones.Spec.of(config)
    return {"name": spec.name, "args": spec.shape_args, "stem": spec.stem}, spec.image_size


def _check_splits(data: str, verb: str) -> None:
    """A folder of train/ and test/ would be two classes of these names."""
    inside = sorted(p.name for p in Path(data).iterdir() if p.is_dir() and p.name[0] != ".") if Path(data).is_dir() else []
    if parts := parts_among(inside, "train"):
        val = f" --val {data}/{parts[1]}" if len(parts) > 1 else ""
        raise UserError(f"{verb}: {data} holds the folders {some(inside)}; give {data}/{parts[0]}{val}")


def table_of(scores: Sequence[Score]) -> str:
    """The scores for a terminal."""
    names = {"knn": "k-NN", "linear": "linear", "few": "few labels"}
    rows = [["probe", "", "pictures", "accuracy", "standard error"]]
    for s in scores:
        spread = f", {100 * s.spread:.1f} over {s.draws} draws" if s.spread is not None else ""
        rows.append([names[s.probe], s.setting, f"{s.pictures:,}", f"{100 * s.top1:.1f} %", f"{100 * s.standard_error:.1f}{spread}"])
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(c.rjust(w) if i in (2, 3) else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in rows
    ]
    lines.append(f"of {counted(scores[0].val_pictures, 'validation picture', ',')}; standard error: of an accuracy counted on that many")
    return "\n".join(lines)


def write_csv(scores: Sequence[Score], file: Path, **about: Any) -> None:
    """One row a probe, with what all rows share in front."""
    rows = [about | asdict(s) for s in scores]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
