"""Where the schemas and profiles are: `profiles/` in a checkout, `packager/profiles/` installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.errors import IntegrityError


def profiles_folder() -> Path:
    """The folder of the data that starpack brings. Raises IntegrityError where it is missing."""
    here = Path(__file__).resolve().parent
    for folder in (here / "profiles", here.parent / "profiles"):
        if folder.is_dir():
            return folder
    raise IntegrityError(
        "starpack's profiles are missing",
        where=here,
        expected="a folder profiles",
        remedy="install starpack again, or use a whole checkout",
    )


def read_schema(name: str) -> dict[str, Any]:
    """The JSON Schema `name`.schema.json; it is ours, so it is not checked itself."""
    return json.loads((profiles_folder() / f"{name}.schema.json").read_text(encoding="utf-8"))
