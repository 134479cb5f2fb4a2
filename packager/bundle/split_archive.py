"""An archive in numbered volumes, for media that are smaller than it.

NAME.tar.001 ...        at most so many bytes each
NAME.tar.index.json     their names, sizes and SHA-256; written last
join.py                 joins them, where there is no starpack (see files/join.py)
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from packager.bundle.archive import write_archive
from packager.bundle.files import join as joining
from packager.core.atomic import atomic_file
from packager.core.errors import IntegrityError, UsageError
from packager.core.records import Progress, no_progress
from runtimes.trust.entries import FileEntry

INDEX = ".index.json"
INDEX_VERSION = 1
MAX_VOLUMES = 999  # three digits
MIN_VOLUME_BYTES = 4096  # guessed: less can only be a slip
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 4G, 700MB (powers of ten) or 4GiB; raises UsageError."""
    found = re.fullmatch(r"(\d{1,18})\s*([KMG]?I?)B?", text.strip().upper())
    if not found or found[2] not in UNITS or int(found[1]) * UNITS[found[2]] < MIN_VOLUME_BYTES:
        raise UsageError(
            f"a size of {text!r}",
            expected=f"such as 4G, 700MB or 4GiB, and at least {MIN_VOLUME_BYTES} bytes",
        )
    return int(found[1]) * UNITS[found[2]]


def check_flags(archive: Path | None, volume_bytes: int | None) -> None:
    """Raise UsageError where a size of volumes is given, and no archive."""
    if volume_bytes is not None and archive is None:
        raise UsageError("--split without --archive", remedy="name the archive's file")


def write_files(
    folder: Path, archive: Path, volume_bytes: int | None, progress: Progress = no_progress
) -> list[str]:
    """Write the bundle or delta in `folder` as `archive`, or as its volumes; returns every file.

    All of them appear, or none. Raises what write_archive and volumes do.
    """
    if volume_bytes is None:
        with atomic_file(archive) as stream:
            write_archive(folder, stream, progress)
        return [str(archive)]
    with volumes(archive, volume_bytes) as stream:
        write_archive(folder, stream, progress)
    parts = sorted(archive.parent.glob(f"{archive.name}.[0-9][0-9][0-9]"))
    others = archive.with_name(archive.name + INDEX), archive.with_name("join.py")
    return [str(file) for file in (*parts, *others)]


@contextmanager
def volumes(archive: Path, volume_bytes: int) -> Iterator[BinaryIO]:
    """A stream that becomes the volumes of `archive`, all of them or none.

    Earlier volumes of that name are deleted first. Raises UsageError where there would be too many.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(
        tempfile.mkdtemp(prefix=f"{archive.name}.", suffix=".partial", dir=archive.parent)
    )
    writer = _Writer(folder, archive.name, volume_bytes)
    try:
        yield writer
        entries = writer.finish()
        index = archive.with_name(archive.name + INDEX)
        index.unlink(missing_ok=True)  # from here on until it is written there is no archive
        for old in archive.parent.glob(f"{archive.name}.[0-9][0-9][0-9]"):
            old.unlink()
        for entry in entries:
            (folder / entry.path).rename(archive.with_name(entry.path))
        shutil.copyfile(joining.__file__, archive.with_name("join.py"))
        partial = folder / index.name
        partial.write_text(json.dumps(_index(archive.name, entries), indent=2) + "\n")
        partial.rename(index)
    finally:
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)


def join_volumes(
    index: Path, folders: list[Path], out: Path, progress: Progress = no_progress
) -> None:
    """Join the volumes that `index` names, from its own folder and `folders`, to `out`.

    Raises IntegrityError naming those that are damaged or missing; what was joined is kept.
    """
    try:
        listed = joining.read_index(index)
        joining.join(listed, [index.parent, *folders], out, lambda d, t: progress("join", d, t))
    except joining.Damaged as error:
        raise IntegrityError(
            str(error),
            where=index,
            expected="every volume as it was written",
            remedy="copy these again and run it again: it goes on where it was",
        ) from None


def _index(name: str, entries: list[FileEntry]) -> dict[str, object]:
    listed = [{"name": entry.path} | asdict(entry) for entry in entries]
    for volume in listed:
        del volume["path"]
    return {"schema_version": INDEX_VERSION, "name": name, "volumes": listed}


class _Writer:
    """Takes bytes in order and cuts them."""

    def __init__(self, folder: Path, name: str, volume_bytes: int) -> None:
        self._folder, self._name, self._volume_bytes = folder, name, volume_bytes
        self._entries: list[FileEntry] = []
        self._begin()

    def _begin(self) -> None:
        self._path = f"{self._name}.{len(self._entries) + 1:03}"
        self._file = open(self._folder / self._path, "wb")  # noqa: SIM115 - closed by _end
        self._digest = hashlib.sha256()
        self._left = self._volume_bytes

    def _end(self) -> None:
        self._file.close()
        size = self._volume_bytes - self._left
        self._entries.append(FileEntry(self._path, size, self._digest.hexdigest()))

    def write(self, data: bytes) -> int:
        """Take `data`, over as many volumes as it needs."""
        rest = memoryview(data)
        while rest:
            if not self._left:
                self._end()
                if len(self._entries) == MAX_VOLUMES:
                    raise UsageError(
                        f"more than {MAX_VOLUMES} volumes",
                        where=self._name,
                        remedy="give --split a larger size",
                    )
                self._begin()
            part = rest[: self._left]
            self._file.write(part)
            self._digest.update(part)
            self._left -= len(part)
            rest = rest[len(part) :]
        return len(data)

    def tell(self) -> int:
        """How many bytes have been taken."""
        return sum(entry.bytes for entry in self._entries) + self._volume_bytes - self._left

    def close(self) -> None:
        """Also where it has not been finished."""
        self._file.close()

    def finish(self) -> list[FileEntry]:
        """Close the last volume; returns all."""
        self._end()
        return self._entries
