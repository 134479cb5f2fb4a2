"""Outputs that are complete or absent, and the hashes that prove what they are."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from packager.core.errors import StarpackError
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import FILE_MODE, FOLDER_MODE, PROGRAM_MODE, lock, try_lock

PARTIAL = ".partial"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # there is no room for what is written


def cache_folder() -> Path:
    """Where this user's cache of starpack is (XDG Base Directory specification); not created."""
    # the specification has relative paths ignored
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "starpack"


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and vanishes otherwise.

    All in it is then readable to everybody and writable to this user alone, whatever the umask is;
    what could be started still can. See partial_folder for the rest.
    """
    with _partial(out) as (partial, descriptor):
        yield partial
        _set_modes(descriptor)
        _replace(partial, out)


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in, for this user alone; it vanishes with the block.

    What earlier runs for `out` left there when they were killed is deleted first. A full disk is
    an error that names it: StarpackError.
    """
    with _partial(out) as (partial, _):
        yield partial


@contextmanager
def _partial(out: Path) -> Iterator[tuple[Path, int]]:
    with full_disk_named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_partial(out)
        with _folder_beside(out) as found:
            yield found


@contextmanager
def atomic_file(out: Path) -> Iterator[BinaryIO]:
    """A file to write; it becomes `out` when the block ends well, and vanishes otherwise.

    See partial_folder for the rest.
    """
    with full_disk_named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_partial(out)
        descriptor, name = _file_beside(out)
        try:
            with open(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fchmod(descriptor, FILE_MODE)  # mkstemp keeps it to this user
                os.fsync(descriptor)
                os.replace(name, out)  # while it is locked: nobody takes it for left behind
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextmanager
def full_disk_named(out: Path) -> Iterator[None]:
    """Have a full disk named as what it is: no fault of what was read meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = "free space on that disk, or name a place on another one"
        if error.errno == errno.EFBIG:
            remedy = "name a place where files may be as large; or archive with --split"
        raise StarpackError(
            f"{out.name} cannot be written: {error.strerror}",
            where=out.parent,
            expected="room for all of it",
            remedy=remedy,
        ) from None


def _clear_partial(out: Path) -> None:
    """Delete the partial files and folders of `out` that nobody works on: their lock is free.

    A folder may hold the old one itself, put aside when its replacement was killed.
    """
    name = re.compile(rf"{re.escape(out.name)}\.[a-z0-9_]{{8}}{re.escape(PARTIAL)}")
    for found in [path for path in out.parent.iterdir() if name.fullmatch(path.name)]:
        try:
            descriptor = os.open(found, _OPEN)
        except OSError:
            continue  # gone meanwhile, or somebody else's
        try:
            if not _try_lock(descriptor):
                continue
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                found.unlink(missing_ok=True)
                continue
            if (found / "old").is_dir() and not os.path.lexists(out):
                (found / "old").rename(out)
            shutil.rmtree(found, ignore_errors=True)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError:
        return False  # a disk without locks: nobody knows who is at work there


def _is_locked(descriptor: int, path: str) -> bool:
    """Lock what was just made at `path`; whether it is still there, and not cleared by another."""
    with suppress(OSError):  # a disk without locks, where nobody clears anything
        lock(descriptor)
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _file_beside(out: Path) -> tuple[int, str]:
    """A new file for this run alone, open and locked, on the same disk as `out`."""
    while True:
        descriptor, name = tempfile.mkstemp(PARTIAL, f"{out.name}.", out.parent)
        if _is_locked(descriptor, name):
            return descriptor, name
        os.close(descriptor)


@contextmanager
def _folder_beside(out: Path) -> Iterator[tuple[Path, int]]:
    """A new folder for this run alone on the same disk as `out`, open and locked.

    Whoever moves it away keeps it.
    """
    while True:
        name = tempfile.mkdtemp(PARTIAL, f"{out.name}.", out.parent)
        with suppress(FileNotFoundError):
            descriptor = os.open(name, _OPEN)
            if _is_locked(descriptor, name):
                break
            os.close(descriptor)
    try:
        yield Path(name), descriptor
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(descriptor)


def _set_modes(folder: int) -> None:
    """Of all in the open `folder`, and last of itself: until then nobody else can put links in."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            program = entry.stat(follow_symlinks=False).st_mode & stat.S_IXUSR
            mode = FOLDER_MODE if is_folder else PROGRAM_MODE if program else FILE_MODE
            os.chmod(entry.name, mode, dir_fd=folder)
            if is_folder:
                inside = os.open(entry.name, _OPEN, dir_fd=folder)
                try:
                    _set_modes(inside)
                finally:
                    os.close(inside)
    os.fchmod(folder, FOLDER_MODE)


def _replace(partial: Path, out: Path) -> None:
    """Put `partial` at `out`; what was there is deleted then, and put back on failure."""
    if not os.path.lexists(out):
        os.rename(partial, out)
        return
    # a rename cannot replace a folder that has content: put the old one aside first
    with _folder_beside(out) as (aside, _):
        try:
            os.rename(out, aside / "old")
            os.rename(partial, out)
        finally:
            if not os.path.lexists(out):
                os.rename(aside / "old", out)


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
