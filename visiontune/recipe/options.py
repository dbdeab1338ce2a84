"""What a method accepts, read from its class's signature and docstring in the source file, without importing it (or torch).

A new method is one file: its options, views and optimiser defaults are found here by themselves.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visiontune import ranges
from visiontune.data.pipelines import PIPELINES

PACKAGE = Path(__file__).parent.parent
# Given by the recipe's other keys, not by the method's own section.
ELSEWHERE = ("num_classes", "labels", "tune", "class_counts", "pictures", "class_names", "head", "head_args")


@dataclass(frozen=True)
class Option:
    """One keyword of a class: its type (with its range), default and meaning."""

    name: str
    type: Any
    default: Any
    meaning: str


@dataclass(frozen=True)
class Options:
    """One class: what it is and takes.

    Attributes:
        name: the file's name, which recipes use.
        class_name: of the LightningModule.
        summary: first line of its docstring.
        options: its keywords.
        views: its default augmentation, keys of `visiontune.data.views.Views`.
        optim: its default optimiser settings.
        by_pictures: options that may be left open, each with rows of the most pictures and the value up to there.
    """

    name: str
    class_name: str
    summary: str
    options: tuple[Option, ...]
    views: dict[str, Any]
    optim: dict[str, Any]
    by_pictures: dict[str, tuple[tuple[int | None, Any], ...]]


def methods() -> tuple[str, ...]:
    """Names of the pretraining methods: the files of `pretrain/`."""
    return tuple(sorted(p.stem for p in (PACKAGE / "pretrain").glob("*.py") if not p.stem.startswith("_")))


def detection_heads() -> tuple[str, ...]:
    """Names of the detection heads: the files of `heads/detect/`."""
    return tuple(sorted(p.stem for p in (PACKAGE / "heads" / "detect").glob("*.py") if not p.stem.startswith("_")))


@functools.cache
def named_views() -> dict[str, dict[str, Any]]:
    """View pipelines by name: those of published methods, and of our own, which stand beside each method."""
    return PIPELINES | {name: read_options("pretrain", name).views for name in methods()}


@functools.cache
def read_options(room: str, name: str) -> Options:
    """Options of the class in `visiontune/ROOM/NAME.py` that is named `Head`, or that is the only subclass of `Module`."""
    tree = ast.parse((PACKAGE / room.replace(".", "/") / f"{name}.py").read_text())
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and (n.name == "Head" or any(_base(b) == "Module" for b in n.bases))]
    assert len(classes) == 1, f"{room}/{name}.py must hold one subclass of Module, found {[c.name for c in classes]}"
    cls = classes[0]
    doc = ast.get_docstring(cls) or ""
    meanings = _meanings(doc)
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    options = []
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        if argument.arg in ELSEWHERE:
            continue
        assert argument.annotation is not None
        value = ... if default is None else ast.literal_eval(default)  # `...`: must be given
        options.append(Option(argument.arg, _type(argument.annotation), value, meanings.get(argument.arg, "")))
    views, optim, by_pictures = (constants.get(n, {}) for n in ("VIEWS", "OPTIM", "BY_PICTURES"))
    return Options(name, cls.name, doc.split("\n")[0], tuple(options), views, optim, by_pictures)


def attribute_meanings(doc: str) -> dict[str, str]:
    """`name: meaning` lines of a docstring, wherever they stand; the first line of each meaning."""
    lines = [line.strip().partition(": ") for line in doc.splitlines()]
    return {name: meaning for name, colon, meaning in lines if colon and name.isidentifier()}


def _base(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _type(annotation: ast.expr) -> Any:
    names = {k: v for k, v in vars(ranges).items() if not k.startswith("_")}
    return eval(compile(ast.Expression(annotation), "<signature>", "eval"), {"Literal": Literal, **names})  # our own source


def _meanings(doc: str) -> dict[str, str]:
    """`name: meaning` lines of a Google-style `Args:` section."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines() if section else []:
        if start := re.match(r" {4}(\w+): (.*)", line):
            name = start.group(1)
            found[name] = start.group(2)
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
