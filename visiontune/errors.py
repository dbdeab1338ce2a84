"""What a user did that cannot work. The commands print these as one sentence each and exit with status 2, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's, told as: what, where, got, allowed or near, what to do next."""


def near(word: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'weight_decay'?"` or nothing, for the end of an error sentence."""
    close = difflib.get_close_matches(word, list(allowed), n=3, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(c) for c in close) + "?"


def readable(text: str) -> str:
    """File names that are not UTF-8 as `\\udce9`: printing them as they are would raise."""
    return text.encode("utf-8", "backslashreplace").decode()


def counted(number: float, noun: str, form: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "epoch"), counted(2, "box"), counted(3, "batch"), counted(12000, "class", ",")
    ('1 epoch', '2 boxes', '3 batches', '12,000 classes')
    """
    plural = f"{noun}es" if noun.endswith(("s", "x", "tch")) else f"{noun}s"
    return f"{number:{form}} {noun if number == 1 else plural}"


def some(items: Iterable[object], limit: int = 5) -> str:
    """A list for an error sentence, cut after `limit` with a word about the rest."""
    listed = [readable(str(i)) for i in items]
    text = ", ".join(listed[:limit])
    return text + (f", ... ({len(listed) - limit} more)" if len(listed) > limit else "")
