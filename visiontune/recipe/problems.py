"""pydantic's findings as sentences: dotted key, line, what was got, what is allowed or near."""

import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from visiontune.errors import near
from visiontune.recipe.yaml_lines import Lines


@dataclass(frozen=True)
class Problem:
    """One thing wrong.

    Attributes:
        key: dotted, as in the recipe.
        where: `recipe.yaml:12`, `command line`, or nothing.
        sentence: what was got, what is allowed or near.
    """

    key: str
    where: str
    sentence: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.key}: {self.sentence}" if self.key else f"{place}{self.sentence}"


def problems_of(error: ValidationError, model: type[BaseModel], raw: Any, at: tuple[str, ...], lines: Lines) -> list[Problem]:
    """All findings; the branches of a union on one key become one sentence."""
    by_key: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    for found in error.errors():
        path, value = _path_in(raw, found)
        sentence = _sentence(found, model, path)
        by_key.setdefault(path, []).append((sentence, value))
    out = []
    for path, sentences in by_key.items():
        texts = list(dict.fromkeys(s for s, _ in sentences))
        text = texts[0]
        if len(texts) > 1:  # a union: every branch says what it would take
            wanted = " or ".join(t.partition("; expected ")[2] or t for t in texts)
            text = f"got {_short(sentences[0][1])}; expected {wanted}"
        full = (*at, *path)
        where = next((lines[full[:end]] for end in range(len(full), 0, -1) if full[:end] in lines), "")
        out.append(Problem(".".join(full), where, text))
    return out


def _path_in(raw: Any, found: Any) -> tuple[tuple[str, ...], Any]:
    """The place in the settings: pydantic's location also names union branches, which are no keys."""
    path: list[str] = []
    value = raw
    for part in found["loc"]:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif found["type"] == "missing" and part == found["loc"][-1] and isinstance(part, str):
            value = None
        else:
            continue
        path.append(str(part))
    return tuple(path), value


def _sentence(found: Any, model: type[BaseModel], path: tuple[str, ...]) -> str:
    kind, ctx, got = found["type"], found.get("ctx", {}), _short(found.get("input"))
    if kind == "extra_forbidden":
        section = _model_at(model, [str(p) for p in found["loc"][:-1]])
        allowed = sorted(section.model_fields) if section else []
        hint = near(path[-1], allowed) or _elsewhere(path, model)
        return f"unknown key{hint}; allowed here: {', '.join(allowed)}"
    if kind == "missing" and isinstance(found["loc"][-1], int):
        return f"got {got}; expected a longer list"
    if kind == "missing":
        section = _model_at(model, [str(p) for p in found["loc"][:-1]])
        field = section.model_fields.get(path[-1]) if section else None
        return "is missing" + (f"; {field.description}" if field and field.description else "")
    if kind == "union_tag_invalid":
        tags = [t.strip(" '") for t in ctx["expected_tags"].split(",")]
        return f"got {ctx['tag']!r}; allowed: {', '.join(tags)}{near(ctx['tag'], tags)}"
    if kind == "union_tag_not_found":
        return f"got {got}; expected a name, or {{name: ..., options}}"
    if kind == "literal_error":
        allowed = [a.strip(" '") for a in ctx["expected"].replace(" or ", ", ").split(",")]
        hint = near(str(found["input"]), allowed)
        return f"got {got}; expected {' or '.join(repr(a) for a in allowed) if len(allowed) < 3 else 'one of ' + ', '.join(allowed)}{hint}"
    if kind == "value_error":
        return f"got {got}; expected {ctx['error']}"
    bounds = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"), "less_than": ("lt", "below")}
    bounds["less_than_equal"] = ("le", "at most")
    if kind in bounds:
        key, word = bounds[kind]
        return f"got {got}; expected a number {word} {ctx[key]:g}"
    wanted = {
        "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list", "tuple": "a list",
        "dict": "a section of key: value lines", "model": "a section of key: value lines",
    }  # fmt: skip
    word = next((w for k, w in wanted.items() if kind.startswith(k)), found["msg"].lower())
    if kind in ("too_short", "too_long", "missing_argument"):
        word = found["msg"].lower()
    return f"got {got}; expected {word}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models_in(a)]


def _model_at(model: type[BaseModel], loc: list[str]) -> type[BaseModel] | None:
    """The section model at a location, following the tag of a discriminated union."""
    current = [model]
    for part in loc:
        fielded = [m for m in current if part in m.model_fields]
        if fielded:
            current = _models_in(fielded[0].model_fields[part].annotation)
        else:
            tagged = [m for m in current if "name" in m.model_fields and part in typing.get_args(m.model_fields["name"].annotation)]
            current = tagged or current
    return current[0] if current else None


def _elsewhere(path: tuple[str, ...], model: type[BaseModel]) -> str:
    """Where a known key belongs, if it stands in the wrong section."""
    key = path[-1]
    homes = [f"{n}.{key}" for n, f in model.model_fields.items() for m in _models_in(f.annotation) if key in m.model_fields]
    homes += [key] if key in model.model_fields else []
    if ".".join(path) in homes:  # of another method
        return f"; it is an option of another {path[0]}"
    return f"; it belongs at {' or '.join(dict.fromkeys(homes))}" if homes else ""
