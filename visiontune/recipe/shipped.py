"""Recipes that come with the package, found by name without a path."""

from pathlib import Path

from visiontune.errors import UserError, near, some


def recipes_folder() -> Path:
    """`visiontune/recipes` in a wheel, `recipes` beside the package in a checkout or an editable install."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name (`pretrain/mae`) -> file."""
    folder = recipes_folder()
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """A file by its path, else one beside `beside`, else a shipped recipe (`quickstart`, `pretrain/mae`, `mae.yaml`).

    Raises:
        UserError: if there is none; names what is near.
    """
    path = Path(name)
    for candidate in [path] + ([beside.parent / path] if beside else []):
        if candidate.is_file():
            return candidate
    shipped = shipped_recipes()
    short = name.removesuffix(".yaml").removesuffix(".yml")
    found = [p for n, p in shipped.items() if n == short or n.endswith("/" + short)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise UserError(f"recipe: {name!r} is the name of several shipped recipes: {some(n for n in shipped if n.endswith('/' + short))}")
    if (path / "recipe.yaml").is_file():
        raise UserError(f"recipe: {name} is a run; its recipe is {path / 'recipe.yaml'}, to go on with it: --resume {name}")
    beside_it = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    words = [*shipped, *(n.rpartition("/")[2] for n in shipped)]
    hint = near(path.name, beside_it) if path.suffix in (".yaml", ".yml") else ""
    there = f"; {path.parent.resolve()} holds {some(beside_it)}" if beside_it else ""
    raise UserError(
        f"recipe: no file {name} and no shipped recipe of that name{hint or near(short, words) or there}; "
        "`python -m visiontune list` names the shipped ones"
    )
