"""Outputs that are complete or absent, and the hashes that prove what they are."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtimes.trust.entries import FileEntry
from runtimes.trust.files import lock, try_lock

PARTIAL = ".partial"
YOUNG_S = 60  # guessed: longer than it takes to lock a folder that has just been made


def cache_folder() -> Path:
    """Where this user's cache of starpack is (XDG Base Directory specification); not created."""
    # the specification has relative paths ignored
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "starpack"


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and vanishes otherwise.

    Partial folders of earlier runs that were killed are deleted first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_partial(out)
    partial = _folder_beside(out)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        lock(descriptor)  # says that somebody still works on it
        partial.chmod(0o755)  # mkdtemp keeps it to this user
        yield partial
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _clear_partial(out: Path) -> None:
    """Delete the partial folders of `out` that nobody works on any more.

    One of them may hold the old folder itself, put aside when its replacement was killed.
    """
    random = "?" * 8  # as tempfile names them
    for found in out.parent.glob(f"{glob.escape(out.name)}.{random}{PARTIAL}"):
        try:
            descriptor = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or a file
        try:
            if not try_lock(descriptor) or time.time() - os.fstat(descriptor).st_mtime < YOUNG_S:
                continue
            if (found / "old").is_dir() and not os.path.lexists(out):
                (found / "old").rename(out)
            shutil.rmtree(found, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_file(out: Path) -> Iterator[BinaryIO]:
    """A file to write; it becomes `out` when the block ends well, and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{out.name}.", suffix=PARTIAL, dir=out.parent)
    try:
        with open(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        os.chmod(name, 0o644)  # mkstemp keeps it to this user
        os.replace(name, out)
    except BaseException:
        os.unlink(name)
        raise


def _folder_beside(out: Path) -> Path:
    """A new empty folder for this run alone, on the same disk as `out`."""
    return Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=PARTIAL, dir=out.parent))


def _replace(partial: Path, out: Path) -> None:
    """Put `partial` at `out`; what was there is deleted then, and put back on failure."""
    if not os.path.lexists(out):
        os.rename(partial, out)
        return
    # a rename cannot replace a folder that has content: put the old one aside first
    aside = _folder_beside(out)
    try:
        os.rename(out, aside / "old")
        os.rename(partial, out)
    finally:
        if not os.path.lexists(out):
            os.rename(aside / "old", out)
        shutil.rmtree(aside, ignore_errors=True)


def write_json(file: Path, value: object) -> None:
    """Write `value` as JSON, all of it or nothing."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write `text` in UTF-8, all of it or nothing; the folder is made where it is missing."""
    with atomic_file(file) as stream:
        stream.write(text.encode())


def sha256_file(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entry(folder: Path, path: str) -> FileEntry:
    """The manifest entry of `folder`/`path`."""
    file = folder / path
    return FileEntry(path, file.stat().st_size, sha256_file(file))
