"""A version in the making: copied, checked, unpacked and tried, under a name that nothing starts.

Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import DeviceError, IntegrityError, OfflineError, UsageError
from runtimes.trust.bootstrap import STARTER
from runtimes.trust.console import Console
from runtimes.trust.delta import DELTA_NAME, source_of_every_file
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import FILE_MODE, MAX_COPY_BYTES, PROGRAM_MODE, NewFiles
from runtimes.trust.installed.package_list import PackageList
from runtimes.trust.installed.packages import unpack, unpacked_bytes
from runtimes.trust.installed.version import Version, wheels_of
from runtimes.trust.installed.versions import Installation, base_python
from runtimes.trust.manifest import (
    UNLISTED,
    Manifest,
    manifest_bytes,
    parse_manifest,
    signature_bytes,
    unlisted_files,
)
from runtimes.trust.verify import damaged, verify_files, verify_names

EXECUTABLE = frozenset({"install", "run"})
NEEDED = (STARTER, "run", "runtimes/cli/main.py")  # what starts looks for them by name
MIB = 1024 * 1024
FULL_BUNDLE = "install the full new bundle, or repair the version that the delta was made for"

Sources = Callable[[FileEntry], Path]
"""Where to copy a file of the bundle from."""


@dataclass(frozen=True, slots=True)
class Given:
    """What is installed: a bundle or a delta, as its manifest was when it was first read."""

    folder: Path
    data: bytes
    signature: bytes | None
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Given:
        """Raises IntegrityError."""
        data = manifest_bytes(folder)
        manifest = parse_manifest(data, folder)
        listed = {entry.path for entry in manifest.files}
        for path in NEEDED:
            if path not in listed:
                raise damaged(folder / path, "the manifest does not list what starts the bundle")
        return cls(folder, data, signature_bytes(folder), manifest)

    @property
    def sha256(self) -> str:
        """Of the manifest."""
        return hashlib.sha256(self.data).hexdigest()


def say(text: str) -> None:
    """One line of progress, or the reason for a failure."""
    print(f"install: {text}", file=sys.stderr, flush=True)


def stage(
    given: Given, installation: Installation, staged: Version, console: Console
) -> PackageList:
    """Copy, check, unpack and try; returns what the packages hold.

    Raises as install() does.
    """
    manifest = given.manifest
    size = sum({_twin(entry): entry.bytes for entry in manifest.files}.values())
    source = _sources(given, installation)
    _check_space(staged.folder, size, "the bundle")
    say(f"copying and checking {size / 1e6:.0f} MB")
    with NewFiles(staged.folder) as files:
        _copy(given, source, files)
        _check_copy(given, source, staged, console)
        say("unpacking the packages")
        wheels = wheels_of(staged.bundle)
        _check_space(staged.folder, unpacked_bytes(wheels), "the packages")
        staged.packages.mkdir(mode=0o755)
        with NewFiles(staged.packages) as unpacked:
            packages = PackageList(unpack(wheels, unpacked))
        with files.create(staged.package_list.name) as stream:
            stream.write(packages.data)
        files.set_mode()  # until now it was this user's alone
    say("trying them")
    _try_packages(staged, wheels, manifest.versions.get("wheels_glibc", "?"))
    staged.verify()  # from here on only what is touched is hashed again
    os.sync()  # a version that is named must survive a power cut
    return packages


def _check_space(folder: Path, size: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UsageError(
            f"{what} needs {size / 1e6:.0f} MB of disk, and {free / 1e6:.0f} MB are free",
            where=folder.parent,
            remedy="free space on that disk, or install to another one",
        )


def _check_copy(given: Given, source: Sources, staged: Version, console: Console) -> None:
    """Check the copy, since that is what will run; what it was made from is named."""
    origins = {str(staged.bundle / entry.path): source(entry) for entry in given.manifest.files}
    try:
        verify_files(staged.bundle, given.manifest, console.meter("checking", "MiB", MIB))
    except IntegrityError as error:
        where = Path(error.where or staged.bundle)
        where = origins.get(str(where), where)
        if (given.folder / DELTA_NAME).is_file():
            raise IntegrityError(
                error.what, where=where, expected=error.expected, remedy=FULL_BUNDLE
            ) from None
        raise damaged(where, error.what, error.expected) from None
    copied = manifest_bytes(staged.bundle), signature_bytes(staged.bundle)
    if copied != (given.data, given.signature):
        raise damaged(given.folder, "the bundle was changed while it was copied")


def _sources(given: Given, installation: Installation) -> Sources:
    here = given.folder
    if (here / DELTA_NAME).is_file():
        return source_of_every_file(here, [v.bundle for v in installation.complete()])
    verify_names(here, given.manifest.files, UNLISTED)
    return lambda entry: here / entry.path


def _copy(given: Given, source: Sources, files: NewFiles) -> None:
    """To bundle/, through descriptors: whoever may write there leads nothing elsewhere."""
    stored: dict[str, str] = {}
    for entry in given.manifest.files:
        path, mode = f"bundle/{entry.path}", mode_of(entry.path)
        twin = stored.setdefault(_twin(entry), path)
        copy_file(source(entry), files, path, twin, mode, most_bytes=entry.bytes + 1)
    for name in unlisted_files(given.folder):
        copy_file(given.folder / name, files, f"bundle/{name}", f"bundle/{name}", FILE_MODE)


def _twin(entry: FileEntry) -> str:
    """What is the same of files that are stored once: variants may have some in common."""
    return entry.sha256 if entry.path.startswith("model/") else entry.path


def mode_of(path: str) -> int:
    """The mode of a bundle's file, wherever it lies."""
    return PROGRAM_MODE if path in EXECUTABLE else FILE_MODE


def copy_file(
    source: Path,
    files: NewFiles,
    path: str,
    twin: str,
    mode: int,
    *,
    follow: bool = False,
    most_bytes: int = MAX_COPY_BYTES,
) -> None:
    """Copy a file, or let it be another name of its copy `twin`, where the disk has that.

    follow: `source` may be a link. most_bytes: no more is copied. Raises IntegrityError for what is
    no plain file, OSError.
    """
    if twin != path:
        with suppress(OSError):
            files.link(path, twin)
            return
    try:
        files.copy(source, path, mode, follow=follow, most_bytes=most_bytes)
    except ValueError as error:
        raise damaged(source, str(error), "plain files only") from None


def _try_packages(staged: Version, wheels: list[Path], glibc: str) -> None:
    """Import each package once: a shared library that this machine lacks shows here."""
    names = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            parts = [Path(name).parts for name in archive.namelist()]
        names |= {path[0] for path in parts if path[1:] == ("__init__.py",)}
    command = [base_python(), "-I", "-S", "-B", str(staged.bundle / STARTER), "try"]
    done = subprocess.run(
        [*command, *sorted(names)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == OfflineError.exit_code:
        raise OfflineError(done.stderr.strip())
    if done.returncode != 0:
        raise DeviceError(
            "a package of the bundle cannot be loaded here: "
            + (done.stderr.strip().splitlines() or ["no message"])[-1],
            expected=f"glibc {glibc} or newer; this machine has {' '.join(platform.libc_ver())}",
            remedy="install the system library that is named (libgomp.so.1 is in libgomp1, "
            "libstdc++.so.6 in libstdc++6), or, where glibc is too old, use a newer system",
        )
