"""A bundle or a delta as one tar file, and back: the same bytes each time, and read with suspicion.

Written: the manifest first, then the files in the order of their paths; plain, since weights do not
compress; no owner, fixed modes, and one time for all, SOURCE_DATE_EPOCH or 0 (the convention is
that of reproducible-builds.org). Every byte is checked against the manifest on its way.

Read: plain files below one folder, as many and as large as the manifest says, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO

from packager.core.atomic import atomic_folder
from packager.core.errors import IntegrityError, UsageError, why_unreadable
from packager.core.records import Progress, no_progress
from runtimes.trust.delta import DELTA_NAME, read_delta
from runtimes.trust.entries import MAX_MANIFEST_FILES, FileEntry, file_entries
from runtimes.trust.files import BLOCK_BYTES, NewFiles, open_plain
from runtimes.trust.installed.stage import mode_of
from runtimes.trust.manifest import MAX_SIGNATURE_BYTES, UNLISTED, manifest_bytes, read_manifest
from runtimes.trust.verify import damaged, verify_folder, verify_names

MAX_EPOCH_S = 0o77777777777  # specified: what a tar header's field for the time holds
MAX_EXTENDED_BYTES = 64 * 1024  # guessed: a member's extended header holds a path and a size
_EXTENDED = b"xgXLK"  # specified: the types of such headers (POSIX pax, GNU)
MAX_FIRST_BYTES = MAX_SIGNATURE_BYTES  # the most of what comes first; their readers judge them
_FIRST = (*sorted(UNLISTED), DELTA_NAME)  # so that what follows can be judged


def source_date_epoch() -> int:
    """The time that is given to everything, in seconds since 1970; raises UsageError."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdecimal() or int(text) > MAX_EPOCH_S:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}",
            expected=f"a whole number of seconds since 1970, up to {MAX_EPOCH_S}",
        )
    return int(text)


def archive_folder_name(folder: Path) -> str:
    """The folder that an archive unpacks to: another one for each manifest."""
    short = hashlib.sha256(manifest_bytes(folder)).hexdigest()[:12]
    return f"starpack-{short}" + ("-delta" if (folder / DELTA_NAME).is_file() else "")


def write_archive(
    folder: Path, stream: BinaryIO | BufferedIOBase, progress: Progress = no_progress
) -> None:
    """Write the bundle or delta in `folder` to `stream`, which only needs write() and tell().

    Progress counts bytes. Raises IntegrityError where a file is not as it was packed: what has been
    written by then is worth nothing.
    """
    entries = _contents(folder)
    top, epoch_s = archive_folder_name(folder), source_date_epoch()
    total = sum(entry.bytes for entry in entries)
    done = 0
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(f"{top}/{entry.path}")
            member.size, member.mtime = entry.bytes, epoch_s
            member.mode = mode_of(entry.path)
            with _opened(folder / entry.path) as file:
                reader = _Hashing(file, folder / entry.path)
                archive.addfile(member, reader)
            if reader.sha256 != entry.sha256:
                raise damaged(folder / entry.path, "a file has changed", entry.sha256)
            done += entry.bytes
            progress("archive", done, total)


def unpack_archive(file: Path, out: Path, progress: Progress = no_progress) -> Path:
    """Unpack the archive of a bundle or delta to the new folder `out`, and check every byte.

    Raises IntegrityError for anything but the archive of a complete one, UsageError where there is
    something at `out`.
    """
    if os.path.lexists(out):
        raise UsageError(
            "there is something at that place", where=out, expected="nothing", remedy="remove it"
        )
    try:
        with _opened_archive(file) as stream:
            _check_headers(file, stream)
            stream.seek(0)
            source: Any = _Archive(stream, file)
            with tarfile.open(fileobj=source, mode="r:") as archive, atomic_folder(out) as folder:
                _extract(_members(archive, file), folder, file)
                entries = _contents(folder)
                verify_folder(folder, entries, (), lambda d, t: progress("check", d, t))
    except (tarfile.TarError, ValueError) as error:
        raise _bad(file, str(error)) from None
    return out


