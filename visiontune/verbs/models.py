"""Verbs that use what a run has left."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visiontune.verbs.words import at_least, parser_of, progress_of, writable

if TYPE_CHECKING:
    from visiontune.predict import BoxPredictor, DetectorModel, Sources

Item = TypeVar("Item")
PICTURES = 64


def predict(argv: list[str]) -> int:
    """label pictures, or find things in them, with a fine-tuned run"""
    parser = parser_of("predict", predict)
    parser.add_argument("run", metavar="RUN", help="a run, an exported folder, or a .safetensors or .onnx file of it")
    _add_pictures(parser)
    parser.add_argument("--csv", metavar="OUT", help="file to write (default: print)")
    parser.add_argument("--top", type=int, metavar="K", help="this many labels a picture, as label,score,label2,score2,...")
    parser.add_argument("--tta", action="store_true", help="mean of the scores of each picture and its mirror image")
    boxes = parser.add_argument_group("of a run that detects")
    boxes.add_argument("--score", type=float, metavar="S", help="lowest of a box (default: the best one on the validation pictures)")
    boxes.add_argument("--json", metavar="OUT", help="write COCO's results instead of a CSV")
    boxes.add_argument("--draw", metavar="FOLDER", help="write the pictures with their boxes, too")
    boxes.add_argument("--tile", type=int, metavar="PIXELS", help="cut pictures into overlapping tiles of this side, for small things")
    args = parser.parse_args(argv)
    from visiontune.errors import UserError, counted
    from visiontune.predict import BoxPredictor, from_words, load, whole_file, write_csv

    model, sources, told = load(args.run, device=_device(args.device, args.run)), from_words(args.paths, key="predict"), _Told()
    told.notes(sources.notes)
    if isinstance(model, BoxPredictor):
        return _predict_boxes(model, sources, args, told)
    if given := [o for o in ("score", "json", "draw", "tile") if getattr(args, o) is not None]:
        raise UserError(f"predict: --{given[0]} is for runs that detect, and {args.run} does not; leave it out")
    found = model.predict(sources, top=args.top, batch_size=args.batch_size or PICTURES, workers=args.workers, tta=args.tta)
    if args.csv:
        writable(args.csv)
        with whole_file(Path(args.csv)) as part, part.open("w", newline="", errors="surrogateescape") as file:
            count = write_csv(_watched(found, sources.total), file, top=args.top, on_broken=told)
        print(f"{counted(count, 'picture', ',')} labelled in {args.csv}{told}")
    else:
        count = write_csv(found, sys.stdout, top=args.top, on_broken=told)
    return 0 if count else 1


def _predict_boxes(model: "BoxPredictor", sources: "Sources", args: argparse.Namespace, told: "_Told") -> int:
    from visiontune.errors import UserError, counted
    from visiontune.predict import check_boxes_format, write_box_csv, write_coco_results
    from visiontune.predict.draw import draw_found, drawing_folder

    if args.tta or args.top is not None:
        raise UserError(f"predict: --{'tta' if args.tta else 'top'} is for runs that classify, and {args.run} detects; leave it out")
    if args.json and args.csv:
        raise UserError("predict: got --csv and --json; one at a time")
    for key, out in (("--csv", args.csv), ("--json", args.json)):
        if out:
            check_boxes_format(Path(out), key=key)
            writable(out, key=key)
    batch = {"batch_size": args.batch_size} if args.batch_size else {}
    found = model.predict(sources, score=args.score, tile=args.tile, workers=args.workers, **batch)
    if args.draw:
        found = draw_found(found, model.class_names, drawing_folder(Path(args.draw)), reading=model.reading)
    out = args.json or args.csv
    watched = _watched(found, sources.total) if out else found
    if args.json:
        pictures, boxes = write_coco_results(watched, Path(out), names=model.class_names, on_broken=told)
    else:
        pictures, boxes = write_box_csv(watched, out or sys.stdout, model.class_names, on_broken=told)
    if out:
        print(f"{counted(boxes, 'box', ',')} in {counted(pictures, 'picture', ',')} in {out}{told}")
    return 0 if pictures else 1


def evaluate(argv: list[str]) -> int:
    """judge a fine-tuned run on labelled or annotated pictures: numbers, classes, confusions, mistakes"""
    parser = parser_of("evaluate", evaluate)
    parser.add_argument("run", metavar="RUN", help="a run folder, or what export wrote")
    parser.add_argument("data", metavar="DATA", help="class folders, shards or a table, as data.val of a recipe; of boxes: annotations")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of a table: data.columns.label=NAME (default: as in the run); of boxes: images=FOLDER split=FILE",
    )
    parser.add_argument("--part", choices=["train", "val", "test"], help="of a table with a column that tells parts (default: all rows)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the numbers and pictures go (default: RUN/evaluate/NAME, by the name of DATA)"
    )
    parser.add_argument("--csv", metavar="OUT", help="file for the row of each picture (default: predictions.csv in the folder)")
    parser.add_argument("--tta", action="store_true", help="mean scores of each picture and its mirror image; twice the time")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")
    args = parser.parse_intermixed_args(argv)
    from visiontune.measure import evaluate as run
    from visiontune.report import detection, measured

    if args.csv:
        writable(args.csv)
    where = {"out": args.out, "csv": args.csv, "device": _device(args.device, args.run)}
    result, folder, notes = run(args.run, args.data, tta=args.tta, overrides=args.overrides, part=args.part, progress=progress_of, **where)
    words = (detection if "map" in result else measured).words(folder, result)
    print("\n".join([*notes, words, f"report: {folder.absolute() / 'report.html'}"]))
    return 0


def embed(argv: list[str]) -> int:
    """write the embeddings of pictures, by a run or by one of timm's backbones"""
    parser = parser_of("embed", embed)
    parser.add_argument("model", metavar="RUN or BACKBONE", help="a run, an exported folder or file, or timm's name of a backbone")
    _add_pictures(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="FILE.npz (paths, embeddings), FILE.parquet or FILE.csv")
    parser.add_argument("--weights", metavar="WEIGHTS", help="of a backbone by name: timm (default, fetched), random, a file or a run")
    parser.add_argument("--image-size", type=at_least(1), metavar="PIXELS", help="for a backbone by name (default: timm's)")
    args = parser.parse_args(argv)
    from visiontune.errors import UserError, counted
    from visiontune.predict import BoxPredictor, check_format, from_words, load_or_create, write_embeddings

    check_format(Path(args.out))
    sources, told = from_words(args.paths, key="embed"), _Told()  # before weights are fetched
    told.notes(sources.notes)
    model = load_or_create(args.model, weights=args.weights, image_size=args.image_size, device=_device(args.device, args.model))
    if isinstance(model, BoxPredictor):
        raise UserError(f"embed: {args.model} detects, and has no embedding of a whole picture; give its backbone, RUN/weights/backbone")
    found = model.embeddings(sources, batch_size=args.batch_size or PICTURES, workers=args.workers)
    count, width = write_embeddings(_watched(found, sources.total), Path(args.out), on_broken=told)
    print(f"{counted(count, 'embedding', ',')} of {width} numbers in {args.out}{told}")
    return 0


