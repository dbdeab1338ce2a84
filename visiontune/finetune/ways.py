"""How much of a network is tuned, by name. Read by recipes too, so nothing here imports torch."""

import re
from dataclasses import dataclass

from visiontune.errors import near

NAMES = ("full", "head", "head_then_full", "last:N", "lora")
PATTERN = r"^(full|head|head_then_full|last:[1-9][0-9]*|lora)$"


@dataclass(frozen=True)
class Way:
    """One of `NAMES`.

    Attributes:
        name: with `last` for `last:N`.
        blocks: N of it.
    """

    name: str
    blocks: int = 0

    @classmethod
    def of(cls, text: str) -> "Way":
        """From what a recipe says.

        >>> Way.of("last:2"), Way.of("full")
        (Way(name='last', blocks=2), Way(name='full', blocks=0))

        Raises:
            ValueError: for anything else, with what would be right as its text.
        """
        if not isinstance(text, str) or not re.match(PATTERN, text):
            word = str(text)
            hint = "; N is a number of blocks, as in last:2" if word.startswith("last") else near(word, NAMES)
            raise ValueError(f"{', '.join(NAMES)}{hint}")
        name, _, blocks = text.partition(":")
        return cls(name, int(blocks or 0))
