"""Unfinished work in a folder: an interrupted run resumes with the next one of the same inputs.

The folder lies beside the result and is named by what went into it. A run removes what other
versions left behind. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from packager.core.atomic import atomic_folder, full_disk_named, partial_folder, write_json
from packager.core.errors import CheckpointError, DataError, UsageError
from packager.core.strict_json import read_object
from runtimes.trust.files import FILE_MODE, FOLDER_MODE, try_lock

INPUTS_NAME = "inputs.json"  # what a work folder is for
WORK_FOLDER = re.compile(r".+\.[0-9a-f]{12}\.work")
OWN_FILES = re.compile(r"lock|(inputs|ledger)\.json.*")  # of every format's work folders
LEDGER_NAME = "ledger.json"
NOTE_BYTES = 256 * 1024 * 1024  # guessed: some seconds of work


@contextmanager
def work_folder(
    out: Path, writer: tuple[str, int], files: re.Pattern[str], inputs: Mapping[str, object]
) -> Iterator[Path]:
    """The folder for these inputs beside `out`, for this run alone; kept where it is interrupted.

    writer: the format and its version. files: the names that it writes there. Raises UsageError
    where another run has the folder.
    """
    if not inputs["checkpoint"]:  # without a hash it cannot be told from others': not kept
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(out) as temporary:
            yield temporary
        return
    inputs = {"writer": list(writer), **inputs}
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = out.with_name(f"{out.name}.{key}.work")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(FOLDER_MODE, exist_ok=True)
    _check_ours(folder)
    with full_disk_named(out), _opened_lock(folder) as lock:
        if not _locked(lock):
            raise UsageError(
                "another run is making the same artifact",
                where=folder,
                expected="one run at a time",
                remedy="wait for it to end, or use another --out",
            )
        write_json(folder / INPUTS_NAME, inputs)
        _remove_useless(out.parent, writer, files)
        try:
            yield folder
        except (CheckpointError, DataError, UsageError):  # the next run would end there again
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def publish(work: Path, names: Sequence[str], out: Path) -> None:
    """Have the files of `work` become the folder `out`; where that fails they stay."""
    with atomic_folder(out) as folder:
        try:
            for name in names:
                (work / name).rename(folder / name)
        except BaseException:
            for name in names:
                with suppress(FileNotFoundError):
                    (folder / name).rename(work / name)
            raise


def _check_ours(folder: Path) -> None:
    """Refuse work that another user may have put there: links in it would be written through."""
    if _names(folder) is None or folder.stat().st_uid != os.geteuid():
        raise UsageError(
            "what lies where unfinished work is kept was not left by a run of this user",
            where=folder,
            expected="nothing, or a folder of plain files that are your own",
            remedy="remove it, or use another --out",
        )
    folder.chmod(FOLDER_MODE)


def _names(folder: Path) -> set[str] | None:
    """What a folder holds; None where that are not plain files alone, or it is a link to one."""
    with os.scandir(folder) as found:
        entries = list(found)
    plain = all(entry.is_file(follow_symlinks=False) for entry in entries)
    return {entry.name for entry in entries} if plain and not folder.is_symlink() else None


@contextmanager
def _opened_lock(folder: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / "lock", flags, FILE_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(lock: int) -> bool:
    """Take the lock that a run holds on its folder; whether nobody else has it.

    Nor may the file have been removed by another run, with its folder, before it was locked.
    """
    return try_lock(lock) and os.fstat(lock).st_nlink > 0


def _remove_useless(parent: Path, writer: tuple[str, int], files: re.Pattern[str]) -> None:
    """Remove work of this format\x27s other versions, which nothing resumes, unless a run has it.

    Work of this version on other inputs stays: the same command resumes it. A folder that holds
    anything a run does not write is somebody else's.
    """
    for folder in parent.glob("*.work"):
        with suppress(FileNotFoundError, NotADirectoryError):  # another run may remove it too
            names = _names(folder) or set()
            ours = WORK_FOLDER.fullmatch(folder.name) is not None
            ours = ours and all(OWN_FILES.fullmatch(n) or files.fullmatch(n) for n in names)
            # one that has just been made holds a lock at the most
            if ours and names > {"lock"} and _is_older(_writer_of(folder), writer):
                with _opened_lock(folder) as lock:
                    if _locked(lock):
                        shutil.rmtree(folder)


def _writer_of(folder: Path) -> object:
    """The version that a work folder is of; None for one from before they said so."""
    try:
        return read_object(folder / INPUTS_NAME)["writer"]
    except (DataError, KeyError):
        return None


def _is_older(made: object, writer: tuple[str, int]) -> bool:
    """Whether it is of this format, or of a time when no format was named, in another version."""
    match made:
        case [str(name), int(version)]:
            return name == writer[0] and version != writer[1]
    return True


def _count(value: object) -> int:
    """A whole number, 0 or more; ValueError for any other JSON value."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


class Ledger:
    """How far a file has come that is filled by the same jobs, in the same order, each time.

    jobs: how many are in it, with all before them. bytes: what those have written. Noted each
    NOTE_BYTES, once the file is on the disk: a kill, or a loss of power, costs no more.
    """

    def __init__(self, file: Path) -> None:
        """Cut `file`, which may not be there yet, back to what is known to be right."""
        self._note = file.with_name(LEDGER_NAME)
        self.jobs = self.bytes = 0
        with suppress(OSError, DataError, KeyError, ValueError):  # nothing noted: from the start
            noted = read_object(self._note)
            jobs, count, end = (_count(noted[key]) for key in ("jobs", "bytes", "end"))
            if file.stat().st_size >= end:
                os.truncate(file, end)
                self.jobs, self.bytes = jobs, count
        if self.jobs == 0:  # or else it would be believed once the file is long enough again
            self._note.unlink(missing_ok=True)
        self._noted_bytes = self.bytes

    def add(self, stream: BinaryIO, count: int) -> int:
        """One more job has written `count` bytes into the file; how many all have."""
        self.jobs += 1
        self.bytes += count
        if self.bytes - self._noted_bytes >= NOTE_BYTES:
            stream.flush()
            os.fsync(stream.fileno())
            end = os.fstat(stream.fileno()).st_size
            write_json(self._note, {"jobs": self.jobs, "bytes": self.bytes, "end": end})
            self._noted_bytes = self.bytes
        return self.bytes
