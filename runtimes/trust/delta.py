"""A delta: what of a new bundle an older one does not have.

    delta.json          the manifests' hashes and every other file, with size and SHA-256
    bundle.json         the new manifest, and its hash
    blobs/SHA256        the contents that are new
    install start.py runtimes/   what installs it, as in the new bundle

`source_of_every_file` puts the new bundle together from the blobs and from what is installed. What
it returns is only where a file should be: whoever copies it checks the copy. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtimes.errors import IntegrityError
from runtimes.trust.entries import FileEntry, file_entries
from runtimes.trust.files import read_plain
from runtimes.trust.manifest import COPY_AGAIN, MAX_MANIFEST_BYTES, UNLISTED, read_manifest
from runtimes.trust.strict_json import parse_json
from runtimes.trust.verify import verify_names

DELTA_NAME = "delta.json"
BLOBS = "blobs"
DELTA_VERSION = 1
KEYS = {"schema_version", "old_sha256", "new_sha256", "files"}


def source_of_every_file(delta: Path, installed: Sequence[Path]) -> Callable[[FileEntry], Path]:
    """Where to find each file of the delta's manifest: in it, or in a bundle that is installed.

    Raises IntegrityError for a damaged delta; the function returned raises it for a file
    that is in neither.
    """
    value = read_delta(delta)
    verify_names(delta, file_entries(value["files"], "files"), UNLISTED | {DELTA_NAME})
    known: dict[str, Path] = {}
    for bundle in installed:
        try:
            entries = read_manifest(bundle).files
        except (IntegrityError, OSError):
            continue  # a damaged version is no source
        for entry in entries:
            known.setdefault(entry.sha256, bundle / entry.path)

    def source(entry: FileEntry) -> Path:
        blob = delta / BLOBS / entry.sha256
        if not blob.is_file() and entry.sha256 not in known:
            raise IntegrityError(
                f"the delta does not have {entry.path}, and nothing that is installed has",
                where=delta,
                expected="the version that the delta was made for, whose bundle.json has SHA-256 "
                f"{value['old_sha256']}",
                remedy="install that version first, or the full new bundle",
            )
        return blob if blob.is_file() else known[entry.sha256]

    return source


def read_delta(delta: Path) -> dict[str, Any]:
    """The record of a delta; its list of files is not checked yet. Raises IntegrityError."""
    file = delta / DELTA_NAME
    try:
        value = parse_json(read_plain(file, 2 * MAX_MANIFEST_BYTES))
        if not isinstance(value, dict) or set(value) != KEYS:
            raise ValueError(f"it should have the keys {sorted(KEYS)}")
        if value["schema_version"] != DELTA_VERSION:
            raise ValueError(f"it should have schema version {DELTA_VERSION}")
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"not the record of a delta: {error}", where=file, remedy=COPY_AGAIN
        ) from None
    return value
