"""Which column of a table holds what: as the recipe says, else found by their names, else by what stands in them."""

from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from visiontune.data.rows import Place, Source
from visiontune.data.walk import SUFFIXES
from visiontune.errors import UserError, near, some

PATHS = (
    "path", "file_path", "filepath", "image_path", "img_path", "picture_path", "image", "img", "picture", "photo", "filename", "file_name",
    "image_name", "img_name", "image_file", "image_filename", "file", "images",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "classes", "target", "targets", "category", "categories", "class_name", "label_name", "tag", "tags", "y",
)  # fmt: skip
SPLITS = ("split", "subset", "set", "partition", "phase")
GLANCE = 20  # rows


@dataclass(frozen=True)
class TableSettings:
    """What a recipe says of a table.

    Attributes:
        root: folder that paths are relative to; None: the table's own.
        path: name of the column of pictures; None: found.
        label: likewise of labels; several names are columns of zeros and ones, one a class.
        split: likewise of what each row is for.
        separator: between several labels in a cell; None: `|` and `;`; False: a cell is one label, whatever is in it.
    """

    root: str | None = None
    path: str | None = None
    label: str | tuple[str, ...] | None = None
    split: str | None = None
    separator: str | Literal[False] | None = None


@dataclass(frozen=True)
class Columns:
    """Numbers of columns.

    Attributes:
        path: of pictures.
        labels: of labels; none where they are not wanted or not there.
        one_each: whether `labels` are columns of zeros and ones, one a class.
        split: of what each row is for, or None.
        notes: what was found, in words.
    """

    path: int
    labels: tuple[int, ...]
    one_each: bool
    split: int | None
    notes: tuple[str, ...]


def find_columns(source: Source, settings: TableSettings, *, key: str, labelled: bool | None) -> Columns:
    """Find a table's columns.

    Args:
        source: the table.
        settings: what the recipe says of it.
        key: the recipe's key of the table, for messages.
        labelled: look for labels; None takes them where they are.

    Raises:
        UserError: if one that is named is not there, or one that is needed cannot be told.
    """
    section = f"{section_of(key)}.columns"
    listed = f"{source.path} has the columns {some(source.names, 20)}"

    def named(name: str, what: str) -> int:
        if name not in source.names:
            raise UserError(f"{section}.{what}: got {name!r}; {listed}{near(name, source.names)}")
        return source.names.index(name)

    path = named(settings.path, "path") if settings.path else _by_name(source, PATHS)
    path = _by_endings(source) if path is None else path
    if settings.path is None and any(name.lower().endswith(SUFFIXES) for name in source.names):
        raise UserError(
            f"{key}: the first line of {source.path} names a picture, not columns ({some(source.names)}): put `path,label` above it"
        )
    if path is None:
        cure = f"name it with {section}.path"
        raise UserError(f"{key}: which column of {source.path} holds the pictures cannot be told ({some(source.names, 20)}); {cure}")
    if path in source.refused:
        raise UserError(f"{key}: column {source.names[path]!r} of {source.path} {source.refused[path]}")
    split = named(settings.split, "split") if settings.split else _by_name(source, SPLITS)
    split = None if split == path else split

    labels: tuple[int, ...] = ()
    one_each = isinstance(settings.label, tuple)
    if labelled is not False:
        if isinstance(settings.label, tuple):
            labels = tuple(named(name, "label") for name in settings.label)
        else:
            found = named(settings.label, "label") if settings.label else _label(source, path, split)
            labels = () if found is None else (found,)
        if labelled and not labels:
            raise UserError(f"{key}: which column holds the labels cannot be told; {listed}; name it with {section}.label{_binary(source)}")
    told = f"pictures from column {source.names[path]!r}"
    if labels:
        told += f", labels from {some((repr(source.names[c]) for c in labels), 5)}"
    return Columns(path, labels, one_each, split, (f"{key}: {source.path}: {told}",))


def section_of(key: str) -> str:
    """`data` or `probe`, whose keys say more of a table; the verbs take those of `data`."""
    return key.partition(".")[0] if "." in key else "data"


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _by_name(source: Source, wanted: tuple[str, ...]) -> int | None:
    plain = [_plain(name) for name in source.names]
    return next((plain.index(name) for name in wanted if name in plain), None)


def _first_rows(source: Source) -> list[dict[int, Any]]:
    """Cells of the first rows by column, of the columns that can be used."""
    columns = [c for c in range(len(source.names)) if c not in source.refused]
    return [dict(zip(columns, cells, strict=True)) for _, cells in islice(source.rows(columns), GLANCE) if cells is not None]


def _by_endings(source: Source) -> int | None:
    """The first column of pictures, or whose cells end as pictures do."""
    rows = _first_rows(source)
    for c in range(len(source.names)):
        cells = [row[c] for row in rows if row.get(c)]
        if cells and all(isinstance(x, Place) or (isinstance(x, str) and x.strip().lower().endswith(SUFFIXES)) for x in cells):
            return c
    return None


def _label(source: Source, path: int, split: int | None) -> int | None:
    """By name; else the one with class names; else the only one that is left."""
    named = _by_name(source, LABELS)
    if named is not None and named != path:
        return named
    others = [c for c in range(len(source.names)) if c not in (path, split)]
    with_names = [c for c in others if c in source.class_names]
    return with_names[0] if len(with_names) == 1 else others[0] if len(others) == 1 else None


def _binary(source: Source) -> str:
    """A word for whoever has a column a class."""
    rows = _first_rows(source)
    found = [n for c, n in enumerate(source.names) if rows and all(str(row.get(c)).strip() in ("", "0", "1", "0.0", "1.0") for row in rows)]
    return f"; {some(found, 4)} hold 0 and 1: as columns of a class each, name them all in a list" if len(found) > 1 else ""