def export(argv: list[str]) -> int:
    """write a run's model as ONNX, compared with PyTorch, or as one safetensors file"""
    parser = parser_of("export", export)
    parser.add_argument("run", metavar="RUN", help="a run, or an exported folder or file")
    parser.add_argument("format", choices=["onnx", "safetensors"])
    parser.add_argument("--out", metavar="PATH", help="file to write; of safetensors a folder where it does not end in .safetensors")
    parser.add_argument("--fp16", action="store_true", help="half precision: half the bytes, coarser scores")
    parser.add_argument("--opset", type=int, metavar="N", help="of onnx: version of the operators (default: 18)")
    parser.add_argument("--dynamic", action="store_true", help="of onnx: pictures of any size (any number of them always)")
    parser.add_argument("--with-preprocessing", choices=["nchw", "nhwc"], help="of onnx: take uint8 pixels, and normalise inside")
    parser.add_argument(
        "--nms", choices=["inside", "outside"], help="of onnx and a run that detects: in the file (default), or left to what runs it"
    )
    args = parser.parse_args(argv)
    from visiontune.errors import UserError
    from visiontune.export import export_onnx, export_weights_file
    from visiontune.predict import DetectorModel, Model, load, weights_of

    model = load(args.run)
    if not isinstance(model, Model | DetectorModel):
        raise UserError(f"export: {args.run} is an ONNX file, from which nothing can be exported; give the run")
    place = weights_of(args.run)
    out = Path(args.out) if args.out else place.with_name(f"{place.name.removesuffix('.safetensors')}.{args.format}")
    if args.format == "safetensors":
        if given := [o for o in ("opset", "dynamic", "with_preprocessing", "nms") if getattr(args, o)]:
            raise UserError(f"export: --{given[0].replace('_', '-')} is for onnx alone; leave it out")
        network = model.detector.trained if isinstance(model, DetectorModel) else model.network
        print(export_weights_file(network, model.config, out, fp16=args.fp16))
        return 0
    options: dict[str, Any] = {"opset": args.opset} if args.opset is not None else {}
    options |= {"input": args.with_preprocessing or "float", "dynamic": args.dynamic, "fp16": args.fp16}
    if isinstance(model, DetectorModel):
        return _export_detector(model, out, args.nms or "inside", options)
    if args.nms:
        raise UserError(f"export: --nms is for runs that detect, and {args.run} does not; leave it out")
    done = export_onnx(model.network, model.config, out, **options)
    print(f"{done.path}: {done.size / 1e6:.1f} MB; outputs differ from PyTorch's by {done.difference:.0e} of the largest")
    return 0


