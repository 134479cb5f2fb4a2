"""Outputs that are whole or absent, and the hashes that prove what they are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtimes.contract import FileEntry


def cache_folder() -> Path:
    """Where this user's cache of starpack is (XDG Base Directory specification); not created."""
    # the specification has relative paths ignored
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "starpack"


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and vanishes otherwise."""
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            # a rename cannot replace a folder that has content: put the old one aside first
            old = out.with_name(out.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(out, old)
            os.rename(partial, out)
            shutil.rmtree(old)
        else:
            os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(file: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, file)


def sha256_file(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entry(folder: Path, path: str) -> FileEntry:
    """The manifest entry of `folder`/`path`."""
    file = folder / path
    return FileEntry(path, file.stat().st_size, sha256_file(file))
