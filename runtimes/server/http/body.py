"""A request's body: strict JSON, then a struct of a dialect, or an error that names the field.

JSON is decoded by the standard library, which tells a lone surrogate from a broken text: no NaN, no
infinity, no key twice, no nesting without end. msgspec checks types and limits. The structs declare
them, and /openapi.json shows them. Unknown fields are ignored: clients send what other servers
know.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import msgspec

from runtimes.errors import UsageError

LARGEST = 2**53  # whole numbers up to here are exact in every JSON reader
MISSING = "Object missing required field "  # msgspec's words
B = TypeVar("B")


def read_body(data: bytes, kind: type[B]) -> B:
    """The struct in `data`; raises UsageError, which shows no value: it may be somebody's code."""
    body = decode(data)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except UnicodeEncodeError:  # where it wants a number or one of some words
        raise UsageError(
            "a text has half of a surrogate pair, which is not a character", expected="characters"
        ) from None
    except RecursionError:
        raise _too_deep() from None


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; raises UsageError."""
    try:
        value = json.loads(
            data, parse_constant=_not_a_number, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # malformed, not UTF-8, or a whole number of thousands of digits
        raise UsageError(
            f"the body is not JSON: {str(error)[:200]}", expected="a JSON object in UTF-8"
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"the body is of type {type(value).__name__}", expected="a JSON object")
    return value


def _finite(text: str) -> float:
    """1.0 is a whole number in JSON, and msgspec wants an int for one."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return int(value) if value.is_integer() and abs(value) <= LARGEST else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could take a key that is given twice for two different values."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _explained(text: str) -> UsageError:
    """From msgspec's "Expected `int`, got `str` - at `$.stop[0]`"."""
    problem, _, path = text.replace("`", "").partition(" - at $")
    where = path.lstrip(".")
    if problem.startswith(MISSING):
        name = problem.removeprefix(MISSING)
        return UsageError(f"{where}.{name} is missing".lstrip("."), expected="it in the body")
    if not problem.startswith("Expected "):  # a struct's own
        return UsageError(f"{where}: {problem}" if where else problem)
    expected, _, found = problem.removeprefix("Expected ").partition(", got ")
    wrong = f"is of type {found}" if found else "is out of range"
    return UsageError(f"{where or 'the body'} {wrong}", expected=expected)


def _too_deep() -> UsageError:
    return UsageError("the body is nested too deeply", expected="a request")
