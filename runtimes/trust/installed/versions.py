"""An installation: versions side by side, and one script that says which of them runs.

    DIR/run                          starts the current version, and holds what it must be: root.py
    DIR/versions/NAME/bundle         the bundle, as its manifest lists it
                      packages       the bundle's wheels, unpacked and compiled: packages.py
                      packages.json  every file of packages with its SHA-256
                      checked-*.json which files have been hashed, and not been touched since
    DIR/current                      a link to versions/NAME, for people: nothing here follows it

NAME is the start of the SHA-256 of bundle.json. What is half made has a name that ends in .partial.
Nothing else may lie in versions/NAME, and nobody but the owner of DIR/run, or root, may write to
any of it. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runtimes.errors import DeviceError, StarpackError, UsageError
from runtimes.trust.files import FOLDER, PROGRAM_MODE, NewFiles, delete, read_plain, try_lock
from runtimes.trust.installed.root import MAX_SCRIPT_BYTES, NAME, Pinned, Root
from runtimes.trust.installed.version import Version
from runtimes.trust.manifest import COPY_AGAIN, Manifest
from runtimes.trust.verify import BytesProgress, check_above, check_owner, damaged, no_progress

PARTIAL = ".partial"
INSTALL_IT = "install the bundle of the version that you want: its ./install --to DIR"
_NAME = re.compile(NAME)


@dataclass(frozen=True, slots=True)
class Installation:
    """The folder that was given as `./install --to DIR`."""

    folder: Path

    @property
    def versions(self) -> Path:
        return self.folder / "versions"

    @property
    def script(self) -> Path:
        return self.folder / "run"

    def root(self) -> Root | None:
        """What DIR/run says; None where there is none that can be read."""
        return Root.read(self.script)

    def named(self, name: str) -> Version:
        return Version(self.versions / name)

    def version(self, pinned: Pinned) -> Version:
        """The version that DIR/run tells of; whether it is there is for verify() to say."""
        return Version(self.versions / pinned.name, pinned)

    def current(self) -> Version | None:
        """The version that runs, if there is one."""
        root = self.root()
        return self.version(root.current) if root else None

    def previous(self) -> Version | None:
        """The version that ran before the current one, if there is one."""
        root = self.root()
        return self.version(root.previous) if root and root.previous else None

    def complete(self) -> list[Version]:
        """Every complete version, by name."""
        if not self.versions.is_dir():
            return []
        names = sorted(folder.name for folder in self.versions.iterdir())
        return [self.named(name) for name in names if _NAME.fullmatch(name)]

    def foreign(self) -> Path | None:
        """What is in this folder, or the folder itself, that installing has not made."""
        if not os.path.lexists(self.folder):
            return None
        if not self.folder.is_dir():
            return self.folder
        if self.versions.is_symlink() or not self.versions.is_dir():
            ours = {"run", "current"} if self.root() else set()
            return next((place for place in self.folder.iterdir() if place.name not in ours), None)
        return next(
            (
                place
                for place in self.versions.iterdir()
                if not (_NAME.fullmatch(place.name) or place.name.endswith(PARTIAL))
            ),
            None,
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other installs and rollbacks out; the system frees the lock of a killed process.

        Raises UsageError where somebody else owns the folder, and IntegrityError where others may
        write to it or to one above it: what is written there could be changed before it is checked.
        """
        descriptor = os.open(self.versions, FOLDER)
        try:
            for place, info in (
                (self.folder, os.stat(self.folder)),
                (self.versions, os.fstat(descriptor)),
            ):
                if info.st_uid != os.geteuid():
                    raise UsageError(
                        f"user {info.st_uid} owns it, and this is user {os.geteuid()}",
                        where=place,
                        remedy="do it as that user, or name another folder",
                    )
                check_owner(place, info, {info.st_uid})
            check_above(self.folder, frozenset({0, os.geteuid()}))
            if not try_lock(descriptor):
                raise StarpackError(
                    "another install or rollback is at work there",
                    where=self.folder,
                    remedy="wait until it is done",
                )
            yield
        finally:
            os.close(descriptor)

    def switch(self, root: Root, manifest: Manifest) -> None:
        """Have DIR/run say what `root` says, by the script of its current version.

        manifest: of that version, which has been checked. In one step: whenever this process is
        killed, one version runs, and knows the one before. Raises IntegrityError.
        """
        template = self.named(root.current.name).bundle / "run"
        data = read_plain(template, MAX_SCRIPT_BYTES)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in [entry.sha256 for entry in manifest.files if entry.path == "run"]:
            raise damaged(template, f"a file of the bundle has changed: its SHA-256 is {sha256}")
        script = root.script(data.decode())
        _flush_names(self.versions)
        partial = self.versions / f"run{PARTIAL}"
        delete(partial)
        with NewFiles(self.versions) as files, files.create(partial.name, PROGRAM_MODE) as stream:
            stream.write(script)
            stream.flush()
            os.fsync(stream.fileno())
        if self.script.is_dir() and not self.script.is_symlink():
            delete(self.script)  # which is none of ours
        partial.rename(self.script)
        _flush_names(self.folder)
        link = self.versions / f"current{PARTIAL}"
        delete(link)
        with suppress(OSError):  # for people alone; what runs does without
            link.symlink_to(f"versions/{root.current.name}")
            link.rename(self.folder / "current")

    def rollback(self, progress: BytesProgress = no_progress) -> Version:
        """Make the version before the current one current again; twice changes nothing.

        Every byte of it is read. Raises UsageError where there is none, IntegrityError where it is
        damaged, or is not signed with the key that this installation was given.
        """
        with self.locked():
            root = self.root()
            if root is None or root.previous is None:
                raise UsageError(
                    "there is no earlier version to go back to",
                    where=self.folder,
                    remedy="install the bundle that you want; it takes over when it is complete",
                )
            previous = self.version(root.previous)
            verified = previous.verify(full=True, progress=progress, remedy=INSTALL_IT)
            check_machine(verified.manifest, previous.bundle)
            if root.public_key is not None:
                from runtimes.trust.signature import PublicKey, verify_signature

                key = PublicKey.kept(root.public_key)
                verify_signature(previous.bundle, verified.manifest, key)
            back = replace(root, current=root.previous, previous=root.current)
            self.switch(back, verified.manifest)
            return previous

    def clear(self) -> None:
        """Delete what killed installs have left, and all versions but two: current and previous."""
        kept = {v.name for v in (self.current(), self.previous()) if v is not None}
        for folder in self.versions.iterdir():
            if kept and _NAME.fullmatch(folder.name) and folder.name not in kept:
                # first under another name: half deleted, it must not pass for a version
                import tempfile  # a start does without

                aside = Path(tempfile.mkdtemp(prefix="old.", suffix=PARTIAL, dir=self.versions))
                folder.rename(aside / folder.name)
                folder = aside
            if folder.name.endswith(PARTIAL):
                delete(folder)


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


def _flush_names(folder: Path) -> None:
    """Have the disk hold the names in a folder as they are now."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
