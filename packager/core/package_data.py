"""Where the schemas and profiles are: `profiles/`, beside the packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.core.errors import IntegrityError


def profiles_folder() -> Path:
    """The folder of the data that starpack brings. Raises IntegrityError where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "profiles"
    if folder.is_dir():
        return folder
    raise IntegrityError(
        "starpack's profiles are missing",
        where=folder,
        expected="a folder profiles",
        remedy="install starpack again, or use a whole checkout",
    )


def read_schema(name: str) -> dict[str, Any]:
    """The JSON Schema `name`.schema.json; it is ours, so it is not checked itself."""
    return json.loads((profiles_folder() / f"{name}.schema.json").read_text(encoding="utf-8"))
