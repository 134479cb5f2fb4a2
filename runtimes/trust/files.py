"""Files that others may have put there: read and written where they are said to be, and only there.

    read     a plain file, up to a size: no link is followed, no pipe waited for
    write    new files below one folder, through descriptors: no link leads them elsewhere, and
             their modes are set on what has been opened, whatever the umask
    lock     an open file or folder, among this machine's processes; the system frees the lock of
             one that ends

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755
BLOCK_BYTES = 1 << 20
COPY_BYTES = 1 << 30  # per call; specified: Linux copies at most 2 GiB in one
MAX_COPY_BYTES = 1 << 62  # all of a file
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_plain(file: str | Path, *, follow: bool = False, within: int | None = None) -> BinaryIO:
    """Open a plain file for reading, at once. follow: the user has named it, links may lead there.

    within: the descriptor of the folder that a relative path starts from. Raises OSError, and
    ValueError for what is there and no file.
    """
    flags = _READ if follow else _READ | os.O_NOFOLLOW
    stream = open(os.open(file, flags, dir_fd=within), "rb", buffering=0)  # noqa: SIM115 - returned
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise ValueError("it is a pipe, a device or a socket, and no file")


def read_plain(
    file: str | Path, most_bytes: int, *, follow: bool = False, within: int | None = None
) -> bytes:
    """The content of a plain file; see open_plain. ValueError where it has more than most_bytes."""
    with open_plain(file, follow=follow, within=within) as stream:
        data = bytearray()
        while block := stream.read(min(BLOCK_BYTES, most_bytes + 1 - len(data))):
            data += block
            if len(data) > most_bytes:
                raise ValueError(f"it has more than {most_bytes} bytes")
    return bytes(data)


class NewFiles:
    """A folder to put new files into; paths are relative to it, with `/` between their parts."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.open(folder, FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._folder)

    def set_mode(self) -> None:
        """Have the folder itself be one that all may read."""
        os.fchmod(self._folder, FOLDER_MODE)

    def create(self, path: str, mode: int = FILE_MODE) -> BinaryIO:
        """Open a new file for writing, and make the folders above it.

        Raises FileExistsError where something is there, OSError where a folder above it is a link.
        """
        *folders, name = path.split("/")
        above = self._open_folder(folders)
        try:
            stream = open(os.open(name, _WRITE, 0o600, dir_fd=above), "wb")  # noqa: SIM115 - returned
        finally:
            os.close(above)
        os.fchmod(stream.fileno(), mode)
        return stream

    def copy(
        self,
        source: Path,
        path: str,
        mode: int = FILE_MODE,
        *,
        follow: bool = False,
        most_bytes: int = MAX_COPY_BYTES,
    ) -> None:
        """Copy the plain file `source`, or its beginning; raises as create and open_plain do."""
        with open_plain(source, follow=follow) as given, self.create(path, mode) as made:
            left = most_bytes
            while left and (
                done := os.sendfile(made.fileno(), given.fileno(), None, min(left, COPY_BYTES))
            ):
                left -= done

    def link(self, path: str, twin: str) -> None:
        """Give the file at `twin` another name; raises OSError where the disk cannot."""
        ends = []
        try:
            for end in (twin, path):
                ends.append(self._open_folder(end.split("/")[:-1]))
            names = twin.rsplit("/", 1)[-1], path.rsplit("/", 1)[-1]
            os.link(*names, src_dir_fd=ends[0], dst_dir_fd=ends[1], follow_symlinks=False)
        finally:
            for folder in ends:
                os.close(folder)

    def _open_folder(self, names: Sequence[str]) -> int:
        """A descriptor, for the caller to close, of a folder that is made where it is missing."""
        folder = os.dup(self._folder)
        try:
            for name in names:
                made = _make_folder(name, folder)
                below = os.open(name, FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
                if made:
                    os.fchmod(folder, FOLDER_MODE)
        except BaseException:
            os.close(folder)
            raise
        return folder


def _make_folder(name: str, within: int) -> bool:
    try:
        os.mkdir(name, FOLDER_MODE, dir_fd=within)
    except FileExistsError:
        return False
    return True


def delete(path: Path) -> None:
    """Delete what lies there, links not followed; what cannot be deleted stays.

    With the system's own commands, which go as deep as folders do.
    """
    import subprocess  # a start does without

    if not os.path.lexists(path):
        return
    commands = [["rm", "-rf", str(path)]]
    if path.is_dir() and not path.is_symlink():
        # where its owner may not enter; files keep their modes, which other names of theirs share
        commands.insert(0, ["find", str(path), "-type", "d", "-exec", "chmod", "u+rwx", "{}", "+"])
    for command in commands:
        with suppress(OSError):
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def try_lock(descriptor: int) -> bool:
    """Take the lock unless somebody else holds it; whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Take the lock, after whoever holds it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
