"""JSON from an untrusted folder: bounded, one value per key, an object at the top.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.core.errors import CheckpointError


def read_object(file: Path, max_bytes: int) -> dict[str, Any]:
    """The object in `file`; CheckpointError where it is missing, too large or not strict JSON."""
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{file.name} is too large: {size} bytes",
                where=file,
                expected=f"at most {max_bytes} bytes",
                remedy="take the file from the model's own repository",
            )
        text = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{file.name} cannot be read: {error.strerror or error}",
            where=file,
            expected="a readable file",
            remedy="name a complete Hugging Face folder, or fetch it again",
        ) from None
    return parse_object(text, file)


def parse_object(text: bytes, where: object) -> dict[str, Any]:
    """Decode one object; a key that is given twice, NaN and Infinity are refused."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not valid JSON: {error}",
            where=where,
            expected="strict JSON, UTF-8, each key once",
            remedy="fetch the file again; if it was edited by hand, repair it",
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"the JSON holds a {type(value).__name__}",
            where=where,
            expected="an object",
            remedy="fetch the file again",
        )
    return value


def same_value(value: object, wanted: object) -> bool:
    """Whether two JSON values are equal; unlike in Python, true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key {name!r} is given twice")
        value[name] = item
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
