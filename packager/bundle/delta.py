"""Write what of a new bundle an older one lacks; see runtimes/trust/delta.py for what it holds."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from packager.core.atomic import atomic_folder, sha256_file, write_json
from packager.core.errors import IntegrityError, UsageError
from packager.core.records import Progress, no_progress
from runtimes.trust.bootstrap import STARTER, checker_files
from runtimes.trust.delta import BLOBS, DELTA_NAME, DELTA_VERSION
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import NewFiles
from runtimes.trust.installed.stage import mode_of
from runtimes.trust.manifest import (
    MANIFEST_NAME,
    UNLISTED,
    Manifest,
    manifest_bytes,
    read_manifest,
    unlisted_files,
)
from runtimes.trust.verify import damaged, verify_names

INSTALLER = "install"
NEEDED = (INSTALLER, STARTER, "runtimes/trust/install.py")  # or it cannot be installed


@dataclass(frozen=True, slots=True)
class Delta:
    """What a delta saves: sizes are those of files, without the delta's own record."""

    new_bytes: int
    delta_bytes: int
    changed: tuple[str, ...]
    removed: tuple[str, ...]


def write_delta(old: Path, new: Path, out: Path, progress: Progress = no_progress) -> Delta:
    """Write to the folder `out` what turns an installed `old` into `new`.

    old: the old bundle's folder; its bundle.json with the hash and the signature beside it are
    enough. Progress counts bytes. An earlier delta at `out` is replaced. Raises IntegrityError
    where a bundle is damaged, UsageError where something else is at `out`, or both bundles are
    the same.
    """
    if out.exists() and not (out / DELTA_NAME).is_file():
        raise UsageError(
            "there is something at the delta's place that is not a delta",
            where=out,
            remedy="name another folder, or remove this one",
        )
    before, after = read_manifest(old), read_manifest(new)
    verify_names(new, after.files, UNLISTED)
    if before == after:
        raise UsageError("both bundles are the same", where=new, remedy="there is nothing to do")
    had = {entry.sha256 for entry in before.files}
    blobs = {entry.sha256: entry for entry in after.files if entry.sha256 not in had}
    with atomic_folder(out) as folder:
        with NewFiles(folder) as made:
            files = list(_copy(new, folder, made, after, blobs, progress))
            for name in unlisted_files(new):
                made.copy(new / name, name)
        record = {
            "schema_version": DELTA_VERSION,
            "old_sha256": _manifest_sha256(old),
            "new_sha256": _manifest_sha256(new),
            "files": [asdict(entry) for entry in sorted(files, key=lambda entry: entry.path)],
        }
        write_json(folder / DELTA_NAME, record)
    paths = {entry.path for entry in after.files}
    return Delta(
        new_bytes=sum(entry.bytes for entry in after.files),
        delta_bytes=sum(entry.bytes for entry in files),
        changed=tuple(sorted(entry.path for entry in after.files if entry.sha256 in blobs)),
        removed=tuple(sorted(entry.path for entry in before.files if entry.path not in paths)),
    )


def _copy(
    new: Path,
    folder: Path,
    made: NewFiles,
    manifest: Manifest,
    blobs: dict[str, FileEntry],
    progress: Progress,
) -> Iterator[FileEntry]:
    """Copy the new contents and the installer; gives what is then in `folder`, checked."""
    by_path = {entry.path: entry for entry in manifest.files}
    missing = [path for path in NEEDED if path not in by_path]
    if missing:
        raise IntegrityError(
            f"the new bundle does not have {missing[0]}",
            where=new / MANIFEST_NAME,
            remedy="pack it again with this starpack",
        )
    wanted = [(f"{BLOBS}/{sha256}", entry) for sha256, entry in blobs.items()]
    wanted += [(path, by_path[path]) for path in (INSTALLER, *checker_files(by_path))]
    total, done = sum(entry.bytes for _, entry in wanted), 0
    for path, entry in wanted:
        try:
            made.copy(new / entry.path, path, mode_of(path))
        except (FileNotFoundError, ValueError):
            raise damaged(new / entry.path, "a file of the bundle is gone") from None
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link now, which is not followed
                raise
            raise damaged(new / entry.path, "a file of the bundle is a link") from None
        if sha256_file(folder / path) != entry.sha256:
            raise damaged(new / entry.path, "a file of the bundle has changed", entry.sha256)
        done += entry.bytes
        progress("delta", done, total)
        yield FileEntry(path, entry.bytes, entry.sha256)


def _manifest_sha256(bundle: Path) -> str:
    return hashlib.sha256(manifest_bytes(bundle)).hexdigest()
