"""A delta: its record, and where each file of the new bundle is to come from."""

from __future__ import annotations

from pathlib import Path

from packager.bundle.delta import NEEDED, write_delta
from runtimes.trust.delta import DELTA_NAME, source_of_every_file
from runtimes.trust.manifest import MANIFEST_NAME, read_manifest
from tests.fuzz import forms
from tests.fuzz.sealed import SEALED, write_changed
from tests.fuzz.target import Wrong, one_of
from tests.support.toy_bundles import write_manifest

WORDS = (
    "files", "path", "bytes", "sha256", "old_sha256", "new_sha256", "schema_version", "blobs/x",
    "../x", "bundle.json", "0" * 64, "model/toy.bin",
)  # fmt: skip
FORM = forms.Files({DELTA_NAME: forms.Json(WORDS), SEALED: forms.Json(WORDS)})
SHARE = 80
_seed: list[Path] = []


def _bundle(folder: Path, weights: bytes) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "toy.bin").write_bytes(weights)
    for name in ("same.txt", *NEEDED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    write_manifest(folder)
    return folder


def seeds(folder: Path) -> list[bytes]:
    """Of two bundles that differ in their weights."""
    old, new = _bundle(folder / "old", b"old"), _bundle(folder / "new", b"new")
    write_delta(old, new, folder / "delta")
    _seed[:] = [folder / "delta", old]
    manifest = (new / MANIFEST_NAME).read_bytes()
    return [
        one_of(DELTA_NAME, (folder / "delta" / DELTA_NAME).read_bytes()),
        one_of(SEALED, manifest),
    ]


def run(data: bytes, folder: Path) -> None:
    """Each file comes from the delta or from what is installed."""
    write_changed(data, _seed[0], folder)
    source = source_of_every_file(folder, [_seed[1]])
    for entry in read_manifest(folder).files:
        place = source(entry)
        if not (place.is_relative_to(folder) or place.is_relative_to(_seed[1])):
            raise Wrong("it leads elsewhere", place)
