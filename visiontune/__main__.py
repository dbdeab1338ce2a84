"""The verbs: `python -m visiontune VERB`. One thin function each."""

import argparse
import fnmatch
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def fit(argv: list[str]) -> int:
    """train what a recipe says (the same as python -m visiontune.fit)"""
    from visiontune.fit import main as run

    return run(argv)


def list_(argv: list[str]) -> int:
    """list shipped recipes, methods, or timm's backbones"""
    parser = _parser("list", list_)
    parser.add_argument("what", nargs="?", default="recipes", choices=["recipes", "methods", "backbones"])
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
            print(f"  {option.name}: {option.default!r}\n      {option.meaning}")
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
    """check a recipe: keys, values, folders, backbones"""
    parser = _parser("check", check)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    from visiontune.checks import CHECKS
    from visiontune.recipe import load_recipe

    loaded = load_recipe(args.recipe, args.overrides, checks=CHECKS)
    stages = f", stages {', '.join(loaded.stages)}" if loaded.staged else ""
    print(f"{args.recipe}: sound{stages}")
    return 0


def predict(argv: list[str]) -> int:
    """label pictures with a fine-tuned run"""
    parser = _parser("predict", predict)
    parser.add_argument("run", metavar="RUN", help="a run folder or an exported folder")
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="pictures, or folders of them")
    parser.add_argument("--csv", metavar="OUT", help="file to write (default: print)")
    args = parser.parse_args(argv)
    from visiontune.predict import find_files, load, write_csv

    predictions = load(args.run).predict(find_files(args.paths))
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            count, broken = write_csv(predictions, file)
        print(f"{count} pictures labelled in {args.csv}")
    else:
        count, broken = write_csv(predictions, sys.stdout)
    for p in broken:
        print(f"left out: {p.path} ({p.broken})", file=sys.stderr)
    return 0 if count else 1


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
    "fit": fit, "list": list_, "show": show, "copy": copy, "check": check, "predict": predict, "report": report, "schema": schema,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
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
    except BrokenPipeError:  # `... | head`
        sys.stderr.close()
        return 0


def _parser(name: str, verb: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m visiontune {name}", description=verb.__doc__)


def _first_comment(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""


if __name__ == "__main__":
    sys.exit(main())
