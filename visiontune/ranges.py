"""Number ranges for signatures: a method's option says here what it accepts, and the recipe checks it without importing torch.

    def __init__(self, backbone, *, mask_ratio: OpenFraction = 0.75, ...)

Each is a plain `float` or `int` to Python and to type checkers.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Fraction = Annotated[float, Interval(ge=0, le=1)]
OpenFraction = Annotated[float, Interval(gt=0, lt=1)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
