"""What a manifest lists: files, and variants where there are several. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from runtimes.trust import fields as checks

MAX_MANIFEST_FILES = 10_000
MAX_VARIANTS = 100  # guessed: more than there are recipes


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: POSIX path below the bundle's folder, size, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VariantEntry:
    """One of several artifacts that share a bundle. None: neither measured nor estimated.

    memory_bytes: the most that it held where it was measured, or may hold by its estimate.
    first_token_s, per_token_s: medians, for the workload of the selection. divergence_nats: the
    mean, from the unquantised checkpoint. measured: the evidence, as the manifest has it.
    """

    name: str
    format: str
    recipe: str
    artifact: str
    memory_bytes: int | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None
    divergence_nats: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, key: str) -> VariantEntry:
        """Check a decoded entry of `variants`; raises IntegrityError naming the key."""
        data = checks.record(value, key, {f.name for f in fields(cls)})
        return cls(
            name=checks.text(data["name"], f"{key}.name"),
            format=checks.text(data["format"], f"{key}.format"),
            recipe=checks.text(data["recipe"], f"{key}.recipe"),
            artifact=checks.safe_path(data["artifact"], f"{key}.artifact"),
            memory_bytes=checks.size(data["memory_bytes"], f"{key}.memory_bytes"),
            first_token_s=checks.figure(data["first_token_s"], f"{key}.first_token_s"),
            per_token_s=checks.figure(data["per_token_s"], f"{key}.per_token_s"),
            divergence_nats=checks.figure(data["divergence_nats"], f"{key}.divergence_nats"),
            measured=checks.mapping(data["measured"], f"{key}.measured"),
        )


def file_entries(value: object, key: str, most: int = MAX_MANIFEST_FILES) -> tuple[FileEntry, ...]:
    """Check a decoded list of files, 1 to `most` with each path once; raises IntegrityError."""
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise checks.bad(key, value, f"a list of 1 to {most} files")
    entries = tuple(_file_entry(entry, f"{key}[{i}]") for i, entry in enumerate(value))
    paths = {entry.path for entry in entries}
    if len(paths) != len(entries):
        raise checks.bad(key, "a path twice", "each path once")
    both = paths & folders_above(paths)
    if both:
        raise checks.bad(key, min(both), "no path both of a file and of a folder")
    return entries


def folders_above(paths: Iterable[str]) -> set[str]:
    """Every folder that files of these paths lie in."""
    folders: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    return folders


def variant_entries(value: object, key: str) -> tuple[VariantEntry, ...]:
    """Check a decoded list of variants with each name once; raises IntegrityError."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_VARIANTS:
        raise checks.bad(key, value, f"a list of 1 to {MAX_VARIANTS} variants")
    found = tuple(VariantEntry.from_json(entry, f"{key}[{i}]") for i, entry in enumerate(value))
    if len({variant.name for variant in found}) != len(found):
        raise checks.bad(key, "a name twice", "each name once")
    return found


def _file_entry(value: object, key: str) -> FileEntry:
    data = checks.record(value, key, {f.name for f in fields(FileEntry)})
    sha256 = data["sha256"]
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise checks.bad(f"{key}.sha256", sha256, "64 lower-case hex digits")
    size = data["bytes"]
    if not checks.is_int(size) or not 0 <= size < checks.MAX_SIZE:
        raise checks.bad(f"{key}.bytes", size, "a whole number, 0 or more")
    return FileEntry(checks.safe_path(data["path"], f"{key}.path"), size, sha256)
