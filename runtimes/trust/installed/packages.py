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
import lzma
import marshal
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from runtimes.errors import IntegrityError
from runtimes.trust import fields as checks
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import NewFiles
from runtimes.trust.installed.package_list import BYTE_CODE, MAX_PACKAGE_FILES
from runtimes.trust.manifest import COPY_AGAIN

T = TypeVar("T")
MAX_SOURCE_BYTES = 32 * 1024 * 1024  # guessed: a module that is larger stays uncompiled
BLOCK_BYTES = 1 << 20
BAD_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, IndexError,
    ValueError, NotImplementedError, RuntimeError,
)  # fmt: skip
# specified: PEP 552, byte code that nobody compares with its source; the source is hashed anyway
_UNCHECKED = (1).to_bytes(4, "little")
# Later versions of marshal's format write how often an object is referred to at that moment.
_MARSHAL_VERSION = 2


def unpack(wheels: Iterable[Path], files: NewFiles | None = None) -> tuple[FileEntry, ...]:
    """Every file that the wheels unpack to, by path; written to `files`, where that is given.

    Raises IntegrityError for an archive that is none, a path that leaves its folder, or two wheels
    that differ in a file; OSError.
    """
    found: dict[str, FileEntry] = {}
    for wheel in wheels:
        try:
            with _of_archive(partial(zipfile.ZipFile, wheel)) as archive:
                for entry in _unpack(archive, found, files):
                    found[entry.path] = entry
        except BAD_ARCHIVE as error:
            raise IntegrityError(f"not a wheel: {error}", where=wheel, remedy=COPY_AGAIN) from None
        if len(found) > MAX_PACKAGE_FILES:
            raise checks.bad("wheels", wheel.name, f"at most {MAX_PACKAGE_FILES} files")
    return tuple(found[path] for path in sorted(found))


def _unpack(
    archive: zipfile.ZipFile, found: dict[str, FileEntry], files: NewFiles | None
) -> Iterator[FileEntry]:
    for info in archive.infolist():
        path = info.filename
        if info.is_dir() or BYTE_CODE.fullmatch(path):
            continue
        checks.safe_path(path, "wheels")
        with _of_archive(partial(archive.open, info)) as stream:
            yield _store(path, stream, found, files)
        if path.endswith(".py") and info.file_size <= MAX_SOURCE_BYTES:
            code = byte_code(_of_archive(partial(archive.read, info)), path)
            if code is not None:
                compiled = checks.safe_path(importlib.util.cache_from_source(path), "wheels")
                yield _store(compiled, io.BytesIO(code), found, files)


def unpacked_bytes(wheels: Iterable[Path]) -> int:
    """What the wheels say that they unpack to, without byte code; 0 for one that says nothing."""
    total = 0
    for wheel in wheels:
        with suppress(OSError, *BAD_ARCHIVE), zipfile.ZipFile(wheel) as archive:
            total += sum(info.file_size for info in archive.infolist())
    return total


def _store(
    path: str,
    stream: IO[bytes],
    found: dict[str, FileEntry],
    files: NewFiles | None,
) -> FileEntry:
    """Hash a file, and write it; one that an earlier wheel has too must be the same."""
    size, digest = 0, hashlib.sha256()
    with _created(path, None if path in found else files) as made:
        while block := _read(stream):
            size += len(block)
            digest.update(block)
            if made is not None:
                made.write(block)
    entry = FileEntry(path, size, digest.hexdigest())
    if found.get(path, entry) != entry:
        raise checks.bad("wheels", path, "the same file in each wheel that has it")
    return entry


def _created(path: str, files: NewFiles | None) -> AbstractContextManager[BinaryIO | None]:
    if files is None:
        return nullcontext()
    try:
        return files.create(path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise checks.bad("wheels", path, "no path both of a file and of a folder") from None


def _read(stream: IO[bytes]) -> bytes:
    """A block of a member."""
    return _of_archive(lambda: stream.read(BLOCK_BYTES))


def _of_archive(read: Callable[[], T]) -> T:
    """What `read` gives; a fault there is the archive's, not the disk's that it is unpacked to."""
    try:
        return read()
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from None


def byte_code(source: bytes, path: str) -> bytes | None:
    """What Python reads in place of a module's source; None for a source that is not Python.

    path: below site-packages. Python puts the file's place here in its stead when it loads it.
    """
    with ThreadPoolExecutor(1) as pool:  # as deep as Python lets it, wherever this is called from
        data = pool.submit(_compiled, source, path).result()
    if data is None:
        return None
    return importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source) + data


def _compiled(source: bytes, path: str) -> bytes | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True)
        return marshal.dumps(code, _MARSHAL_VERSION)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
