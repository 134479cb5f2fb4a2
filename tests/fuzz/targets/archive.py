"""`starpack unpack` of an archive."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from packager.bundle.archive import unpack_archive, write_archive
from runtimes.trust.manifest import MANIFEST_NAME, read_manifest
from runtimes.trust.verify import verify_files
from tests.fuzz import forms
from tests.fuzz.target import Wrong
from tests.support.toy_bundles import write_manifest

FORM = forms.Tar({MANIFEST_NAME: forms.Json(("path", "files", "../x", "/x"))})
SHARE = 40


def seeds(folder: Path) -> list[bytes]:
    """A bundle's."""
    bundle = folder / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "toy.bin").write_bytes(b"weights" * 100)
    for name in ("install", "run", "tokenizer.json"):
        (bundle / name).write_bytes(b"{}")
    write_manifest(bundle)
    stream = io.BytesIO()
    write_archive(bundle, stream)
    return [stream.getvalue()]


def run(data: bytes, folder: Path) -> None:
    """A whole bundle of plain files and folders with plain modes, or nothing at all."""
    file, out = folder / "bundle.tar", folder / "out"
    file.write_bytes(data)
    try:
        unpack_archive(file, out)
    except BaseException:
        if os.path.lexists(out):
            raise Wrong("it was refused, and unpacked") from None
        raise
    verify_files(out, read_manifest(out))
    for path in out.rglob("*"):
        mode = path.lstat().st_mode
        plain = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
        if not plain or stat.S_IMODE(mode) not in (0o644, 0o755):
            raise Wrong("an odd mode", f"{path.name} {mode:o}")
    left = sorted(p.name for p in folder.iterdir())
    if left != ["bundle.tar", "out"]:
        raise Wrong("more is left than was unpacked", left)
