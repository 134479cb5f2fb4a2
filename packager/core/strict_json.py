"""JSON from an untrusted folder: bounded, one value per key, an object at the top.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

from pathlib import Path

from packager.core.errors import DataError, why_unreadable
from runtimes.trust.files import read_plain
from runtimes.trust.strict_json import parse_json

MAX_BYTES = 1 << 20  # guessed: profiles, configurations and records have at most some dozen KiB


def read_object(file: Path, max_bytes: int = MAX_BYTES) -> dict[str, object]:
    """The object in `file`; DataError where it is no plain file, too large or not strict JSON."""
    try:
        text = read_plain(file, max_bytes, follow=True)
    except (OSError, ValueError) as error:
        found = isinstance(error, ValueError)  # and it is no such file
        raise DataError(
            f"{file.name} cannot be read: {why_unreadable(error)}",
            where=file,
            expected=f"a file of at most {max_bytes} bytes" if found else "a readable file",
        ) from None
    return parse_object(text, file)


def parse_object(text: bytes, where: object) -> dict[str, object]:
    """Decode one object; DataError for what is not strict JSON (see runtimes/trust)."""
    try:
        value = parse_json(text)
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
