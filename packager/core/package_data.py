"""Where the schemas and profiles are: `profiles/`, beside the packages."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from packager.core.errors import IntegrityError, data_errors_as
from packager.core.record_store import Record, from_plain
from packager.core.strict_json import read_object

REMEDY = "install starpack again, or use a complete checkout"


def profiles_folder() -> Path:
    """The folder of the data that starpack brings. Raises IntegrityError where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "profiles"
    if folder.is_dir():
        return folder
    raise IntegrityError(
        "starpack's profiles are missing",
        where=folder,
        expected="a folder profiles",
        remedy=REMEDY,
    )


def read_data(path: str) -> dict[str, Any]:
    """The JSON object in profiles/`path`. Raises IntegrityError where it is missing or damaged."""
    with data_errors_as(IntegrityError, REMEDY):
        return read_object(profiles_folder() / path)


def read_record(path: str, kind: type[Record]) -> Record:
    """The keys of the object in profiles/`path` that `kind` has; the others are for people.

    Raises IntegrityError where it is missing or damaged, or a key is missing or of another type.
    """
    data = read_data(path)
    names = [field.name for field in fields(cast(Any, kind))]
    try:
        return from_plain(kind, {name: data[name] for name in names if name in data})
    except ValueError as error:  # msgspec's own are such, too
        raise IntegrityError(
            f"a file of starpack's own is damaged: {error}",
            where=profiles_folder() / path,
            expected=f"an object with {', '.join(names)}",
            remedy=REMEDY,
        ) from None


def read_schema(name: str) -> dict[str, Any]:
    """The JSON Schema `name`.schema.json; it is ours, so it is not checked itself."""
    return read_data(f"{name}.schema.json")
