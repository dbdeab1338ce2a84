"""YAML with line numbers and without PyYAML's surprises: `1e-3` is a number, `no` and `on` are words, a key twice is an error."""

import re
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str, ...]
Lines = dict[Path_, str]  # where a key stands: "recipe.yaml:12", or "command line"


class YamlError(Exception):
    """The text is no YAML, or has a key twice; the message begins with file and line."""


class MissingSpace(YamlError):
    """`{depth:2}`, which YAML takes for a key `depth:2` without a value."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema for booleans and floats."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.\d+|\d[\d_]*(?:\.\d*)?)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))  # decimal, also with a leading zero


_Loader.add_constructor("tag:yaml.org,2002:int", _number)


def read_yaml(text: str, name: str) -> tuple[Any, Lines]:
    """The document and where each of its keys stands.

    Raises:
        YamlError: in one sentence, with the line.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        lines: Lines = {}
        _walk(node, (), name, lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()


def read_value(text: str) -> Any:
    """The right side of `key=value`, as YAML; words stay words.

    >>> read_value("1e-3"), read_value("no"), read_value("[0.2, 1]")
    (0.001, 'no', [0.2, 1])

    Raises:
        MissingSpace: for `{depth:2}`.
    """
    try:
        return read_yaml(text, "command line")[0] if text.strip() else ""
    except MissingSpace:
        raise
    except YamlError:
        return text


def _walk(node: yaml.Node, path: Path_, name: str, lines: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise YamlError(f"{name}:{line}: the key {key.value!r} stands here a second time (first in line {seen[key.value]})")
            seen[key.value] = line
            if node.flow_style and ":" in key.value and isinstance(value, yaml.ScalarNode) and not value.value and not value.style:
                before, _, after = key.value.partition(":")
                raise MissingSpace(f"{name}:{line}: got {{{key.value}}}; YAML wants a space behind the colon: {{{before}: {after}}}")
            lines[(*path, str(key.value))] = f"{name}:{line}"
            _walk(value, (*path, str(key.value)), name, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, str(i))] = f"{name}:{value.start_mark.line + 1}"
            _walk(value, (*path, str(i)), name, lines)


def dump_yaml(data: Any, path: Path, header: list[str]) -> None:
    """Save with `#` lines on top, keys in their order, short lists on one line."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))
    text = "".join(f"# {line}\n" for line in header)
    path.write_text(text + yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=140))
