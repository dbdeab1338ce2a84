"""What verbs share: their parser, how far they are, whether a file can be written."""

import argparse
import os
import sys
import time
from collections.abc import Callable


def parser_of(name: str, verb: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m visiontune {name}", description=verb.__doc__)


def at_least(least: int) -> Callable[[str], int]:
    """Of an option: whole numbers from `least` on, for argparse to tell of any other.

    >>> at_least(1)("64")
    64
    """

    def number(text: str) -> int:
        try:
            given = int(text)
        except ValueError:
            given = least - 1
        if given < least:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, {least} or more")
        return given

    return number


def writable(file: str, *, key: str = "--csv") -> None:
    """Whether a file can be written is found before hours of work, not after; one that is not there is not left behind."""
    from visiontune.errors import UserError

    new = not os.path.lexists(file)
    try:
        with open(file, "a"):
            pass
        if new:
            os.unlink(file)
    except OSError as error:
        raise UserError(f"{key}: cannot write {file} ({error.strerror}); name a file in a folder that is there") from error


def progress_of(total: int | None) -> Callable[[int], None]:
    """Tells on the terminal how far a long look is: every second there, every minute in a log."""
    started = told = time.monotonic()
    every = 1.0 if sys.stderr.isatty() else 60.0

    def progress(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= every:
            told = now
            speed = done / (now - started)
            if total is None:
                text = f"{done:,} pictures, {speed:,.0f} a second   "
            else:
                text = f"{done:,} of {total:,} pictures, about {(total - done) / speed / 60:.0f} minutes left   "
            print(text, end="\r" if every == 1.0 else "\n", file=sys.stderr, flush=True)

    return progress
