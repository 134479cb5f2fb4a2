"""JSON from an untrusted folder: bounded, one value per key, an object at the top.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

from pathlib import Path

from packager.core.errors import DataError
from runtimes.trust.strict_json import parse_json

MAX_BYTES = 1 << 20  # guessed: profiles, configurations and records have at most some dozen KiB


def read_object(file: Path, max_bytes: int = MAX_BYTES) -> dict[str, object]:
    """The object in `file`; DataError where it is missing, too large or not strict JSON."""
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{file.name} is too large: {size} bytes",
                where=file,
                expected=f"at most {max_bytes} bytes",
            )
        text = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file.name} cannot be read: {error.strerror or error}",
            where=file,
            expected="a readable file",
        ) from None
    return parse_object(text, file)


def parse_object(text: bytes, where: object) -> dict[str, object]:
    """Decode one object; a key that is given twice, NaN and Infinity are refused."""
    try:
        value = parse_json(text, _no_constant)
    except ValueError as error:
        raise DataError(
            f"not valid JSON: {error}",
            where=where,
            expected="strict JSON, UTF-8, each key once",
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"the JSON holds a {type(value).__name__}",
            where=where,
            expected="an object",
        )
    return value


def same_value(value: object, wanted: object) -> bool:
    """Whether two JSON values are equal; unlike in Python, true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
