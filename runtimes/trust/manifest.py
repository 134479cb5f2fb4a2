"""bundle.json: what a bundle is, and the hashes that hold it together.

The manifest lists every other file. Two files beside it are not listed: its own hash and, where
there is one, its signature. Knows nothing of what the files hold. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtimes.contract import SpecialIds, Window
from runtimes.errors import IntegrityError
from runtimes.trust import fields as checks
from runtimes.trust.entries import FileEntry, VariantEntry, file_entries, variant_entries
from runtimes.trust.files import read_plain
from runtimes.trust.strict_json import parse_json

SCHEMA_VERSION = 1
MANIFEST_NAME = checks.MANIFEST_NAME
MANIFEST_HASH_NAME = "bundle.json.sha256"  # as `sha256sum` writes it, and checks it with -c
SIGNATURE_NAME = "bundle.json.sig"  # where the bundle is signed; see runtimes/trust/signature.py
# all that the manifest does not list
UNLISTED = frozenset({MANIFEST_NAME, MANIFEST_HASH_NAME, SIGNATURE_NAME})
MAX_SIGNATURE_BYTES = 8 * 1024 * 1024  # guessed: it names each file, in base64
MAX_MANIFEST_BYTES = 4 * 1024 * 1024  # guessed: a manifest of 10,000 files is under 2 MB
MAX_HASH_BYTES = 1024  # guessed: it has two lines
COPY_AGAIN = "copy or pack the bundle again"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is: its files, its model, where they came from and what was measured.

    `variants` is there where several artifacts share the bundle: all of them, the best first, which
    is what format, recipe, artifact and measured tell of. Law: `Manifest.from_json(
    manifest.to_json()) == manifest`.
    """

    format: str
    recipe: str
    artifact: str
    files: tuple[FileEntry, ...]
    window: Window
    context_tokens: int
    layers: int
    vocab_size: int
    special_ids: SpecialIds = field(default_factory=SpecialIds)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    variants: tuple[VariantEntry, ...] = ()

    @property
    def artifact_bytes(self) -> int:
        """What the backend opens: the file, or all files of the folder."""
        inside = f"{self.artifact}/"
        return sum(
            e.bytes for e in self.files if e.path == self.artifact or e.path.startswith(inside)
        )

    def to_json(self) -> dict[str, Any]:
        """A plain structure, in field order; files are sorted by path."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["files"] = [asdict(entry) for entry in sorted(self.files, key=lambda e: e.path)]
        plain["window"] = asdict(self.window)
        plain["special_ids"] = asdict(self.special_ids)
        plain["variants"] = [asdict(variant) for variant in self.variants]
        if not self.variants:
            del plain["variants"]  # a bundle of one is as it was before there could be several
        return {"schema_version": plain.pop("schema_version"), **plain}

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Check a decoded bundle.json key by key; raises IntegrityError naming the key."""
        names = {f.name for f in fields(cls)}
        data = checks.record(value, "manifest", names, optional={"variants"})
        version = data["schema_version"]
        if not checks.is_int(version) or version != SCHEMA_VERSION:
            raise IntegrityError(
                f"the manifest has schema version {data['schema_version']!r}",
                expected=f"schema version {SCHEMA_VERSION}",
                remedy="run the bundle with the runtime that it carries",
            )
        files = file_entries(data["files"], "files")
        window = checks.record(data["window"], "window", {"size_tokens"})["size_tokens"]
        id_names = {f.name for f in fields(SpecialIds)}
        ids = checks.record(data["special_ids"], "special_ids", id_names)
        vocab_size = checks.count(data["vocab_size"], "vocab_size")
        for name, token_id in ids.items():
            if not checks.is_int(token_id) or not 0 <= token_id < vocab_size:
                expected = f"an id from 0 to {vocab_size - 1}"
                raise checks.bad(f"special_ids.{name}", token_id, expected)
        manifest = cls(
            format=checks.text(data["format"], "format"),
            recipe=checks.text(data["recipe"], "recipe"),
            artifact=checks.safe_path(data["artifact"], "artifact"),
            files=files,
            window=Window(None if window is None else checks.count(window, "window.size_tokens")),
            context_tokens=checks.count(data["context_tokens"], "context_tokens"),
            layers=checks.count(data["layers"], "layers"),
            vocab_size=vocab_size,
            special_ids=SpecialIds(**ids),
            provenance=checks.mapping(data["provenance"], "provenance"),
            measured=checks.mapping(data["measured"], "measured"),
            versions=checks.mapping(data["versions"], "versions"),
            variants=variant_entries(data["variants"], "variants") if "variants" in data else (),
        )
        if manifest.variants:
            first = manifest.variants[0]
            told = manifest.format, manifest.recipe, manifest.artifact
            if (first.format, first.recipe, first.artifact) != told:
                raise checks.bad("variants[0]", first.name, "the one that the manifest tells of")
        return manifest


def read_manifest(bundle: Path) -> Manifest:
    """Read and check `bundle`/bundle.json; raises IntegrityError."""
    return parse_manifest(manifest_bytes(bundle), bundle)


def parse_manifest(data: bytes, bundle: Path) -> Manifest:
    """The manifest whose text is `data`, of the bundle in that folder; raises IntegrityError."""
    try:
        return Manifest.from_json(parse_json(data))
    except ValueError as error:
        raise IntegrityError(
            f"the manifest is not JSON: {error}", where=bundle / MANIFEST_NAME, remedy=COPY_AGAIN
        ) from None


def manifest_bytes(bundle: Path) -> bytes:
    """The manifest as it is written, checked against the hash beside it; raises IntegrityError.

    That hash finds damage. It cannot find forgery, since whoever changes one can change both.
    """
    file, beside = bundle / MANIFEST_NAME, bundle / MANIFEST_HASH_NAME
    if not os.path.lexists(file):
        raise IntegrityError(
            "not a bundle: it has no manifest",
            where=file,
            remedy="name the folder that `starpack pack` wrote",
        )
    data = _read(file, MAX_MANIFEST_BYTES)
    expected = manifest_hash(data, signature_bytes(bundle))
    if _read(beside, MAX_HASH_BYTES) != expected:
        raise IntegrityError(
            f"{MANIFEST_NAME}, its signature, or their hashes in {MANIFEST_HASH_NAME}, has changed",
            where=file,
            expected=f"their SHA-256 to be as {MANIFEST_HASH_NAME} has it",
            remedy=COPY_AGAIN,
        )
    return data


def signature_bytes(bundle: Path) -> bytes | None:
    """The signature as it is written, unchecked; None where there is none."""
    file = bundle / SIGNATURE_NAME
    return _read(file, MAX_SIGNATURE_BYTES) if os.path.lexists(file) else None


def _read(file: Path, most_bytes: int) -> bytes:
    try:
        return read_plain(file, most_bytes)
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"a file of the bundle cannot be read: {getattr(error, 'strerror', error)}",
            where=file,
            expected=f"a plain file of at most {most_bytes} bytes",
            remedy=COPY_AGAIN,
        ) from None


def manifest_hash(data: bytes, signature: bytes | None = None) -> bytes:
    """What bundle.json.sha256 holds for a manifest of these bytes, and for its signature."""
    lines = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n"
    if signature is not None:
        lines += f"{hashlib.sha256(signature).hexdigest()}  {SIGNATURE_NAME}\n"
    return lines.encode()


def unlisted_files(bundle: Path) -> list[str]:
    """Those of UNLISTED that are there: the signature need not be."""
    return sorted(name for name in UNLISTED if (bundle / name).is_file())
