"""Bundles of a toy format: whole, small and made in no time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from runtimes.contract import Window
from runtimes.trust.entries import FileEntry
from runtimes.trust.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    UNLISTED,
    Manifest,
    manifest_hash,
)
from tests.support.runtime_toys import IDS
from tests.support.tiny import TOKENS, tiny_tokenizer


def write_bundle(folder: Path) -> Path:
    """A whole bundle of a toy format."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "toy.bin").write_bytes(bytes(range(256)) * 20_000)  # several blocks
    (folder / "empty.txt").touch()
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **changes: object) -> None:
    entries = tuple(
        FileEntry(
            file.relative_to(folder).as_posix(),
            file.stat().st_size,
            hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in UNLISTED
    )
    manifest = Manifest(
        format="toy",
        recipe="F32",
        artifact="model/toy.bin",
        files=entries,
        window=Window(6),
        context_tokens=200,
        layers=2,
        vocab_size=TOKENS,
        special_ids=IDS,
    )
    value = manifest.to_json() | changes
    write_manifest_bytes(folder, json.dumps(value).encode())


def write_manifest_bytes(folder: Path, data: bytes) -> None:
    """With the right hash beside it."""
    (folder / MANIFEST_NAME).write_bytes(data)
    (folder / MANIFEST_HASH_NAME).write_bytes(manifest_hash(data))
