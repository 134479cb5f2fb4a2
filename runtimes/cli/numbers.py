"""Numbers of flags, checked while the command line is parsed: each type names its own range."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

_WHOLE = re.compile(r"-?[0-9]{1,20}")
MAX_SECONDS = 1_000_000  # guessed: eleven days, and no timer overflows


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The argparse type of a whole number in a range."""

    def read(text: str) -> int:
        value = int(text) if _WHOLE.fullmatch(text) else None
        if value is None or value < minimum or (maximum is not None and value > maximum):
            raise _bad(text, "a whole number", minimum, maximum)
        return value

    return read


def decimal(
    minimum: float, maximum: float | None = None, *, above: bool = False, off: float | None = None
) -> Callable[[str], float]:
    """The argparse type of a number in a range.

    above: the minimum itself is too small. off: one more value, which turns the option off.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if value == off:
            return value
        too_small = value <= minimum if above else value < minimum
        if not math.isfinite(value) or too_small or (maximum is not None and value > maximum):
            raise _bad(text, "a number", minimum, maximum, above)
        return value

    return read


def whole_list(text: str) -> list[int]:
    """The argparse type of whole numbers between commas."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 128,1024")
    return [int(part) for part in parts]


def _bad(
    text: str, kind: str, minimum: float, maximum: float | None, above: bool = False
) -> argparse.ArgumentTypeError:
    first = f"above {minimum}" if above else f"of at least {minimum}"
    last = "" if maximum is None else f" and at most {maximum}"
    return argparse.ArgumentTypeError(f"{text!r} is not {kind} {first}{last}")
