"""The verbs: `python -m visiontune VERB`. One thin function each."""

import argparse
import fnmatch
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def fit(argv: list[str]) -> int:
    """train what a recipe says (the same as python -m visiontune.fit)"""
    from visiontune.fit import main as run

    return run(argv)


def list_(argv: list[str]) -> int:
    """list shipped recipes, methods, view pipelines, or timm's backbones"""
    parser = _parser("list", list_)
    parser.add_argument("what", nargs="?", default="recipes", choices=["recipes", "methods", "views", "backbones"])
    parser.add_argument("pattern", nargs="?", default="*", help="wildcards, e.g. 'vit_small*'")
    args = parser.parse_args(argv)
    if args.what == "recipes":
        from visiontune.recipe import shipped_recipes

        for name, path in shipped_recipes().items():
            if fnmatch.fnmatch(name, args.pattern):
                print(f"{name:40} {_first_comment(path)}")
    elif args.what == "methods":
        from visiontune.recipe.options import methods, read_options

        for name in fnmatch.filter(methods(), args.pattern):
            print(f"{name:12} {read_options('pretrain', name).summary}")
    elif args.what == "views":
        from visiontune.recipe.options import named_views

        for name in fnmatch.filter(named_views(), args.pattern):
            print(f"{name:10} {named_views()[name]}")
    else:
        import timm

        print("\n".join(timm.list_models(args.pattern)))
    return 0


def show(argv: list[str]) -> int:
    """show a recipe's text, or a method's options"""
    parser = _parser("show", show)
    parser.add_argument("name", help="a recipe (file or shipped name) or a method")
    args = parser.parse_args(argv)
    from visiontune.recipe import find_recipe
    from visiontune.recipe.options import methods, read_options

    if args.name in methods():
        options = read_options("pretrain", args.name)
        print(f"{options.name}: {options.summary}\n")
        for option in options.options:
            default = "must be given" if option.default is ... else repr(option.default)
            print(f"  {option.name}: {default}\n      {option.meaning}")
        print(f"\n  its views (data.augment): {options.views}\n  its optimiser (optim): {options.optim}")
    else:
        print(find_recipe(args.name).read_text(), end="")
    return 0


def copy(argv: list[str]) -> int:
    """copy a shipped recipe here, to change it"""
    parser = _parser("copy", copy)
    parser.add_argument("recipe")
    parser.add_argument("to", nargs="?", help="file to write (default: its own name, in this folder)")
    args = parser.parse_args(argv)
    from visiontune.errors import UserError
    from visiontune.recipe import find_recipe

    source = find_recipe(args.recipe)
    target = Path(args.to or source.name)
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(f"copy: {target} is there already; give another name: python -m visiontune copy {args.recipe} NAME.yaml")
    shutil.copyfile(source, target)
    print(f"{target}: run it with `python -m visiontune.fit {target}`")
    return 0


def check(argv: list[str]) -> int:
    """check a recipe (keys, values, folders, backbones) or the pictures of a folder or table (broken, twice, tiny, classes)"""
    parser = _parser("check", check)
    parser.add_argument("what", metavar="RECIPE or FOLDER", help="a recipe, or a folder, shards or table of pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings on top of the recipe's; of pictures: data.channels=4")
    parser.add_argument("--csv", metavar="OUT", help="of pictures: list every problem in this file")
    parser.add_argument("--tiny", type=int, default=32, metavar="PIXELS", help="of pictures: short side below which one is tiny")
    args = parser.parse_intermixed_args(argv)
    from visiontune.data.rows import is_table
    from visiontune.data.shards import is_shards

    if Path(args.what).is_dir() or is_shards(args.what) or is_table(args.what):
        from visiontune.checks import check_pictures

        if args.csv:
            _writable(args.csv)
        return check_pictures(args.what, args.overrides, out=args.csv, tiny=args.tiny, progress=_progress)
    from visiontune.checks import CHECKS
    from visiontune.errors import UserError
    from visiontune.recipe import load_recipe, shipped_recipes

    if not Path(args.what).exists() and args.what not in shipped_recipes() and not args.what.endswith((".yaml", ".yml")):
        raise UserError(f"check: there is no folder {args.what}, no such file, and no recipe of that name; `list` shows the recipes")
    loaded = load_recipe(args.what, args.overrides, checks=CHECKS)
    stages = f", stages {', '.join(loaded.stages)}" if loaded.staged else ""
    print(f"{args.what}: sound{stages}")
    return 0


