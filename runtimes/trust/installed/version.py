"""One installed version: a bundle and its unpacked packages, and whether it is what it must be.

What a version must be stands outside of it, in DIR/run (root.py). Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import IntegrityError
from runtimes.trust.fields import DAMAGED
from runtimes.trust.files import read_plain
from runtimes.trust.installed.package_list import MAX_LIST_BYTES, PackageList
from runtimes.trust.installed.root import Pinned
from runtimes.trust.manifest import (
    COPY_AGAIN,
    MANIFEST_NAME,
    UNLISTED,
    Manifest,
    manifest_bytes,
    parse_manifest,
)
from runtimes.trust.verify import (
    BytesProgress,
    HashCache,
    check_owner,
    damaged,
    no_progress,
    verify_folder,
)

REPAIR = "install the bundle again, which replaces what is damaged: ./install --to"
BEFORE_INSTALLING = (None, COPY_AGAIN, DAMAGED)
_CONTENTS = re.compile(
    r"bundle|packages|packages\.json|checked-(bundle|packages)\.json(\.partial)?"
)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a version that was found whole consists of; full: as `verify` means it."""

    manifest: Manifest
    manifest_sha256: str
    packages: PackageList
    full: bool


@dataclass(frozen=True, slots=True)
class Version:
    """One installed bundle with its packages. Its folder is complete, or ends in .partial.

    pinned: what DIR/run says that it must be; None for who knows that better, `install`.
    """

    folder: Path
    pinned: Pinned | None = None

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
    def script(self) -> Path:
        """DIR/run, which says what this version must be, if it is the one that runs."""
        return self.folder.parent.parent / "run"

    @property
    def package_list(self) -> Path:
        return self.folder / "packages.json"

    def bundle_cache(self, *, fresh: bool = False) -> HashCache:
        """The hashes of the bundle's files that have not been touched since."""
        return HashCache(self.folder / "checked-bundle.json", fresh=fresh)

    def verify(
        self,
        *,
        full: bool = False,
        progress: BytesProgress = no_progress,
        remedy: str | None = None,
    ) -> Verified:
        """Check every byte of the bundle and of its unpacked packages; raises IntegrityError.

        Without `full`, a file that has not been touched since it was last hashed is not read again.
        With it, the packages are held against what the bundle's wheels unpack to here and now; but
        for the byte code that another release of this Python has made, for which DIR/run vouches.
        remedy: of damage; installing again, or going back, unless it is given.
        """
        try:
            return self._verify(full, progress)
        except IntegrityError as error:
            helps = error.remedy if error.remedy not in BEFORE_INSTALLING else None
            target, script = (shlex.quote(str(p)) for p in (self.script.parent, self.script))
            raise IntegrityError(
                error.what,
                where=error.where,
                expected=error.expected,
                remedy=helps or remedy or f"{REPAIR} {target}; or {script} rollback",
            ) from None

    def _verify(self, full: bool, progress: BytesProgress) -> Verified:
        owners = self._check_folders()
        data = manifest_bytes(self.bundle)
        manifest_sha256 = hashlib.sha256(data).hexdigest()
        if self.pinned is not None:
            _check_pinned(self.bundle / MANIFEST_NAME, manifest_sha256, self.pinned.manifest_sha256)
        manifest = parse_manifest(data, self.bundle)
        packages = self._read_packages()
        cache = self.bundle_cache(fresh=full)
        verify_folder(self.bundle, manifest.files, UNLISTED, progress, cache, owners)
        if full:
            self._check_packages(packages)
        cache = HashCache(self.folder / "checked-packages.json", fresh=full)
        verify_folder(self.packages, packages.files, (), progress, cache, owners)
        return Verified(manifest, manifest_sha256, packages, full)

    def _check_packages(self, packages: PackageList) -> None:
        from runtimes.trust.installed.packages import unpack  # a usual start does without

        expected = PackageList(unpack(wheels_of(self.bundle)))
        vouched = self.pinned is not None and packages.python != expected.python
        if packages.sources != expected.sources or (packages != expected and not vouched):
            raise damaged(
                self.package_list,
                "the list of installed packages is not what the bundle's wheels unpack to with "
                f"this Python, {platform.python_version()}",
            )

    def _check_folders(self) -> frozenset[int]:
        """Check whose the folders above are, and what lies in this one; returns who may own all."""
        installation = self.script.parent
        first = installation if self.pinned is None else self.script
        owners = frozenset({0, first.lstat().st_uid})
        check_owner(installation, installation.stat(), owners)
        below = [self.folder.parent, self.folder]
        for place in below if self.pinned is None else [*below, self.script]:
            info = place.lstat()
            if stat.S_ISLNK(info.st_mode):
                raise damaged(place, "it is a link", "what was installed")
            check_owner(place, info, owners)
        for entry in os.scandir(self.folder):
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # a memory that another start has just replaced
                continue
            is_ours = stat.S_ISDIR if entry.name in ("bundle", "packages") else stat.S_ISREG
            if not (_CONTENTS.fullmatch(entry.name) and is_ours(info.st_mode)):
                what = "the version holds what it was not installed with"
                raise damaged(Path(entry.path), what, "bundle, packages and their lists")
            check_owner(Path(entry.path), info, owners)
        return owners

    def _read_packages(self) -> PackageList:
        """What was unpacked from the bundle's wheels and compiled when it was installed."""
        try:
            data = read_plain(self.package_list, MAX_LIST_BYTES)
            if self.pinned is not None:
                sha256 = hashlib.sha256(data).hexdigest()
                _check_pinned(self.package_list, sha256, self.pinned.packages_sha256)
            return PackageList.read(data)
        except (OSError, ValueError) as error:
            raise damaged(
                self.package_list, f"the list of installed packages cannot be read: {error}"
            ) from None


def wheels_of(bundle: Path) -> list[Path]:
    """The wheels of a bundle, in the order in which they unpack."""
    return sorted((bundle / "wheels").glob("*.whl"))


def _check_pinned(file: Path, sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise damaged(file, f"it has changed: its SHA-256 is {sha256}", expected)
