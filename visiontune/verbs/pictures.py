"""Verbs about folders and tables of pictures; `check` looks at recipes, too."""

from pathlib import Path

from visiontune.verbs.words import at_least, parser_of, progress_of, writable


def check(argv: list[str]) -> int:
    """check a recipe (keys, folders, backbones), pictures (broken, twice, tiny, classes) or annotations (wrong boxes, leaks, sizes)"""
    parser = parser_of("check", check)
    parser.add_argument("what", metavar="WHAT", help="a recipe; a folder, shards or table of pictures; or annotations: .json, a folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings on top of the recipe's; of pictures: data.channels=4; of annotations: images=FOLDER val.boxes=...",
    )
    parser.add_argument("--csv", metavar="OUT", help="of pictures and annotations: list every problem in this file")
    parser.add_argument("--boxes-only", action="store_true", help="of annotations: do not read the pictures")
    parser.add_argument("--tiny", type=at_least(0), default=32, metavar="PIXELS", help="of pictures: short side below which one is tiny")
    args = parser.parse_intermixed_args(argv)
    from visiontune.data.rows import is_table
    from visiontune.data.shards import is_shards

    if args.csv:
        writable(args.csv)
    from visiontune.recipe import shipped_recipes

    recipe = args.what.endswith((".yaml", ".yml")) or args.what in shipped_recipes()
    boxes = not recipe and any(text.removeprefix("data.").removeprefix("train.").startswith("images=") for text in args.overrides)
    if boxes or args.what.endswith(".json"):
        from visiontune.checks import check_annotations

        return check_annotations(args.what, args.overrides, out=args.csv, pixels=not args.boxes_only, progress=progress_of)
    if Path(args.what).is_dir() or is_shards(args.what) or is_table(args.what):
        from visiontune.checks import check_pictures

        return check_pictures(args.what, args.overrides, out=args.csv, tiny=args.tiny, progress=progress_of)
    from visiontune.checks import CHECKS
    from visiontune.errors import UserError
    from visiontune.recipe import load_recipe

    if not recipe and not Path(args.what).exists():
        raise UserError(f"check: there is no folder {args.what}, no such file, and no recipe of that name; `list` shows the recipes")
    loaded = load_recipe(args.what, args.overrides, checks=CHECKS)
    if loaded.benchmark is not None:
        from visiontune.benchmark.by_recipe import check_recipe

        return check_recipe(loaded.benchmark, args.what)
    stages = f", stages {', '.join(loaded.stages)}" if loaded.staged else ""
    print(f"{args.what}: sound{stages}")
    status = 0
    for name, recipe in loaded.stages.items():
        if recipe.task == "detect":
            from visiontune.checks import check_box_data

            print(f"\nboxes of {name or args.what}:")
            status |= check_box_data(recipe.data, out=args.csv, pixels=not args.boxes_only, progress=progress_of)
    return status


def index(argv: list[str]) -> int:
    """list a folder's pictures once, for runs to open in milliseconds"""
    parser = parser_of("index", index)
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
    print(
        "\n".join(
            [
                f"{counted(len(found), 'picture')} in {args.folder}{classes}",
                *found.notes(),
                *([f"index: {found.left_out}"] if found.left_out else []),
            ]
        )
    )
    return 0 if len(found) else 1


def shard(argv: list[str]) -> int:
    """pack a folder's pictures into tar shards, for storage where small files are slow"""
    parser = parser_of("shard", shard)
    parser.add_argument("folder", metavar="FOLDER", help="pictures; first-level folders become classes if there are several")
    parser.add_argument("out", metavar="OUT", help="folder for the shards; new or empty")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="shrink to this short side (as JPEG); smaller pictures stay as they are")
    parser.add_argument("--unlabelled", action="store_true", help="write no classes")
    args = parser.parse_args(argv)
    from visiontune.data.folder import list_pictures
    from visiontune.data.shard_writer import write_shards

    table = list_pictures(args.folder, key="shard", labelled=False if args.unlabelled else None)
    print("".join(f"{note}\n" for note in table.notes), end="")
    # The root's own pictures come first: with class folders beside them it is they that have no class.
    stray = b"/" not in table.name(0) and b"/" in table.name(len(table) - 1)
    if stray and table.labels is None and not args.unlabelled:
        print(f"no classes are written: {table.path(0)} lies in no class folder; move it, or say --unlabelled")
    summary = write_shards(table, Path(args.out), size=args.size, progress=progress_of(len(table)))
    print("\n".join(summary.lines()))
    return 0