def _writable(file: str) -> None:
    """Whether a file can be written is found before hours of work, not after."""
    from visiontune.errors import UserError

    try:
        with open(file, "a"):
            pass
    except OSError as error:
        raise UserError(f"--csv: cannot write {file} ({error.strerror}); name a file in a folder that is there") from error


def index(argv: list[str]) -> int:
    """list a folder's pictures once, for runs to open in milliseconds"""
    parser = _parser("index", index)
    parser.add_argument("folder", metavar="FOLDER", help="pictures, at any depth")
    parser.add_argument("--beside", action="store_true", help="keep it next to the folder, as FOLDER.visiontune-index, for all who use it")
    parser.add_argument("--fresh", action="store_true", help="list every folder again, also those that did not change")
    args = parser.parse_args(argv)
    import os

    from visiontune.data.folder import list_pictures, missing_folder
    from visiontune.data.index import open_index
    from visiontune.data.rows import is_table
    from visiontune.data.shards import is_shards, open_shards
    from visiontune.errors import UserError, counted

    if is_shards(args.folder):
        table = open_shards(args.folder, key="index", labelled=None)
        print("\n".join([f"{counted(len(table), 'picture')} in the shards of {args.folder}", *table.notes]))
        return 0
    if is_table(args.folder):
        raise UserError(f"index: {args.folder} is a table, which names its pictures itself: no folder has to be listed")
    if not os.path.isdir(args.folder):
        raise UserError(missing_folder("index", args.folder))
    found = open_index(args.folder, beside=args.beside or None, fresh=args.fresh)
    if not len(found):
        list_pictures(args.folder, key="index")  # says why
    classes = f", in {counted(len(found.classes), 'folder')} at the first level" if found.classes else ""
    print("\n".join([f"{counted(len(found), 'picture')} in {args.folder}{classes}", *found.notes()]))
    return 0 if len(found) else 1


def shard(argv: list[str]) -> int:
    """pack a folder's pictures into tar shards, for storage where small files are slow"""
    parser = _parser("shard", shard)
    parser.add_argument("folder", metavar="FOLDER", help="pictures; first-level folders become classes if there are several")
    parser.add_argument("out", metavar="OUT", help="folder for the shards; new or empty")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shrink to this short side (as JPEG); smaller pictures stay as they are")
    parser.add_argument("--unlabelled", action="store_true", help="write no classes")
    args = parser.parse_args(argv)
    from visiontune.data.folder import list_pictures
    from visiontune.data.shard_writer import write_shards

    table = list_pictures(args.folder, key="shard", labelled=False if args.unlabelled else None)
    # The root's own pictures come first: with class folders beside them it is they that have no class.
    stray = b"/" not in table.name(0) and b"/" in table.name(len(table) - 1)
    if stray and table.labels is None and not args.unlabelled:
        print(f"no classes are written: {table.path(0)} lies in no class folder; move it, or say --unlabelled")
    summary = write_shards(table, Path(args.out), size=args.size, progress=_progress(len(table)))
    print("\n".join(summary.lines()))
    return 0


def predict(argv: list[str]) -> int:
    """label pictures with a fine-tuned run"""
    parser = _parser("predict", predict)
    parser.add_argument("run", metavar="RUN", help="a run, an exported folder, or a .safetensors or .onnx file of it")
    _add_pictures(parser)
    parser.add_argument("--csv", metavar="OUT", help="file to write (default: print)")
    parser.add_argument("--top", type=int, metavar="K", help="this many labels a picture, as label,score,label2,score2,...")
    parser.add_argument("--tta", action="store_true", help="mean of the scores of each picture and its mirror image")
    args = parser.parse_args(argv)
    from visiontune.errors import counted
    from visiontune.predict import from_words, load, write_csv

    model, sources, told = load(args.run, device=_device(args.device)), from_words(args.paths, key="predict"), _Told()
    found = model.predict(sources, top=args.top, batch_size=args.batch_size, workers=args.workers, tta=args.tta)
    if args.csv:
        _writable(args.csv)
        with open(args.csv, "w", newline="", errors="surrogateescape") as file:
            count = write_csv(_watched(found, sources.total), file, top=args.top, on_broken=told)
        print(f"{counted(count, 'picture', ',')} labelled in {args.csv}{told}")
    else:
        count = write_csv(found, sys.stdout, top=args.top, on_broken=told)
    return 0 if count else 1


