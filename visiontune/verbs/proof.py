"""Verbs that tell what weights are worth: without tuning, and tuned from several."""

import re
from pathlib import Path
from typing import Any

from visiontune.verbs.words import at_least, parser_of, writable


def probe(argv: list[str]) -> int:
    """judge a backbone's embedding on labelled pictures, without tuning: k-NN, linear probe, few labels"""
    parser = parser_of("probe", probe)
    parser.add_argument("backbone", metavar="BACKBONE", help="a timm name, a run folder, an exported folder or file")
    parser.add_argument("data", metavar="DATA", help="labelled pictures, as data.train of a classify recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="more keys of a classify recipe, e.g. data.channels=4")
    overrides, argv = _split_overrides(argv)
    parser.add_argument("--val", metavar="DATA|SHARE", help="pictures to score on, or a share to set aside (default: 0.2 of a folder)")
    parser.add_argument("--weights", metavar="WEIGHTS", help="of a timm name: timm (default, fetched), random, a file or a run")
    parser.add_argument("--at", type=at_least(1), metavar="PIXELS", help="size of pictures (default: as the weights were made)")
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
        writable(args.csv)
    scores = room.probe(
        args.backbone, args.data, val=_path_or_share(args.val), weights=args.weights, image_size=args.at, probes=args.probes,
        shots=args.shots, overrides=[*args.overrides, *overrides], fresh=args.fresh,
    )  # fmt: skip
    if not scores:
        return 1
    print(f"\n{room.table_of(scores)}")
    if args.csv:
        about = {"backbone": args.backbone, "weights": args.weights or "", "data": args.data, "image_size": args.at or ""}
        room.write_csv(scores, Path(args.csv), **about)
    return 0


def compare(argv: list[str]) -> int:
    """train one recipe that classifies or detects from several weights, on few and many labels, and tell what the weights bring"""
    parser = parser_of("compare", compare)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a classify recipe: a YAML file, or the name of a shipped one")
    parser.add_argument("--weights", nargs="+", default=[], metavar="WEIGHTS",
                        help="random, timm, weights files, run folders; the first is what the others are compared with")  # fmt: skip
    parser.add_argument("--labels", nargs="+", default=["100%"], metavar="N", help="shares as 1%% 10%% 100%%, or pictures of a class as 10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3], metavar="N", help="how many (default: 3), or several seeds themselves")
    parser.add_argument("--out", metavar="FOLDER", help="the comparison's folder (default: runs/compare_RECIPE)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with a comparison; the same command does so, too")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one for each CUDA device, else one)")
    parser.add_argument("--devices", nargs="+", default=[], metavar="N", help="numbers of CUDA devices to use (default: all)")
    parser.add_argument(
        "--min-steps", type=at_least(0), default=500, metavar="N", help="fewest optimiser steps with few labels (default: 500)"
    )
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
        raise UserError("compare: expected a recipe and --weights, e.g. `compare classify/full_small --weights random runs/base`")
    if args.seeds[0] < 1 and len(args.seeds) == 1:
        raise UserError(f"--seeds: got {args.seeds[0]}; expected how many, 1 or more, or several seeds themselves, as 0 1 2")
    seeds = list(range(args.seeds[0])) if len(args.seeds) == 1 else args.seeds
    return room.compare(
        args.recipe, weights=args.weights, labels=args.labels, seeds=seeds, overrides=overrides, out=args.out, min_steps=args.min_steps,
        **places,
    )  # fmt: skip


def benchmark(argv: list[str]) -> int:
    """many backbones on your pictures and your machine: accuracy, speed, memory and cost in one table"""
    parser = parser_of("benchmark", benchmark)
    parser.add_argument("data", nargs="?", metavar="DATA", help="labelled pictures, as data.train of a classify recipe; or, with "
                        "images=FOLDER, annotations of boxes: COCO's .json, a folder of Pascal VOC's .xml or of YOLO's .txt; "
                        "with --against and without --backbones: a finished benchmark's folder or results.csv")  # fmt: skip
    parser.add_argument("--backbones", nargs="+", action="extend", default=[], metavar="NAME",
                        help="timm names, wildcards ('vit_tiny*'), run folders, exported folders and .safetensors files")  # fmt: skip
    parser.add_argument("--weights", default="timm", metavar="WEIGHTS", help="of timm names: timm (default, fetched) or random")
    parser.add_argument("--val", metavar="DATA|SHARE", help="pictures to score on, or a share to set aside (default: 0.2 of a folder)")
    parser.add_argument("--probe", nargs="+", metavar="PROBE",
                        help="of: knn linear few finetune (default: knn linear); of boxes: detect")  # fmt: skip
    parser.add_argument("--epochs", type=int, metavar="N", help="of finetune and detect, alike for all backbones (default: few)")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5, 10], metavar="K", help="labels a class of `few` (default: 1 5 10)")
    parser.add_argument(
        "--at", type=at_least(1), metavar="PIXELS", help="size of pictures, for all (default: as each one's weights were made)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")
    parser.add_argument("--precision", default="auto", help="of what is timed, as trainer.precision of a recipe (default: by the device)")
    parser.add_argument("--compile", action="store_true", help="time them compiled by torch.compile, too, and tell the gain")
    parser.add_argument("--no-training", action="store_true", help="leave out the timing of optimiser steps")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="shortest window of a timing; seven count (default: 1)")
    parser.add_argument("--out", metavar="FOLDER", help="the benchmark's folder (default: runs/benchmark); the same one is gone on with")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--against", metavar="OLD.csv", help="results.csv or folder of another machine or version: "
                        "tell what got slower or worse beyond noise; without --backbones nothing is measured")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the backbones, measure nothing")
    overrides, argv = _split_overrides(argv)
    args = parser.parse_args(argv)
    from visiontune.errors import UserError
    from visiontune.finish import silence

    silence()
    if args.against and not args.backbones:
        idle = [f"--{key.replace('_', '-')}" for key, value in vars(args).items()
                if key not in ("data", "out", "against") and value != parser.get_default(key)]  # fmt: skip
        if idle or overrides:
            raise UserError(f"{(idle or overrides)[0]}: nothing is measured without --backbones; leave it out, or name some")
        if args.data and args.out:
            raise UserError(f"benchmark: got {args.data} and --out {args.out}; expected one finished benchmark to compare, or --backbones")
        from visiontune.benchmark.against import finished

        return finished(args.data or args.out or "runs/benchmark", args.against)
    if not args.backbones or not args.data:
        example = "benchmark flowers/train --backbones resnet18 'convnext_*o' runs/my_mae"
        raise UserError(f"benchmark: expected labelled pictures and --backbones, e.g. `{example}`")
    from visiontune.benchmark.command import benchmark as run

    return run(
        args.data, names=args.backbones, weights=args.weights, val=_path_or_share(args.val), probes=args.probe, shots=args.shots,
        image_size=args.at, device=args.device, precision=args.precision, compiled=args.compile, training=not args.no_training,
        epochs=args.epochs, seconds=args.seconds, overrides=overrides, out=args.out, fresh=args.fresh, compare_with=args.against,
        dry_run=args.dry_run,
    )  # fmt: skip


def _path_or_share(val: str | None) -> str | float | None:
    """A number between 0 and 1 is a share; any other one may be the name of a folder (`2012`), as `./0.2` is."""
    from visiontune.errors import UserError

    try:
        share = float(val or "")
    except ValueError:
        return val
    if 0 < share < 1:
        return share
    if val is not None and Path(val).exists():
        return val
    raise UserError(f"--val: got {val}; expected a share between 0 and 1, or pictures, and there is no folder or file {val}")


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` words apart from the others, wherever they stand: after an option that takes a list they would join it."""
    overrides = [word for word in argv if re.match(r"[a-z_][a-z_0-9.]*=", word)]
    return overrides, [word for word in argv if word not in overrides]
