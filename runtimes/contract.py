"""The contract between packager and runtime: the window, the manifest and the backend.

Standard library only, so that a bundle can be checked before anything else is loaded from it.
Knows nothing of any format, engine or prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from runtimes.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
MANIFEST_HASH_NAME = "bundle.json.sha256"  # as `sha256sum` writes it, and checks it with -c
SIGNATURE_NAME = "bundle.json.sig"  # where the bundle is signed; see runtimes/signature.py
# all that the manifest does not list
UNLISTED = frozenset({MANIFEST_NAME, MANIFEST_HASH_NAME, SIGNATURE_NAME})
MAX_SIGNATURE_BYTES = 8 * 1024 * 1024  # guessed: it names each file, in base64
MAX_MANIFEST_BYTES = 4 * 1024 * 1024  # guessed: a manifest of 10,000 files is under 2 MB
MAX_MANIFEST_FILES = 10_000
COPY_AGAIN = "copy or pack the bundle again"


@dataclass(frozen=True, slots=True)
class Window:
    """How many keys each query sees, its own included; None means all of them.

    Key j is visible to query i if and only if 0 <= i - j < size_tokens
    (transformers, modeling_starcoder2.py).
    """

    size_tokens: int | None

    def reach_tokens(self, layers: int) -> int | None:
        """How many positions back one token can act through `layers` layers: L(W - 1)."""
        return None if self.size_tokens is None else layers * (self.size_tokens - 1)


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The control ids of StarCoder2. The names of the fields are the tokens' own."""

    endoftext: int = 0
    fim_prefix: int = 1
    fim_middle: int = 2
    fim_suffix: int = 3
    fim_pad: int = 4
    repo_name: int = 5
    file_sep: int = 6

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a completion: the end, and any control id the model may run on into."""
        return frozenset(asdict(self).values())

    @property
    def tokens(self) -> dict[str, int]:
        """Token text to id, as tokenizer.json must have them."""
        return {
            ("<|endoftext|>" if name == "endoftext" else f"<{name}>"): value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: POSIX path below the bundle's folder, size, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is: its files, its model, where they came from and what was measured.

    Law: `Manifest.from_json(manifest.to_json()) == manifest`.
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

    def to_json(self) -> dict[str, Any]:
        """A plain structure, in field order; files are sorted by path."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["files"] = [asdict(entry) for entry in sorted(self.files, key=lambda e: e.path)]
        plain["window"] = asdict(self.window)
        plain["special_ids"] = asdict(self.special_ids)
        return {"schema_version": plain.pop("schema_version"), **plain}

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Check a decoded bundle.json key by key; raises IntegrityError naming the key."""
        data = _record(value, "manifest", {f.name for f in fields(cls)})
        if data["schema_version"] != SCHEMA_VERSION:
            raise IntegrityError(
                f"the manifest has schema version {data['schema_version']!r}",
                expected=f"schema version {SCHEMA_VERSION}",
                remedy="run the bundle with the runtime that it carries",
            )
        files = file_entries(data["files"], "files")
        window = _record(data["window"], "window", {"size_tokens"})["size_tokens"]
        ids = _record(data["special_ids"], "special_ids", {f.name for f in fields(SpecialIds)})
        vocab_size = _count(data["vocab_size"], "vocab_size")
        for name, token_id in ids.items():
            if not _is_int(token_id) or not 0 <= token_id < vocab_size:
                raise _bad(f"special_ids.{name}", token_id, f"an id from 0 to {vocab_size - 1}")
        return cls(
            format=_text(data["format"], "format"),
            recipe=_text(data["recipe"], "recipe"),
            artifact=safe_path(data["artifact"], "artifact"),
            files=files,
            window=Window(None if window is None else _count(window, "window.size_tokens")),
            context_tokens=_count(data["context_tokens"], "context_tokens"),
            layers=_count(data["layers"], "layers"),
            vocab_size=vocab_size,
            special_ids=SpecialIds(**ids),
            provenance=_mapping(data["provenance"], "provenance"),
            measured=_mapping(data["measured"], "measured"),
            versions=_mapping(data["versions"], "versions"),
        )


def read_manifest(bundle: Path) -> Manifest:
    """Read and check `bundle`/bundle.json; raises IntegrityError."""
    file = bundle / MANIFEST_NAME
    try:
        return Manifest.from_json(json.loads(manifest_bytes(bundle)))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the manifest is not JSON: {error}", where=file) from None


def manifest_bytes(bundle: Path) -> bytes:
    """The manifest as it is written, checked against the hash beside it; raises IntegrityError.

    That hash finds damage. It cannot find forgery, since whoever changes one can change both.
    """
    file = bundle / MANIFEST_NAME
    if file.is_symlink() or not file.is_file():
        raise IntegrityError(
            "not a bundle: it has no manifest",
            where=file,
            remedy="name the folder that `starpack pack` wrote",
        )
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise IntegrityError(
            "the manifest is too large", where=file, expected=f"<= {MAX_MANIFEST_BYTES} bytes"
        )
    data = file.read_bytes()
    beside = bundle / MANIFEST_HASH_NAME
    if beside.is_symlink() or not beside.is_file():
        raise IntegrityError("the manifest's hash is missing", where=beside, remedy=COPY_AGAIN)
    expected = manifest_hash(data, signature_bytes(bundle))
    if beside.stat().st_size != len(expected) or beside.read_bytes() != expected:
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
    if file.is_symlink() or not file.is_file():
        return None
    if file.stat().st_size > MAX_SIGNATURE_BYTES:
        raise IntegrityError(
            "the signature is too large", where=file, expected=f"<= {MAX_SIGNATURE_BYTES} bytes"
        )
    return file.read_bytes()


def manifest_hash(data: bytes, signature: bytes | None = None) -> bytes:
    """What bundle.json.sha256 holds for a manifest of these bytes, and for its signature."""
    lines = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n"
    if signature is not None:
        lines += f"{hashlib.sha256(signature).hexdigest()}  {SIGNATURE_NAME}\n"
    return lines.encode()


def unlisted_files(bundle: Path) -> list[str]:
    """Those of UNLISTED that are there: the signature need not be."""
    return sorted(name for name in UNLISTED if (bundle / name).is_file())


def file_entries(value: object, key: str, most: int = MAX_MANIFEST_FILES) -> tuple[FileEntry, ...]:
    """Check a decoded list of files, 1 to `most` with each path once; raises IntegrityError."""
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise _bad(key, value, f"a list of 1 to {most} files")
    entries = tuple(_file_entry(entry, f"{key}[{i}]") for i, entry in enumerate(value))
    if len({entry.path for entry in entries}) != len(entries):
        raise _bad(key, "a path twice", "each path once")
    return entries


def safe_path(value: object, key: str) -> str:
    """Check that `value` is a relative POSIX path that stays below its folder; return it."""
    text = _text(value, key)
    path = PurePosixPath(text)
    plain = str(path) == text and "\\" not in text and "\0" not in text
    if not plain or path.is_absolute() or ".." in path.parts or text == ".":
        raise _bad(key, value, "a relative path that stays inside the bundle")
    return text


def _file_entry(value: object, key: str) -> FileEntry:
    data = _record(value, key, {f.name for f in fields(FileEntry)})
    sha256 = data["sha256"]
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise _bad(f"{key}.sha256", sha256, "64 lower-case hex digits")
    size = data["bytes"]
    if not _is_int(size) or size < 0:
        raise _bad(f"{key}.bytes", size, "a whole number, 0 or more")
    return FileEntry(safe_path(data["path"], f"{key}.path"), size, sha256)


def _record(value: object, key: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(key, value, "an object")
    if set(value) != names:
        odd = sorted(set(value) ^ names)
        raise _bad(key, f"missing or unknown keys {odd}", f"exactly the keys {sorted(names)}")
    return value


def _mapping(value: object, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(key, value, "an object")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise _bad(key, value, "a text of 1 to 1024 characters")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: object, key: str) -> int:
    if not _is_int(value) or not 0 < value < 2**31:
        raise _bad(key, value, "a whole number above 0")
    return value


def _bad(key: str, value: object, expected: str) -> IntegrityError:
    return IntegrityError(
        f"the manifest's {key} is {str(value)[:200]!r}",
        where=MANIFEST_NAME,
        expected=expected,
        remedy="the bundle is damaged or was not written by starpack: copy or pack it again",
    )


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to open a model. Nothing here is guessed by a backend.

    context_tokens: most positions that will be used. threads: CPU threads. provider: "cpu" or
    "cuda", the device that runs the model; one that is not there is an error. gpu_layers: with
    GGUF, how many layers to put on the GPU, where not all. chunk_tokens: most ids per forward call,
    which is also the slack of the key/value ring. flash_attention: use the engine's fused
    attention, where it has another.
    """

    context_tokens: int
    threads: int
    provider: str = "cpu"
    gpu_layers: int = 0
    chunk_tokens: int = 512
    flash_attention: bool = True


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What an open backend holds, in bytes, as its engine reports it."""

    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int


class Backend(Protocol):
    """Ids to logits over a rolling window; nothing of text, sampling or stopping.

    Memory for keys and values is bounded by window + slack at any position.
    """

    window: Window
    vocab_size: int
    context_tokens: int
    chunk_tokens: int

    @property
    def position(self) -> int:
        """How many ids have been taken in; the next id gets this position."""

    @property
    def kept_from(self) -> int:
        """The least position above 0 that `rewind` can still return to exactly (0 is always)."""

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append at most `chunk_tokens` ids; float32 logits, (1 or T, vocab)."""

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""

    def memory_bytes(self) -> MemoryUse:
        """What this backend holds now."""

    def describe(self) -> dict[str, str]:
        """What runs it: engine, version, device, kernels; for `doctor`."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