def embed(argv: list[str]) -> int:
    """write the embeddings of pictures, by a run or by one of timm's backbones"""
    parser = _parser("embed", embed)
    parser.add_argument("model", metavar="RUN or BACKBONE", help="a run, an exported folder or file, or timm's name of a backbone")
    _add_pictures(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="FILE.npz (paths, embeddings), FILE.parquet or FILE.csv")
    parser.add_argument("--weights", default="random", help="of a backbone by name: random, timm, a file, a run (default: random)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for a backbone by name (default: timm's)")
    args = parser.parse_args(argv)
    from visiontune.errors import counted
    from visiontune.predict import check_format, from_words, load_or_create, write_embeddings

    check_format(Path(args.out))
    model = load_or_create(args.model, weights=args.weights, image_size=args.image_size, device=_device(args.device))
    sources, told = from_words(args.paths, key="embed"), _Told()
    found = model.embeddings(sources, batch_size=args.batch_size, workers=args.workers)
    count, width = write_embeddings(_watched(found, sources.total), Path(args.out), on_broken=told)
    print(f"{counted(count, 'embedding', ',')} of {width} numbers in {args.out}{told}")
    return 0


def export(argv: list[str]) -> int:
    """write a run's model as ONNX, compared with PyTorch, or as one safetensors file"""
    parser = _parser("export", export)
    parser.add_argument("run", metavar="RUN", help="a run, or an exported folder or file")
    parser.add_argument("format", choices=["onnx", "safetensors"])
    parser.add_argument("--out", metavar="PATH", help="file to write; of safetensors a folder where it does not end in .safetensors")
    parser.add_argument("--fp16", action="store_true", help="half precision: half the bytes, coarser scores")
    parser.add_argument("--opset", type=int, metavar="N", help="of onnx: version of the operators (default: 18)")
    parser.add_argument("--dynamic", action="store_true", help="of onnx: pictures of any size (any number of them always)")
    parser.add_argument("--with-preprocessing", choices=["nchw", "nhwc"], help="of onnx: take uint8 pixels, and normalise inside")
    args = parser.parse_args(argv)
    from visiontune.errors import UserError
    from visiontune.export import export_onnx, export_weights_file
    from visiontune.predict import Model, load, weights_of

    model = load(args.run)
    if not isinstance(model, Model):
        raise UserError(f"export: {args.run} is an ONNX file, from which nothing can be exported; give the run")
    place = weights_of(args.run)
    out = Path(args.out) if args.out else place.with_name(f"{place.name.removesuffix('.safetensors')}.{args.format}")
    if args.format == "safetensors":
        if given := [o for o in ("opset", "dynamic", "with_preprocessing") if getattr(args, o)]:
            raise UserError(f"export: --{given[0].replace('_', '-')} is for onnx alone; leave it out")
        print(export_weights_file(model.network, model.config, out, fp16=args.fp16))
        return 0
    options = {"opset": args.opset} if args.opset is not None else {}
    done = export_onnx(
        model.network, model.config, out, input=args.with_preprocessing or "float", dynamic=args.dynamic, fp16=args.fp16, **options
    )
    print(f"{done.path}: {done.size / 1e6:.1f} MB; outputs differ from PyTorch's by {done.difference:.0e} of the largest")
    return 0


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="pictures, folders of them, shards; - reads paths from standard input")
    parser.add_argument("--batch-size", type=_count, default=64, metavar="N", help="pictures at once (default: 64)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one a core)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {number}; expected a number above 0")
    return number


def _device(name: str) -> str:
    from visiontune.predict import devices

    return devices()[0] if name == "auto" else name


