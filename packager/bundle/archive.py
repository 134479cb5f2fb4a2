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
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from packager.core.atomic import atomic_folder
from packager.core.errors import IntegrityError, UsageError
from packager.core.records import Progress, no_progress
from runtimes.trust.delta import DELTA_NAME, read_delta
from runtimes.trust.entries import MAX_MANIFEST_FILES, FileEntry, file_entries
from runtimes.trust.installed.stage import mode_of
from runtimes.trust.manifest import UNLISTED, manifest_bytes, read_manifest
from runtimes.trust.verify import damaged, verify_folder, verify_names

MAX_EPOCH_S = 0o77777777777  # specified: what a tar header's field for the time holds
MAX_EXTENDED_BYTES = 64 * 1024  # guessed: a member's extended header holds a path and a size
_EXTENDED = b"xgXLK"  # specified: the types of such headers (POSIX pax, GNU)
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
            with open(folder / entry.path, "rb") as file:
                reader = _Hashing(file)
                try:
                    archive.addfile(member, reader)
                except OSError as error:
                    raise damaged(folder / entry.path, f"it cannot be read: {error}") from None
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
        _check_headers(file)
        with tarfile.open(file, "r:") as archive, atomic_folder(out) as folder:
            _extract(archive, folder, file)
            entries = _contents(folder)
            verify_folder(folder, entries, (), lambda d, t: progress("check", d, t))
    except tarfile.TarError as error:
        raise _bad(file, str(error)) from None
    return out


def _contents(folder: Path) -> list[FileEntry]:
    """Every file of a bundle or delta in the order of its archive; raises IntegrityError."""
    if (folder / DELTA_NAME).is_file():
        listed: Sequence[FileEntry] = file_entries(read_delta(folder)["files"], "files")
    else:
        listed = read_manifest(folder).files
    present = [name for name in _FIRST if (folder / name).is_file()]
    verify_names(folder, listed, present)
    first = []
    for name in present:
        data = (folder / name).read_bytes()
        first.append(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()))
    return [*first, *sorted(listed, key=lambda entry: entry.path)]


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _check_headers(file: Path) -> None:
    """Refuse a long extended header before tarfile reads it into memory."""
    most = file.stat().st_size
    with open(file, "rb") as stream:
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


def _extract(archive: tarfile.TarFile, folder: Path, file: Path) -> None:
    """Write the members, plain files below one folder, while there is room for them."""
    top = None
    for count, member in enumerate(archive):
        head, _, path = member.name.partition("/")
        top = top or head
        if head != top or not path or count >= MAX_MANIFEST_FILES + len(_FIRST):
            raise _bad(file, f"a member {member.name!r}, or one too many")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise _bad(file, f"{member.name!r}, which is not a plain file")
        if member.size > shutil.disk_usage(folder).free:
            raise UsageError(
                f"{member.name} has {member.size} bytes, more than are free", where=folder
            )
        member.name = path
        # the filter refuses what leaves the folder, with an error of tarfile's own
        plain = tarfile.data_filter(member, str(folder))
        if os.path.lexists(folder / plain.name):
            raise _bad(file, f"{path!r} twice")
        archive.extract(plain, folder, filter="data")
        (folder / path).chmod(mode_of(path))


def _bad(file: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"not the archive of a bundle: {what}",
        where=file,
        expected="a tar file that `starpack archive` has written",
        remedy="copy it again, or make it again",
    )
