"""What a bundle's wheels unpack to: each file of them, and the byte code of each module.

The wheels are plain archives of site-packages, as packing has checked, so pip is not needed, which
many systems lack. The runtime writes no byte code: without some, every start would compile.

Law: the same wheels and the same Python give the same bytes, wherever and whenever they unpack. So
whoever has the wheels can tell what should be there. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import marshal
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import IO

from runtimes.errors import IntegrityError
from runtimes.trust import fields as checks
from runtimes.trust.entries import FileEntry, file_entries
from runtimes.trust.files import NewFiles
from runtimes.trust.manifest import COPY_AGAIN
from runtimes.trust.strict_json import parse_json

MAX_PACKAGE_FILES = 200_000  # guessed: torch, compiled, has 15,000
MAX_LIST_BYTES = 64 * 1024 * 1024  # guessed: 200,000 files take 32 MB
MAX_SOURCE_BYTES = 32 * 1024 * 1024  # guessed: a module that is larger stays uncompiled
BLOCK_BYTES = 1 << 20
# specified: PEP 552, byte code that nobody compares with its source; the source is hashed anyway
_UNCHECKED = (1).to_bytes(4, "little")
# Later versions of marshal's format write how often an object is referred to at that moment.
_MARSHAL_VERSION = 2
_OWN_BYTE_CODE = re.compile(r"(.*/)?__pycache__/[^/]*\.pyc")  # of another place and time


def unpack(wheels: Iterable[Path], files: NewFiles | None = None) -> tuple[FileEntry, ...]:
    """Every file that the wheels unpack to, by path; written to `files`, where that is given.

    Raises IntegrityError for an archive that is none, a path that leaves its folder, or two wheels
    that differ in a file; OSError.
    """
    found: dict[str, FileEntry] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for entry in _unpack(archive, found, files):
                    found[entry.path] = entry
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise IntegrityError(f"not a wheel: {error}", where=wheel, remedy=COPY_AGAIN) from None
        if len(found) > MAX_PACKAGE_FILES:
            raise checks.bad("wheels", wheel.name, f"at most {MAX_PACKAGE_FILES} files")
    return tuple(found[path] for path in sorted(found))


def _unpack(
    archive: zipfile.ZipFile, found: dict[str, FileEntry], files: NewFiles | None
) -> Iterator[FileEntry]:
    for info in archive.infolist():
        path = info.filename
        if info.is_dir() or _OWN_BYTE_CODE.fullmatch(path):
            continue
        checks.safe_path(path, "wheels")
        with archive.open(info) as stream:
            yield _store(path, stream, found, files)
        if path.endswith(".py") and info.file_size <= MAX_SOURCE_BYTES:
            code = byte_code(archive.read(info), path)
            if code is not None:
                compiled = importlib.util.cache_from_source(path)
                yield _store(compiled, io.BytesIO(code), found, files)


def _store(
    path: str,
    stream: IO[bytes],
    found: dict[str, FileEntry],
    files: NewFiles | None,
) -> FileEntry:
    """Hash a file, and write it; one that an earlier wheel has too must be the same."""
    size, digest = 0, hashlib.sha256()
    is_new = files is not None and path not in found
    with files.create(path) if files is not None and is_new else nullcontext() as made:
        while block := stream.read(BLOCK_BYTES):
            size += len(block)
            digest.update(block)
            if made is not None:
                made.write(block)
    entry = FileEntry(path, size, digest.hexdigest())
    if found.get(path, entry) != entry:
        raise checks.bad("wheels", path, "the same file in each wheel that has it")
    return entry


def byte_code(source: bytes, path: str) -> bytes | None:
    """What Python reads in place of a module's source; None for a source that is not Python.

    path: below site-packages. Python puts the file's place here in its stead when it loads it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return None
    data = marshal.dumps(code, _MARSHAL_VERSION)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source) + data


def package_list(entries: Iterable[FileEntry]) -> bytes:
    """What packages.json holds. Law: read_package_list(package_list(entries)) == entries."""
    return json.dumps([asdict(entry) for entry in entries]).encode()


def read_package_list(data: bytes) -> tuple[FileEntry, ...]:
    """Decode packages.json; raises ValueError, IntegrityError."""
    value = parse_json(data)
    return file_entries(value, "packages", MAX_PACKAGE_FILES) if value else ()
