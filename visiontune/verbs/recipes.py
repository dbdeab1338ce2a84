"""Verbs about recipes and runs."""

import fnmatch
import json
import shutil
from pathlib import Path

from visiontune.verbs.words import parser_of


def fit(argv: list[str]) -> int:
    """train what a recipe says (the same as python -m visiontune.fit)"""
    from visiontune.fit import main as run

    return run(argv)


def list_(argv: list[str]) -> int:
    """list shipped recipes, methods, view pipelines, or timm's backbones"""
    parser = parser_of("list", list_)
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
    """show a recipe's text, that of a run, or a method's options"""
    parser = parser_of("show", show)
    parser.add_argument("name", help="a recipe (file or shipped name), a run folder, or a method")
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
        own = Path(args.name) / "recipe.yaml"
        print((own if own.is_file() else find_recipe(args.name)).read_text(), end="")
    return 0


def copy(argv: list[str]) -> int:
    """copy a shipped recipe here, to change it"""
    parser = parser_of("copy", copy)
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


def report(argv: list[str]) -> int:
    """write report.html and the model card of a finished run again"""
    parser = parser_of("report", report)
    parser.add_argument("run", metavar="RUN")
    args = parser.parse_args(argv)
    from visiontune.report.page import rewrite_report

    print(rewrite_report(args.run))
    return 0


def schema(argv: list[str]) -> int:
    """print the JSON schema of recipes, for editors"""
    parser_of("schema", schema).parse_args(argv)
    from visiontune.recipe.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _first_comment(path: Path) -> str:
    line = path.read_text().partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""