class _Told:
    """Tells of each broken picture as it is met, and at the end how many there were."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str, cause: str) -> None:
        from visiontune.errors import readable

        self.count += 1
        print(readable(f"left out: {path} ({cause})"), file=sys.stderr)

    def __str__(self) -> str:
        return f", {self.count:,} left out" if self.count else ""


def _watched(items: Iterable[Item], total: int | None) -> Iterator[Item]:
    """The items as they are, with progress on the way."""
    progress = _progress(total)
    for done, item in enumerate(items, 1):
        progress(done)
        yield item


def evaluate(argv: list[str]) -> int:
    """judge a fine-tuned run on labelled pictures: numbers, classes, confusions, mistakes"""
    parser = _parser("evaluate", evaluate)
    parser.add_argument("run", metavar="RUN", help="a run folder, or what export wrote")
    parser.add_argument("data", metavar="DATA", help="labelled pictures: class folders, shards or a table, as data.val of a recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of a table: data.columns.label=NAME (default: as the run's recipe)"
    )
    parser.add_argument("--part", choices=["train", "val", "test"], help="of a table with a column that tells parts (default: all rows)")
    parser.add_argument("--out", metavar="FOLDER", help="where the numbers and pictures go (default: RUN/evaluate/NAME OF DATA)")
    parser.add_argument("--csv", metavar="OUT", help="file for the row of each picture (default: predictions.csv in the folder)")
    parser.add_argument("--tta", action="store_true", help="mean scores of each picture and its mirror image; twice the time")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")
    args = parser.parse_intermixed_args(argv)
    from visiontune.measure import evaluate as run
    from visiontune.report.measured import words

    if args.csv:
        _writable(args.csv)
    where = {"out": args.out, "csv": args.csv, "device": _device(args.device)}
    result, folder, notes = run(args.run, args.data, tta=args.tta, overrides=args.overrides, part=args.part, progress=_progress, **where)
    print("\n".join([*notes, words(folder, result), f"report: {folder.absolute() / 'report.html'}"]))
    return 0


def probe(argv: list[str]) -> int:
    """judge a backbone's embedding on labelled pictures, without tuning: k-NN, linear probe, few labels"""
    parser = _parser("probe", probe)
    parser.add_argument("backbone", metavar="BACKBONE", help="a timm name, a run folder or an exported folder")
    parser.add_argument("data", metavar="DATA", help="labelled pictures, as data.train of a classify recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="more keys of a classify recipe, e.g. data.channels=4")
    overrides, argv = _split_overrides(argv)
    parser.add_argument("--val", metavar="DATA|SHARE", help="pictures to score on, or a share to set aside (default: 0.2 of a folder)")
    parser.add_argument("--weights", metavar="WEIGHTS", help="of a timm name: timm (default, fetched), random, a file or a run")
    parser.add_argument("--at", type=int, metavar="PIXELS", help="size of pictures (default: as the weights were made)")
    parser.add_argument(
        "--probes", nargs="+", default=["knn", "linear", "few"], metavar="PROBE", help="some of: knn linear few (default: all)"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 10], metavar="K", help="labels a class of `few` (default: 1 5 10)")
    parser.add_argument("--fresh", action="store_true", help="embed again, whatever is kept in the cache folder")
    parser.add_argument("--csv", metavar="OUT", help="file to write the scores to")
    args = parser.parse_args(argv)
    from visiontune import probe as room
    from visiontune.finish import silence

    silence()
    if args.csv:
        _writable(args.csv)
    val = float(args.val) if (args.val or "").replace(".", "", 1).isdigit() else args.val
    scores = room.probe(
        args.backbone, args.data, val=val, weights=args.weights, image_size=args.at, probes=args.probes, shots=args.shots,
        overrides=[*args.overrides, *overrides], fresh=args.fresh,
    )  # fmt: skip
    if not scores:
        return 1
    print(f"\n{room.table_of(scores)}")
    if args.csv:
        about = {"backbone": args.backbone, "weights": args.weights or "", "data": args.data, "image_size": args.at or ""}
        room.write_csv(scores, Path(args.csv), **about)
    return 0


