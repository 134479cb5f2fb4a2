"""SHA256SUMS and the volumes that it lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

from packager.bundle.split_archive import SUMS_NAME, join_volumes, volumes
from tests.fuzz import forms
from tests.fuzz.target import Wrong, one_of, write_beside

NAME = "bundle.tar"
CONTENT = bytes(range(256)) * 40
FORM = forms.Files(
    {
        SUMS_NAME: forms.Raw(
            [b"  ", b" *", NAME.encode(), b".001", b".002", b"/", b"../x", b"0" * 64, b"x" * 300]
        ),
        f"{NAME}.001": forms.Raw(),
    }
)
SHARE = 80
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """Three volumes."""
    with volumes(folder / NAME, 4096) as stream:
        stream.write(CONTENT)
    _seed[:] = [folder]
    return [one_of(name, (folder / name).read_bytes()) for name in FORM.forms]


def run(data: bytes, folder: Path) -> None:
    """What is joined has the hash that the list gives it, and lies beside the list."""
    write_beside(data, _seed[0], folder)
    joined = join_volumes(folder / SUMS_NAME, [], None)
    if joined.parent != folder:
        raise Wrong("it was written elsewhere", joined)
    last = (folder / SUMS_NAME).read_text().splitlines()[-1]
    if hashlib.sha256(joined.read_bytes()).hexdigest() != last[:64]:
        raise Wrong("other bytes have been joined")