def _export_detector(model: "DetectorModel", out: Path, nms: Any, options: dict[str, Any]) -> int:
    from visiontune.errors import counted
    from visiontune.export import export_detector_onnx

    done = export_detector_onnx(model.detector, model.config, out, nms=nms, **options)
    told = f"{done.path}: {done.size / 1e6:.1f} MB; "
    if nms == "outside":
        print(f"{told}boxes and scores differ from PyTorch's by at most {done.difference:.0e}, NMS is left to what runs it")
    elif done.boxes:
        found = f"{counted(done.boxes, 'box', ',')} of it and PyTorch found in the other"
        print(f"{told}{found}, scores differ by at most {done.difference:.0e}")
    else:
        print(f"{told}nothing to compare: PyTorch and the file both find no box in noise and painted scenes; try it on pictures of yours")
    return 0


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="pictures, folders of them, shards; - reads paths from standard input")
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="pictures at once (default: 64; of boxes 16)")
    parser.add_argument("--workers", type=at_least(0), metavar="N", help="threads that decode (default: one a core)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")


def _device(name: str, model: str) -> str:
    from visiontune.export.onnx_session import fastest_device
    from visiontune.predict import devices

    if name != "auto":
        return name
    if not model.endswith(".onnx"):
        return devices()[0]
    device, why = fastest_device(Path(model), devices()[0])  # of onnxruntime, which may lack the one that torch has
    if why:
        print(f"note: --device auto: {model} is computed on the CPU: {why}", file=sys.stderr)
    return device


class _Told:
    """Tells of each broken picture as it is met, and at the end how many there were; before that, of files that are not read at all."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str, cause: str) -> None:
        from visiontune.errors import readable

        self.count += 1
        print(readable(f"left out: {path} ({cause})"), file=sys.stderr)

    def notes(self, notes: Iterable[str]) -> None:
        from visiontune.errors import readable

        for note in notes:
            print(readable(note), file=sys.stderr)

    def __str__(self) -> str:
        return f", {self.count:,} left out" if self.count else ""


def _watched(items: Iterable[Item], total: int | None) -> Iterator[Item]:
    """The items as they are, with progress on the way."""
    progress = progress_of(total)
    for done, item in enumerate(items, 1):
        progress(done)
        yield item