def _contents(folder: Path) -> list[FileEntry]:
    """Every file of a bundle or delta in the order of its archive; raises IntegrityError."""
    listed = _listed(folder)
    present = [name for name in _FIRST if (folder / name).is_file()]
    verify_names(folder, listed, present)
    first = []
    for name in present:
        data = (folder / name).read_bytes()
        first.append(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()))
    return [*first, *sorted(listed, key=lambda entry: entry.path)]


def _listed(folder: Path) -> Sequence[FileEntry]:
    """What the record of a delta, or else the manifest, lists; raises IntegrityError."""
    if (folder / DELTA_NAME).is_file():
        return file_entries(read_delta(folder)["files"], "files")
    return read_manifest(folder).files


def _opened(file: Path) -> BinaryIO:
    try:
        return open_plain(file)
    except (OSError, ValueError) as error:
        raise damaged(file, f"it cannot be read: {why_unreadable(error)}") from None


def _opened_archive(file: Path) -> BinaryIO:
    try:
        return open_plain(file, follow=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the archive cannot be read: {why_unreadable(error)}",
            where=file,
            expected="a tar file that `starpack archive` has written",
            remedy="check its path; `starpack join` puts one together from its volumes",
        ) from None


class _Hashing:
    """A file that hashes what is read from it. Where that fails it is damaged, and no disk full."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise damaged(self._path, f"it cannot be read: {error.strerror}") from None
        self._digest.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _check_headers(file: Path, stream: BinaryIO) -> None:
    """Refuse a long extended header before tarfile reads it into memory."""
    most = os.fstat(stream.fileno()).st_size
    for _ in range(3 * MAX_MANIFEST_FILES):
        header = stream.read(tarfile.BLOCKSIZE)
        if len(header) < tarfile.BLOCKSIZE or not any(header):
            return
        member = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
        size = member.size
        if not 0 <= size <= most or (member.type in _EXTENDED and size > MAX_EXTENDED_BYTES):
            raise _bad(file, f"a header of {size} bytes")
        blocks = -(-size // tarfile.BLOCKSIZE)
        stream.seek(blocks * tarfile.BLOCKSIZE, os.SEEK_CUR)
    raise _bad(file, "too many members")


def _members(archive: tarfile.TarFile, file: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, content) of each member, a plain file below one folder. No path is safe yet."""
    top = None
    for member in archive:
        head, _, path = member.name.partition("/")
        top = top or head
        if head != top or not path:
            raise _bad(file, f"a member {member.name!r}")
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        content = archive.extractfile(member) if plain else None
        if content is None:
            raise _bad(file, f"{member.name!r}, which is not a plain file")
        yield path, member.size, content


def _extract(members: Iterable[tuple[str, int, IO[bytes]]], folder: Path, file: Path) -> None:
    """Write the members that the manifest lists, of the sizes that it lists, and nothing else.

    The manifest and what is beside it come first. A path is one of its own, letter by letter, or
    nothing is done with it.
    """
    sizes: dict[str, int] | None = None  # of what may still come
    waiting = list(_FIRST)
    with NewFiles(folder) as files:
        for path, size, content in members:
            if sizes is None and path not in waiting:
                sizes = {entry.path: entry.bytes for entry in _listed(folder)}
                _check_free(folder, sum(sizes.values()))
            if sizes is None:
                waiting = waiting[waiting.index(path) + 1 :]
                if size > MAX_FIRST_BYTES:
                    raise _bad(file, f"{path} of {size} bytes")
            elif sizes.pop(path, None) != size:
                raise _bad(file, f"{path!r} of {size} bytes, which its manifest does not list")
            with files.create(path, mode_of(path)) as made:
                shutil.copyfileobj(content, made, BLOCK_BYTES)


class _Archive:
    """The stream of an archive: where reading fails, it is not the disk that is written to."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self._stream, self._file = stream, file
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            raise _bad(self._file, f"it cannot be read: {error.strerror}") from None


def _check_free(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"the archive holds {needed} bytes, and {free} are free there",
            where=folder.parent,
            remedy="free space on that disk, or name a folder on another one with --out",
        )


def _bad(file: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"not the archive of a bundle: {what}",
        where=file,
        expected="a tar file that `starpack archive` has written",
        remedy="copy it again, or make it again",
    )
