"""An archive in numbered volumes, for media that are smaller than it.

NAME.tar.001 ...    at most so many bytes each; `cat NAME.tar.* > NAME.tar` joins them
SHA256SUMS          of each volume and of NAME.tar, for `sha256sum -c`; written last
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from packager.bundle.archive import write_archive
from packager.core.atomic import atomic_file, partial_folder, write_text
from packager.core.errors import IntegrityError, UsageError, why_unreadable
from packager.core.records import Progress, no_progress
from runtimes.trust.fields import MAX_NAME_BYTES
from runtimes.trust.files import NewFiles, open_plain, read_plain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SUMS_NAME = "SHA256SUMS"
MAX_SUMS_BYTES = 1024 * 1024
MAX_VOLUMES = 999  # three digits
MIN_VOLUME_BYTES = 4096  # guessed: less can only be a slip
BLOCK_BYTES = 1 << 20
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")  # as coreutils write it, for plain names


@dataclass(frozen=True, slots=True)
class Sums:
    """What SHA256SUMS lists: the archive's name and hash, and (name, hash) of each volume."""

    name: str
    sha256: str
    volumes: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """As `sha256sum` writes it."""
        lines = [f"{sha256}  {name}\n" for name, sha256 in self.volumes]
        return "".join(lines) + f"{self.sha256}  {self.name}\n"


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
    parts = sorted(archive.parent.glob(f"{glob.escape(archive.name)}.[0-9][0-9][0-9]"))
    return [str(file) for file in (*parts, archive.with_name(SUMS_NAME))]


@contextmanager
def volumes(archive: Path, volume_bytes: int) -> Iterator[BufferedIOBase]:
    """A stream that becomes the volumes of `archive`, all of them or none.

    Earlier volumes of that name are deleted first. Raises UsageError where there would be too many,
    or where the folder holds the volumes of another archive.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    sums_file = archive.with_name(SUMS_NAME)
    if sums_file.exists() and read_sums(sums_file).name != archive.name:
        raise UsageError(
            "the folder holds the volumes of another archive",
            where=sums_file,
            remedy="write these volumes to a folder of their own",
        )
    with partial_folder(archive) as folder, NewFiles(folder) as files:
        with closing(_Writer(files, archive.name, volume_bytes)) as writer:
            yield writer
            sums = writer.finish()
        sums_file.unlink(missing_ok=True)  # from here on until it is written there is no archive
        for old in archive.parent.glob(f"{glob.escape(archive.name)}.[0-9][0-9][0-9]"):
            old.unlink()
        for name, _ in sums.volumes:
            (folder / name).rename(archive.with_name(name))
        write_text(sums_file, sums.text())


def read_sums(file: Path) -> Sums:
    """The archive and its volumes, in their order; raises IntegrityError."""
    try:
        text = read_plain(file, MAX_SUMS_BYTES, follow=True).decode()
        lines = [_LINE.fullmatch(line) for line in text.splitlines()]
        listed = [(found[2], found[1]) for found in lines if found and _is_name(found[2])]
        if len(listed) != len(lines) or len(listed) < 2:
            raise ValueError("it should have lines of `sha256sum`, for an archive and its volumes")
        *parts, (name, sha256) = listed
        if [part for part, _ in parts] != [f"{name}.{i + 1:03}" for i in range(len(parts))]:
            raise ValueError("it should list the volumes in their order, then the archive")
    except (ValueError, OSError) as error:
        raise IntegrityError(
            f"not the list of an archive's volumes: {why_unreadable(error)}",
            where=file,
            expected=f"{SUMS_NAME}, as `starpack archive --split` writes it",
            remedy="copy it again",
        ) from None
    return Sums(name, sha256, tuple(parts))


def join_volumes(
    sums_file: Path, folders: Sequence[Path], out: Path | None, progress: Progress = no_progress
) -> Path:
    """Join the volumes that `sums_file` lists, from its own folder and `folders`; returns `out`.

    out: the archive, beside `sums_file` unless told otherwise. Raises IntegrityError naming every
    volume that is damaged or missing; then nothing is written. Progress counts bytes.
    """
    sums = read_sums(sums_file)
    out = out or sums_file.with_name(sums.name)
    places = (sums_file.parent, *folders)
    found = {
        name: [folder / name for folder in places if (folder / name).is_file()]
        for name, _ in sums.volumes
    }
    total = sum(files[0].stat().st_size for files in found.values() if files)
    problems: list[str] = []
    with atomic_file(out) as target:
        total_hash = hashlib.sha256()
        for name, sha256 in sums.volumes:
            for file in found[name]:
                start, digest, longer = target.tell(), hashlib.sha256(), total_hash.copy()
                for block in _blocks(file):
                    digest.update(block)
                    longer.update(block)
                    target.write(block)
                if digest.hexdigest() == sha256:
                    total_hash = longer
                    break
                target.seek(start)
                target.truncate()
            else:
                files = ", ".join(map(str, found[name]))
                problems.append(f"damaged: {files}" if files else f"missing: {name}")
            progress("join", min(target.tell(), total), total)
        if not problems and total_hash.hexdigest() != sums.sha256:
            problems.append(f"damaged: the line of {sums.name}, or the order of the volumes")
        if problems:
            raise IntegrityError(
                "\n".join(problems),
                where=sums_file,
                expected="every volume as it was written",
                remedy="copy these volumes again, or name the folders that hold them",
            )
    return out


def _is_name(name: str) -> bool:
    """Whether a disk can hold a file of this name."""
    return name not in (".", "..") and len(name.encode()) <= MAX_NAME_BYTES


def _blocks(file: Path) -> Iterator[bytes]:
    """What can be read of a volume: one that cannot be read to its end is damaged."""
    with suppress(OSError), open_plain(file, follow=True) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


class _Writer(BufferedIOBase):
    """Takes bytes in order and cuts them."""

    def __init__(self, files: NewFiles, name: str, volume_bytes: int) -> None:
        self._files, self._name, self._volume_bytes = files, name, volume_bytes
        self._done: list[tuple[str, str]] = []
        self._bytes = 0
        self._total_hash = hashlib.sha256()
        self._begin()

    def _begin(self) -> None:
        self._path = f"{self._name}.{len(self._done) + 1:03}"
        self._file = self._files.create(self._path)
        self._digest = hashlib.sha256()
        self._left = self._volume_bytes

    def _end(self) -> None:
        self._file.close()
        self._done.append((self._path, self._digest.hexdigest()))

    def write(self, data: ReadableBuffer, /) -> int:
        """Take `data`, over as many volumes as it needs."""
        rest = memoryview(data)
        count = rest.nbytes
        self._total_hash.update(rest)
        self._bytes += count
        while rest:
            if not self._left:
                self._end()
                if len(self._done) == MAX_VOLUMES:
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
        return count

    def tell(self) -> int:
        """How many bytes have been taken."""
        return self._bytes

    def close(self) -> None:
        """Also where it has not been finished."""
        self._file.close()
        super().close()

    def finish(self) -> Sums:
        """Close the last volume; returns the hashes of all."""
        self._end()
        return Sums(self._name, self._total_hash.hexdigest(), tuple(self._done))
