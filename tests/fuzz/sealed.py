"""A bundle of which one file is changed, or the manifest with its hash made right."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.fuzz.target import split_file, write_beside
from tests.support.toy_bundles import write_manifest_bytes

SEALED = "sealed"  # the name of a manifest whose hash is made right


def write_changed(data: bytes, bundle: Path, folder: Path) -> None:
    """Copy `bundle` to `folder`, with the file that `data` names as `data` has it."""
    name, content = split_file(data)
    if name == SEALED:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        write_manifest_bytes(folder, content)
    else:
        write_beside(data, bundle, folder)
