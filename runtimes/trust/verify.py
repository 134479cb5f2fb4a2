"""Is a folder exactly what a list of files says: every byte of it, and nothing else?

    files   sizes and SHA-256 of all, in parallel
    names   no file or folder too many or too few; no link, device or pipe
    modes   where `owners` are given: nobody else owns one of them, or may write to it

A HashCache remembers hashes by what the system knows of a file: inode, size, time of its last
modification and time of the last change to its inode. Those hold against accidents and against
other users. They do not hold against root, or against whoever may set the clock.

Standard library only: this runs before anything else of a bundle does (see bootstrap.py).
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shlex
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock

from runtimes.errors import Cancelled, IntegrityError
from runtimes.trust.entries import FileEntry, folders_above
from runtimes.trust.files import FOLDER, NewFiles, open_plain, read_plain
from runtimes.trust.manifest import COPY_AGAIN, UNLISTED, Manifest
from runtimes.trust.strict_json import parse_json

HASH_BLOCK_BYTES = 1 << 20  # guessed: large enough to let other threads run while hashing
HASH_THREADS = 8  # guessed: more than one disk can feed
TICK_NS = 100_000_000  # guessed: ten times the coarsest tick by which Linux stamps files, 10 ms
COARSE_TICK_NS = 2_500_000_000  # specified: FAT keeps even seconds; and a margin
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MAX_CACHE_BYTES = 64 * 1024 * 1024  # guessed: 100,000 files take 14 MB

BytesProgress = Callable[[int, int], None]
"""progress(done_bytes, total_bytes), from several threads but never two at once."""


def no_progress(*_: object) -> None:
    """The progress of a caller that shows none."""


class HashCache:
    """SHA-256 by a file's stamp, kept in a JSON file, which need not exist or be writable.

    Put it where only those may write who may also write the files. fresh: forget what it holds, now
    and for good, since what has rotted on the disk has the stamp that it had.
    """

    def __init__(self, file: Path, *, fresh: bool = False) -> None:
        self._file = file
        if fresh:
            with suppress(OSError):
                file.unlink()
        self._known = {} if fresh else _load(file)
        self._used: dict[str, str] = {}

    def get(self, info: os.stat_result) -> str | None:
        """The hash of the file that has this stamp, if it is known."""
        sha256 = self._known.get(_stamp(info))
        if sha256 is not None:
            self._used[_stamp(info)] = sha256
        return sha256

    def put(self, info: os.stat_result, sha256: str, hashed_at_ns: int) -> None:
        """Remember a hash that was begun at that time.

        Not for a file that was changed only just before: a second change within one tick of the
        file system's clock would not show in its stamp.
        """
        coarse = info.st_ctime_ns % 1_000_000_000 == 0
        if hashed_at_ns - info.st_ctime_ns > (COARSE_TICK_NS if coarse else TICK_NS):
            self._used[_stamp(info)] = sha256

    def save(self) -> None:
        """Write what was used or put since it was opened; nothing else stays."""
        if self._used == self._known:
            return
        partial = self._file.with_name(f"{self._file.name}.partial")
        with suppress(OSError):  # without the cache the next check takes longer, no more
            partial.unlink(missing_ok=True)  # two that write at once spoil it: then it is empty
            with NewFiles(self._file.parent) as files, files.create(partial.name) as stream:
                stream.write(json.dumps(self._used).encode())
            partial.replace(self._file)


def verify_files(
    bundle: Path,
    manifest: Manifest,
    progress: BytesProgress = no_progress,
    cache: HashCache | None = None,
) -> None:
    """Check that the bundle holds the manifest's files, every byte of them, and nothing else.

    Only the manifest and its hash are not listed. Raises IntegrityError naming the first file that
    is unknown, missing, changed, or not a plain file. What is read later may have changed since: a
    folder that others can write to cannot be trusted however often it is checked.
    """
    verify_folder(bundle, manifest.files, UNLISTED, progress, cache)


def verify_folder(
    folder: Path,
    entries: Sequence[FileEntry],
    unlisted: Collection[str] = (),
    progress: BytesProgress = no_progress,
    cache: HashCache | None = None,
    owners: Set[int] | None = None,
) -> None:
    """Check that `folder` holds exactly these files, beside those `unlisted`; see verify_files.

    owners: user ids; the folder, and all that is in it, must belong to one of them, and nobody else
    may write there.
    """
    found = verify_names(folder, entries, unlisted, owners)
    known = {e.path: None if cache is None else cache.get(found[e.path]) for e in entries}
    unknown = [entry for entry in entries if known[entry.path] != entry.sha256]
    _check_hashes(folder, unknown, progress, cache)


def verify_names(
    folder: Path,
    entries: Sequence[FileEntry],
    unlisted: Collection[str] = (),
    owners: Set[int] | None = None,
) -> dict[str, os.stat_result]:
    """Check which files and folders there are, the files' sizes, and what verify_folder says of
    `owners`; returns each file with what the system knows of it. Raises IntegrityError.
    """
    expected = {entry.path: entry for entry in entries}
    found = _listing(folder, folders_above(expected), owners)
    for path in unlisted:
        found.pop(path, None)
    for path in sorted(found.keys() | expected.keys()):
        if path not in expected:
            raise _unknown(folder / path)
        if path not in found:
            raise damaged(folder / path, "a file of the bundle is missing")
        if found[path].st_size != expected[path].bytes:
            raise damaged(
                folder / path,
                f"a file of the bundle has {found[path].st_size} bytes",
                f"{expected[path].bytes} bytes",
            )
    return found


def damaged(file: Path, what: str, expected: str | None = None) -> IntegrityError:
    """The error for a file that is not as it was packed."""
    return IntegrityError(what, where=file, expected=expected, remedy=COPY_AGAIN)


def check_owner(file: Path, info: os.stat_result, owners: Set[int]) -> None:
    """Refuse what others than `owners` may change; raises IntegrityError."""
    if info.st_uid not in owners:
        raise IntegrityError(
            f"user {info.st_uid} owns it, and could change what is checked here",
            where=file,
            expected=f"an owner of {sorted(owners)}",
            remedy=f"chown {max(owners)} {_quoted(file)}, after a look at what it is",
        )
    if info.st_mode & OTHERS_WRITE:
        raise IntegrityError(
            "others than its owner may write to it, and change what is checked here",
            where=file,
            expected="no right to write for the group or for others",
            remedy=f"chmod go-w {_quoted(file)}, on a disk that keeps such rights",
        )


def _quoted(file: Path) -> str:
    """For a shell; the folder of a name that no line can hold."""
    text = str(file)
    return shlex.quote(text) if text.isprintable() else f"in {shlex.quote(str(file.parent))}"


def check_above(folder: Path, owners: Set[int]) -> None:
    """Refuse a folder that others could move away: raises IntegrityError.

    Of the folders above it, others may write to those alone that are sticky, as /tmp is.
    """
    for place in folder.resolve().parents:
        info = place.stat()
        others = OTHERS_WRITE & ~(stat.S_IWGRP if _is_private_group(info) else 0)
        shared = info.st_mode & others and not info.st_mode & stat.S_ISVTX
        if shared or info.st_uid not in owners:
            raise IntegrityError(
                f"others can move {folder} away: they own a folder above it, or may write there",
                where=place,
                expected=f"user {max(owners)} or root to be its owner, and nobody else to write",
                remedy=f"chmod go-w {_quoted(place)}, where it should be yours alone, or name "
                "another folder",
            )


def _is_private_group(info: os.stat_result) -> bool:
    """Whether the group is its owner's alone, as many systems make one for each user."""
    try:
        group, owner = grp.getgrgid(info.st_gid), pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        return False
    return group.gr_name == owner and set(group.gr_mem) <= {owner}


