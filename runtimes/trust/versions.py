"""An installation: versions side by side, and one link that says which of them runs.

    DIR/run                        starts the current version
    DIR/current                    a link to versions/NAME; replaced in one step by a rename
    DIR/versions/NAME/bundle         the bundle, as its manifest lists it
                      packages       the bundle's wheels, unpacked and compiled
                      packages.json  every file of packages with its SHA-256
                      checker/       start.py and the modules of runtimes/ that check the others
                      python         a link to the interpreter that it was installed with
                      previous       the NAME that it took over from, for `rollback`
                      checked-*.json which files have been hashed, and not been touched since

NAME is the start of the SHA-256 of bundle.json. What is half made has a name that ends in .partial.
Standard library only.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import DeviceError, IntegrityError, StarpackError, UsageError
from runtimes.trust.entries import FileEntry, file_entries
from runtimes.trust.lock import try_lock
from runtimes.trust.manifest import COPY_AGAIN, Manifest, read_manifest
from runtimes.trust.strict_json import parse_json
from runtimes.trust.verify import (
    BytesProgress,
    HashCache,
    no_progress,
    verify_files,
    verify_folder,
)

NAME_DIGITS = 12
PARTIAL = ".partial"
MAX_PACKAGE_FILES = 200_000  # guessed: torch, compiled, has 15,000
_NAME = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}(-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Version:
    """One installed bundle with its packages. Its folder is complete, or ends in .partial."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def checker(self) -> Path:
        return self.folder / "checker"

    @property
    def python(self) -> Path:
        return self.folder / "python"

    def bundle_cache(self, *, fresh: bool = False) -> HashCache:
        """The hashes of the bundle's files that have not been touched since."""
        return HashCache(self.folder / "checked-bundle.json", fresh=fresh)

    def verify(self, *, full: bool = False, progress: BytesProgress = no_progress) -> Manifest:
        """Check every byte of the bundle and of its unpacked packages; raises IntegrityError.

        Without `full`, a file that has not been touched since it was last hashed is not read again.
        """
        manifest = read_manifest(self.bundle)
        packages = self.package_files()
        bundle_cache = self.bundle_cache(fresh=full)
        packages_cache = HashCache(self.folder / "checked-packages.json", fresh=full)
        verify_files(self.bundle, manifest, progress, bundle_cache)
        verify_folder(self.packages, packages, (), progress, packages_cache)
        return manifest

    def package_files(self) -> tuple[FileEntry, ...]:
        """What was unpacked from the bundle's wheels and compiled when it was installed."""
        file = self.folder / "packages.json"
        try:
            value = parse_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"the list of installed packages cannot be read: {error}",
                where=file,
                remedy="install the bundle again",
            ) from None
        return file_entries(value, "packages", MAX_PACKAGE_FILES) if value else ()


@dataclass(frozen=True, slots=True)
class Installation:
    """The folder that was given as `./install --to DIR`."""

    folder: Path

    @property
    def versions(self) -> Path:
        return self.folder / "versions"

    def named(self, name: str) -> Version:
        return Version(self.versions / name)

    def current(self) -> Version | None:
        """The version that runs, if there is one."""
        try:
            name = os.readlink(self.folder / "current").removeprefix("versions/")
        except OSError:
            return None
        return self._existing(name)

    def previous(self) -> Version | None:
        """The version that ran before the current one, if it is still there."""
        current = self.current()
        if current is None:
            return None
        try:
            return self._existing((current.folder / "previous").read_text().strip())
        except (OSError, ValueError):
            return None

    def complete(self) -> list[Version]:
        """Every complete version, by name."""
        if not self.versions.is_dir():
            return []
        names = sorted(folder.name for folder in self.versions.iterdir())
        return [self.named(name) for name in names if _NAME.fullmatch(name)]

    def is_ours(self) -> bool:
        """Whether this folder is empty or what installing has made, finished or not."""
        if not os.path.lexists(self.folder):
            return True
        if not self.folder.is_dir():
            return False
        if not self.versions.is_dir() or self.versions.is_symlink():
            return not any(self.folder.iterdir())
        names = [folder.name for folder in self.versions.iterdir()]
        return all(_NAME.fullmatch(name) or name.endswith(PARTIAL) for name in names)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other installs and rollbacks out; the system frees the lock of a killed process."""
        descriptor = os.open(self.versions, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not try_lock(descriptor):
                raise StarpackError(
                    "another install or rollback is at work there",
                    where=self.folder,
                    remedy="wait until it is done",
                )
            yield
        finally:
            os.close(descriptor)

    def switch(self, version: Version) -> None:
        """Make `version`, which is complete, the current one; remember the one before.

        The memory is written into a version that does not run yet, so that whenever this process
        is killed there is one current version, and the one before it is right.
        """
        before = self.current()
        if before is not None and before.name != version.name:
            _write(version.folder / "previous", before.name)
        link = self.versions / f"current{PARTIAL}"
        link.unlink(missing_ok=True)
        link.symlink_to(f"versions/{version.name}")
        link.rename(self.folder / "current")
        _flush_names(self.folder)

    def rollback(self, progress: BytesProgress = no_progress) -> Version:
        """Make the version before the current one current again; twice changes nothing.

        Raises UsageError where there is none, IntegrityError where it is damaged.
        """
        with self.locked():
            previous = self.previous()
            if previous is None:
                raise UsageError(
                    "there is no earlier version to go back to",
                    where=self.folder,
                    remedy="install the bundle that you want; it takes over when it is complete",
                )
            check_machine(previous.verify(progress=progress), previous.bundle)
            self.switch(previous)
            return previous

    def clear(self) -> None:
        """Delete what killed installs have left, and all versions but two: current and previous."""
        kept = {v.name for v in (self.current(), self.previous()) if v is not None}
        for folder in self.versions.iterdir():
            if folder.name.endswith(PARTIAL):
                _delete(folder)
            elif kept and folder.name not in kept:
                # first under another name: half deleted, it must not pass for a version
                aside = folder.with_name(folder.name + PARTIAL)
                folder.rename(aside)
                _delete(aside)

    def _existing(self, name: str) -> Version | None:
        if not _NAME.fullmatch(name) or not (self.versions / name).is_dir():
            return None
        return self.named(name)


def base_python() -> str:
    """The interpreter without the environment of packages that this process may run in."""
    return sys._base_executable  # type: ignore[attr-defined, no-any-return]  # typeshed has it not


def check_machine(manifest: Manifest, bundle: Path) -> None:
    """The packages fit one Python and one kind of processor; raises DeviceError."""
    here = {
        "wheels_python": "{}.{}".format(*sys.version_info),
        "wheels_machine": platform.machine(),
    }
    for name, found in here.items():
        if manifest.versions.get(name) != found:
            raise DeviceError(
                f"this is {'Python' if name == 'wheels_python' else 'a machine of kind'} {found}",
                where=bundle,
                expected=manifest.versions.get(name, f"a manifest with {name}; {COPY_AGAIN}"),
                remedy="use the Python named here, or a bundle packed for this machine",
            )


def _write(file: Path, text: str) -> None:
    partial = file.with_name(file.name + PARTIAL)
    partial.write_text(text)
    partial.replace(file)


def _flush_names(folder: Path) -> None:
    """Have the disk hold the names in a folder as they are now."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
