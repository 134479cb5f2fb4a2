"""The JSON files of a checkpoint or adapter: strict, with the remedies that work for them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from packager.core import strict_json
from packager.core.errors import CheckpointError, data_errors_as

COMPLETE = "name a complete Hugging Face folder, or fetch it again"
INTACT = "fetch the file again; if it was edited by hand, repair it"


def read_object(file: Path, max_bytes: int = strict_json.MAX_BYTES) -> dict[str, object]:
    """The object in `file`. Raises CheckpointError where it is missing, too large or not strict."""
    with data_errors_as(CheckpointError, INTACT if file.is_file() else COMPLETE):
        return strict_json.read_object(file, max_bytes)


def parse_object(text: bytes, where: object) -> dict[str, object]:
    """The object in `text`. Raises CheckpointError where it is not strict JSON."""
    with data_errors_as(CheckpointError, INTACT):
        return strict_json.parse_object(text, where)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number; unlike in Python, true is none."""
    return type(value) in (int, float)
