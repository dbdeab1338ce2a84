"""A layer's behaviour changed in place and given back: same object, same parameter names, another class while a method trains it."""

import functools
from typing import Any

from torch import nn


class Change:
    """Mixed in front of a layer's own class by `install`; `super().forward` is the layer as timm made it."""

    original: type[nn.Module]
    change: type["Change"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time and cannot be found by its name: copies and pickles make it again.
        return _blank, (self.change, self.original), self.__getstate__()  # type: ignore[attr-defined]


@functools.cache
def _changed(change: type[Change], original: type[nn.Module]) -> type[nn.Module]:
    return type(f"{change.__name__}{original.__name__}", (change, original), {"original": original, "change": change})


def _blank(change: type[Change], original: type[nn.Module]) -> nn.Module:
    cls: Any = _changed(change, original)
    return cls.__new__(cls)


def install(layer: nn.Module, change: type[Change], **notes: Any) -> None:
    """Give a layer another class, with `notes` as attributes. Parameters, buffers and their names stay."""
    assert not isinstance(layer, Change), "changed already"
    layer.__class__ = _changed(change, type(layer))
    layer.__dict__.update(notes)
    layer.__dict__["notes"] = tuple(notes)


def restore(model: nn.Module) -> None:
    """Give every layer in `model` its own class back."""
    for layer in model.modules():
        if isinstance(layer, Change):
            for note in (*layer.__dict__["notes"], "notes"):
                del layer.__dict__[note]
            layer.__class__ = layer.original  # type: ignore[assignment]