def _listing(folder: Path, above: Set[str], owners: Set[int] | None) -> dict[str, os.stat_result]:
    """Each plain file below `folder` with what the system knows of it.

    above: the folders that may be there. No other is entered, however deep it goes.
    """
    try:
        descriptor = os.open(folder, FOLDER)
    except OSError as error:
        raise damaged(folder, f"the folder cannot be opened: {error.strerror}") from None
    try:
        files: dict[str, os.stat_result] = {}
        if owners is not None:
            check_owner(folder, os.fstat(descriptor), owners)
        for path, info in _walk(descriptor, folder, ""):
            if owners is not None and (info.st_uid not in owners or info.st_mode & OTHERS_WRITE):
                check_owner(folder / path, info, owners)
            if not stat.S_ISDIR(info.st_mode):
                files[path] = info
            elif path not in above:
                raise _unknown(folder / path)
        return files
    finally:
        os.close(descriptor)


def _walk(descriptor: int, folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Through descriptors: a folder that becomes a link meanwhile leads nowhere else."""
    with os.scandir(descriptor) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = prefix + entry.name
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                yield path, info
                try:
                    below = os.open(entry.name, FOLDER, dir_fd=descriptor)
                except OSError as error:
                    raise damaged(folder / path, f"it cannot be opened: {error.strerror}") from None
                try:
                    yield from _walk(below, folder, path + "/")
                finally:
                    os.close(below)
            elif stat.S_ISREG(info.st_mode):
                yield path, info
            else:
                kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                raise damaged(folder / path, f"the bundle holds {kind}", "plain files only")


def _check_hashes(
    folder: Path, entries: list[FileEntry], progress: BytesProgress, cache: HashCache | None
) -> None:
    total = sum(entry.bytes for entry in entries)
    done = 0
    lock = Lock()
    stopped = Event()

    def add(count: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise Cancelled("hashing was stopped")
        with lock:
            done += count
            progress(done, total)

    largest_first = sorted(entries, key=lambda entry: (-entry.bytes, entry.path))
    with ThreadPoolExecutor(min(HASH_THREADS, _cores())) as pool:
        hashes = pool.map(lambda entry: _sha256(folder / entry.path, add, cache), largest_first)
        try:
            for entry, sha256 in zip(largest_first, hashes, strict=True):
                if sha256 != entry.sha256:
                    raise _changed(folder / entry.path, sha256, entry)
        except BaseException:  # the first failure is enough, and Ctrl-C must not wait for the rest
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    if cache is not None:
        cache.save()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _sha256(file: Path, add: Callable[[int], None], cache: HashCache | None) -> str:
    digest = hashlib.sha256()
    begun_ns = time.time_ns()
    try:
        with open_plain(file) as stream:
            before = os.fstat(stream.fileno())
            while block := stream.read(HASH_BLOCK_BYTES):
                digest.update(block)
                add(len(block))
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise damaged(file, f"a file of the bundle cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise damaged(file, f"a file of the bundle cannot be read: {error}") from None
    if _stamp(before) != _stamp(after):
        raise damaged(file, "a file of the bundle was changed while it was read")
    if cache is not None:
        cache.put(after, digest.hexdigest(), begun_ns)
    return digest.hexdigest()


def _stamp(info: os.stat_result) -> str:
    return f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def _load(file: Path) -> dict[str, str]:
    try:
        value = parse_json(read_plain(file, MAX_CACHE_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _changed(file: Path, sha256: str, entry: FileEntry) -> IntegrityError:
    return damaged(file, f"a file of the bundle has changed: its SHA-256 is {sha256}", entry.sha256)


def _unknown(file: Path) -> IntegrityError:
    if "__pycache__" in file.parts:
        return IntegrityError(
            "Python has left compiled files in the bundle, which nobody has checked",
            where=file,
            remedy="delete the __pycache__ folders; start with `run`, or with `python -B`",
        )
    return damaged(file, "the bundle holds what it was not packed with")