def compare(argv: list[str]) -> int:
    """train one classify recipe from several weights, on few and many labels, and tell what the weights bring"""
    parser = _parser("compare", compare)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a classify recipe: a YAML file, or the name of a shipped one")
    parser.add_argument("--weights", nargs="+", default=[], metavar="WEIGHTS",
                        help="random, timm, weights files, run folders; the first is what the others are compared with")  # fmt: skip
    parser.add_argument("--labels", nargs="+", default=["100%"], metavar="N", help="shares as 1%% 10%% 100%%, or pictures of a class as 10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3], metavar="N", help="how many (default: 3), or several seeds themselves")
    parser.add_argument("--out", metavar="FOLDER", help="the comparison's folder (default: runs/compare_RECIPE)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with a comparison; the same command does so, too")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one for each CUDA device, else one)")
    parser.add_argument("--devices", nargs="+", default=[], metavar="N", help="numbers of CUDA devices to use (default: all)")
    parser.add_argument("--min-steps", type=int, default=500, metavar="N", help="fewest optimiser steps with few labels (default: 500)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the runs, train nothing")
    overrides, argv = _split_overrides(argv)
    args = parser.parse_args(argv)
    from visiontune import compare as room
    from visiontune.errors import UserError
    from visiontune.finish import silence

    silence()
    places: dict[str, Any] = {"jobs": args.jobs, "devices": args.devices, "dry_run": args.dry_run}
    if args.resume:
        if args.recipe or args.weights:
            raise UserError("--resume: takes no recipe and no weights; to add some, give the whole command with --out FOLDER")
        from visiontune.fit import check_resumable

        check_resumable(overrides, f"python -m visiontune compare RECIPE ... --out NEW_FOLDER {' '.join(overrides)}")
        return room.resume(args.resume, overrides=overrides, **places)
    if not args.recipe or not args.weights:
        raise UserError("compare: expected a recipe and --weights, e.g. `compare classify/full --weights random runs/mae --labels 1% 10%`")
    seeds = list(range(args.seeds[0])) if len(args.seeds) == 1 else args.seeds
    return room.compare(
        args.recipe, weights=args.weights, labels=args.labels, seeds=seeds, overrides=overrides, out=args.out, min_steps=args.min_steps,
        **places,
    )  # fmt: skip


def report(argv: list[str]) -> int:
    """write report.html and the model card of a finished run again"""
    parser = _parser("report", report)
    parser.add_argument("run", metavar="RUN")
    args = parser.parse_args(argv)
    from visiontune.report.page import rewrite_report

    print(rewrite_report(args.run))
    return 0


def schema(argv: list[str]) -> int:
    """print the JSON schema of recipes, for editors"""
    _parser("schema", schema).parse_args(argv)
    from visiontune.recipe.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "fit": fit, "list": list_, "show": show, "copy": copy, "check": check, "index": index, "shard": shard,
    "predict": predict, "evaluate": evaluate, "embed": embed, "probe": probe, "compare": compare, "export": export,
    "report": report, "schema": schema,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 come out as they are
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m visiontune VERB ... (VERB --help tells more)\n")
        print("\n".join(f"  {name:10} {verb.__doc__}" for name, verb in VERBS.items()))
        return 0 if words else 2
    from visiontune.errors import UserError, near

    if words[0] not in VERBS:
        print(f"error: visiontune: no verb {words[0]!r}{near(words[0], VERBS)}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        return 0


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` words apart from the others, wherever they stand: after an option that takes a list they would join it."""
    overrides = [word for word in argv if re.match(r"[a-z_][a-z_0-9.]*=", word)]
    return overrides, [word for word in argv if word not in overrides]


def _parser(name: str, verb: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m visiontune {name}", description=verb.__doc__)


def _progress(total: int | None) -> Callable[[int], None]:
    """Tells on the terminal how far a long look is: every second there, every minute in a log."""
    started = told = time.monotonic()
    every = 1.0 if sys.stderr.isatty() else 60.0

    def progress(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= every:
            told = now
            speed = done / (now - started)
            if total is None:
                text = f"{done:,} pictures, {speed:,.0f} a second   "
            else:
                text = f"{done:,} of {total:,} pictures, about {(total - done) / speed / 60:.0f} minutes left   "
            print(text, end="\r" if every == 1.0 else "\n", file=sys.stderr, flush=True)

    return progress


def _first_comment(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""


if __name__ == "__main__":
    sys.exit(main())
