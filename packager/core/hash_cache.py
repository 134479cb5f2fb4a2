"""SHA-256 of large files, with progress, remembered per user.

A hash is remembered by the file's real path, size and time of change, so a file that is altered
with all three kept is not noticed: the hash names an input, it does not defend against an
attacker who writes to the checkpoint's folder. A cache that cannot be read or written is ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from packager.core.atomic import cache_folder, write_json
from packager.core.errors import DataError, StarpackError, why_unreadable
from packager.core.records import Progress, no_progress
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import open_plain, read_plain
from runtimes.trust.strict_json import parse_json

BLOCK_BYTES = 1 << 20
MAX_REMEMBERED = 10_000  # guessed: about 2 MB of JSON
MAX_CACHE_BYTES = 64 << 20  # guessed: far more than so many long paths


def hash_entries(files: Sequence[Path], progress: Progress = no_progress) -> list[FileEntry]:
    """Name, size and SHA-256 of each file, in the order given.

    Progress counts bytes. Raises DataError where a file cannot be read.
    """
    remembered = _load()
    stats = [_stat(file) for file in files]
    total = sum(stat.st_size for stat in stats)
    done = 0
    entries = []
    for file, stat in zip(files, stats, strict=True):
        key = f"{os.path.realpath(file)}|{stat.st_size}|{stat.st_mtime_ns}"
        sha256 = remembered.get(key)
        if sha256 is None:
            sha256 = _sha256(file, done, total, progress)
            remembered[key] = sha256
        done += stat.st_size
        progress("hash", done, total)
        entries.append(FileEntry(file.name, stat.st_size, sha256))
    _store(remembered)
    return entries


def combined_sha256(entries: Sequence[FileEntry]) -> str:
    """One hash of many files: of their sorted (name, size, sha256), one a line."""
    lines = sorted(f"{entry.path}\t{entry.bytes}\t{entry.sha256}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path, done: int, total: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    try:
        with open_plain(file, follow=True) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                progress("hash", done, total)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    return digest.hexdigest()


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError | ValueError) -> DataError:
    return DataError(
        f"{file.name} cannot be read: {why_unreadable(error)}",
        where=file,
        expected="a readable file",
    )


def _load() -> dict[str, str]:
    try:
        value = parse_json(read_plain(cache_folder() / "hashes.json", MAX_CACHE_BYTES, follow=True))
    except (OSError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: v for key, v in value.items() if isinstance(v, str) and len(v) == 64}


def _store(remembered: dict[str, str]) -> None:
    newest = dict(list(remembered.items())[-MAX_REMEMBERED:])
    try:
        write_json(cache_folder() / "hashes.json", newest)
    except (OSError, StarpackError):
        return  # a read-only home costs time, not correctness
