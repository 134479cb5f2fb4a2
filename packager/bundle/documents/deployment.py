"""What an operator starts from: systemd units, a container recipe, clients' configurations.

The texts are in templates/deploy/; only Python's version, the port, the folder of the
installation and whether an engine makes machine code are filled in.
"""

from __future__ import annotations

from collections.abc import Set

from packager import formats
from packager.bundle.documents.render import TEMPLATES, render
from packager.engine.target import Target

FOLDER = "deploy"
INSTALLED = "/opt/starcoder2"  # where the README has bundles installed
PORT = 8012  # what `run serve` listens at unless told otherwise


def deploy_files(names: Set[str], target: Target) -> dict[str, str]:
    """Path in the bundle to text. names: of the formats in it."""
    packed = [formats.load(name) for name in names]
    others = [formats.load(name) for name in formats.names() if name not in names]
    unused = frozenset[str]().union(*(format.DEPLOY_FILES for format in others))
    values = {
        "python": target.python,
        "port": PORT,
        "folder": INSTALLED,
        "deny_made_code": "no" if any(format.ENGINE.makes_code for format in packed) else "yes",
    }
    files = sorted(
        file.relative_to(TEMPLATES).as_posix()
        for file in (TEMPLATES / FOLDER).rglob("*")
        if file.is_file()
    )
    return {
        file: render(file, **values)
        for file in files
        if file.removeprefix(f"{FOLDER}/") not in unused
    }
