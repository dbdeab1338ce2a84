"""Number ranges for signatures: a method's option says here what it accepts, and the recipe checks it without importing torch.

    def __init__(self, backbone, *, mask_ratio: OpenFraction = 0.75, ...)

Each is a plain `float` or `int` to Python and to type checkers; `check_options` holds a module to them that is made without a recipe.
"""

import operator
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

Fraction = Annotated[float, Interval(ge=0, le=1)]
OpenFraction = Annotated[float, Interval(gt=0, lt=1)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
SeveralInt = Annotated[int, Ge(2)]

WORDS = {"gt": (operator.gt, "above"), "ge": (operator.ge, "of at least"), "lt": (operator.lt, "below"), "le": (operator.le, "of at most")}


def check_options(function: Callable[..., Any], values: Mapping[str, Any]) -> str | None:
    """The first value that a signature does not allow, as a sentence; None where all are fine.

    >>> def f(*, ratio: OpenFraction, kind: Literal["a", "b"]): ...
    >>> check_options(f, {"ratio": 1.5, "kind": "a"})
    'ratio: got 1.5; expected a number below 1'
    >>> check_options(f, {"ratio": 0.5, "kind": "c"})
    "kind: got 'c'; expected one of 'a', 'b'"
    """
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name not in values:
            continue
        value = values[name]
        if type(None) in typing.get_args(hint):  # an option that may be left open
            if value is None:
                continue
            hint = next(h for h in typing.get_args(hint) if h is not type(None))
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            return f"{name}: got {value!r}; expected one of {', '.join(map(repr, typing.get_args(hint)))}"
        for bound in getattr(hint, "__metadata__", ()):
            for key, (holds, word) in WORDS.items():
                limit = getattr(bound, key, None)
                if limit is not None and not (isinstance(value, int | float) and holds(value, limit)):
                    return f"{name}: got {value!r}; expected a number {word} {limit:g}"
    return None
