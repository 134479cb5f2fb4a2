"""`./install --to DIR`: from a bundle, or from a delta and the version before it, to a version.

A new version is copied, checked, unpacked and tried beside the others in DIR, under a name that
nothing starts. Only then does DIR/current point to it. See runtimes/trust/versions.py for what DIR
holds, and runtimes/trust/bootstrap.py for what runs before the hashes have been checked.

Standard library only, and nothing outside of DIR is written.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from runtimes.errors import (
    Cancelled,
    DeviceError,
    IntegrityError,
    OfflineError,
    StarpackError,
    UsageError,
)
from runtimes.trust.bootstrap import STARTER, checker_files
from runtimes.trust.console import Console
from runtimes.trust.delta import DELTA_NAME, source_of_every_file
from runtimes.trust.entries import FileEntry
from runtimes.trust.manifest import (
    UNLISTED,
    Manifest,
    manifest_bytes,
    read_manifest,
    signature_bytes,
    unlisted_files,
)
from runtimes.trust.verify import damaged, verify_files, verify_names
from runtimes.trust.versions import (
    NAME_DIGITS,
    PARTIAL,
    Installation,
    Version,
    base_python,
    check_machine,
)

EXECUTABLE = frozenset({"install", "run"})
MIB = 1024 * 1024

Sources = Callable[[FileEntry], Path]
"""Where to copy a file of the bundle from."""


def main(here: Path, argv: list[str]) -> int:
    """Install the bundle or delta in the folder `here`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="install", description="Install this bundle, or take over from an older one."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="DIR", help="where to")
    what.add_argument("--check", action="store_true", help="check every byte, install nothing")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        if arguments.check:
            check(here, console)
        else:
            install(here, Path(os.path.abspath(arguments.to)), console)
    except StarpackError as error:
        failure = error
    except OSError as error:
        failure = StarpackError(
            f"cannot install: {error}",
            where=arguments.to,
            remedy="free space on that disk, or name a folder that you may write to; what was "
            "installed there before still runs",
        )
    except KeyboardInterrupt:
        failure = Cancelled("interrupted", where=arguments.to, remedy="run it again")
    else:
        return 0
    say(str(failure))
    return failure.exit_code


def say(text: str) -> None:
    """One line of progress, or the reason for a failure."""
    print(f"install: {text}", file=sys.stderr, flush=True)


def check(here: Path, console: Console) -> None:
    """Check every byte of a bundle that is not installed yet; raises IntegrityError."""
    manifest = read_manifest(here)
    if (here / DELTA_NAME).is_file():
        raise UsageError("a delta is checked when it is installed", where=here)
    verify_files(here, manifest, console.meter("checking", "MiB", MIB))
    print(f"OK: {len(manifest.files)} files verified; SHA-256 of bundle.json: {_sha256_of(here)}")


def install(here: Path, target: Path, console: Console) -> None:
    """Make the bundle or delta in `here` the current version at `target`.

    Raises IntegrityError, DeviceError where this machine cannot run it, OfflineError where a
    package uses the network as it is loaded, UsageError, OSError. After any of these, and after a
    kill, what was current at `target` still is.
    """
    manifest = read_manifest(here)
    check_machine(manifest, here)
    installation = Installation(target)
    _check_target(here, installation)
    made = [installation.versions, *([] if target.is_dir() else [target])]
    try:
        installation.versions.mkdir(parents=True, exist_ok=True)
        with installation.locked():
            installation.clear()
            version = _existing(here, installation, console) or _add(
                here, manifest, installation, console
            )
            _put_starter(version, installation)
            installation.switch(version)
            installation.clear()
    except BaseException:
        for folder in made:  # where nothing is installed in them
            with suppress(OSError):
                folder.rmdir()
        raise
    print(f"installed version {version.name} to {target}\ntry it: {target / 'run'} --help")


def _check_target(here: Path, installation: Installation) -> None:
    target = installation.folder
    if target.is_relative_to(here):
        raise UsageError(
            "cannot install into the bundle itself", where=target, remedy="name another folder"
        )
    if not installation.is_ours():
        raise UsageError(
            "there is something else at that place",
            where=target,
            expected="nothing, an empty folder or an earlier installation",
            remedy="name another folder, or remove this one",
        )


def _existing(here: Path, installation: Installation, console: Console) -> Version | None:
    """A version that was made from this very manifest, if it is valid."""
    name = _sha256_of(here)[:NAME_DIGITS]
    for version in installation.complete():
        if version.name.split("-")[0] != name:
            continue
        say(f"checking version {version.name}, which is installed already")
        with suppress(StarpackError, OSError):
            version.verify(full=True, progress=console.meter("checking", "MiB", MIB))
            if manifest_bytes(version.bundle) == manifest_bytes(here) and (
                signature_bytes(version.bundle) == signature_bytes(here)
            ):
                return version
        say("it is damaged, or its signature differs; installing it again")
    return None


def _add(here: Path, manifest: Manifest, installation: Installation, console: Console) -> Version:
    """Stage a new version and give it its name; it is not current yet."""
    folder = tempfile.mkdtemp(prefix="new.", suffix=PARTIAL, dir=installation.versions)
    staged = Version(Path(folder))
    try:
        staged.folder.chmod(0o755)  # mkdtemp keeps it to this user
        _stage(here, manifest, installation, staged, console)
        name = _free_name(_sha256_of(here)[:NAME_DIGITS], installation)
        return Version(staged.folder.rename(installation.versions / name))
    finally:
        shutil.rmtree(staged.folder, ignore_errors=True)


def _stage(
    here: Path,
    manifest: Manifest,
    installation: Installation,
    staged: Version,
    console: Console,
) -> None:
    size = sum(entry.bytes for entry in manifest.files)
    say(f"copying and checking {size / 1e6:.0f} MB")
    source = _sources(here, manifest, installation)
    _copy(here, manifest, source, staged.bundle)
    # the copy is checked, since that is what will run; what it was made from is named
    origins = {str(staged.bundle / entry.path): source(entry) for entry in manifest.files}
    try:
        verify_files(staged.bundle, manifest, console.meter("checking", "MiB", MIB))
    except IntegrityError as error:
        where = Path(error.where or staged.bundle)
        raise damaged(origins.get(str(where), where), error.what, error.expected) from None
    if manifest_bytes(staged.bundle) != manifest_bytes(here):
        raise damaged(here, "the bundle was changed while it was copied")
    say("unpacking the packages")
    wheels = sorted((staged.bundle / "wheels").glob("*.whl"))
    entries = _unpack(wheels, staged.packages)
    (staged.folder / "packages.json").write_text(json.dumps([asdict(e) for e in entries]))
    staged.python.symlink_to(os.path.realpath(base_python()))
    for path in checker_files(entry.path for entry in manifest.files):
        copy = staged.checker / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(staged.bundle / path, copy)
    say("trying them")
    _try_packages(staged, wheels, manifest.versions.get("wheels_glibc", "?"))
    staged.verify()  # from here on only what is touched is hashed again
    os.sync()  # a version that is named must survive a power cut


def _sources(here: Path, manifest: Manifest, installation: Installation) -> Sources:
    if (here / DELTA_NAME).is_file():
        return source_of_every_file(here, [v.bundle for v in installation.complete()])
    verify_names(here, manifest.files, UNLISTED)
    return lambda entry: here / entry.path


def _copy(here: Path, manifest: Manifest, source: Sources, bundle: Path) -> None:
    stored: dict[str, Path] = {}  # variants may have files in common
    for entry in manifest.files:
        copy = bundle / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        key = entry.sha256 if entry.path.startswith("model/") else entry.path
        copy_file(source(entry), copy, stored.setdefault(key, copy))
        copy.chmod(0o755 if entry.path in EXECUTABLE else 0o644)
    for name in unlisted_files(here):
        shutil.copyfile(here / name, bundle / name, follow_symlinks=False)


def copy_file(source: Path, target: Path, twin: Path) -> None:
    """Copy a file, or let `target` be another name of its copy `twin`, where the disk has that."""
    if twin != target:
        with suppress(OSError):
            os.link(twin, target)
            return
    shutil.copyfile(source, target, follow_symlinks=False)


def _unpack(wheels: list[Path], packages: Path) -> list[FileEntry]:
    """Unpack the wheels into one folder and compile it; returns every file that is then there.

    Without pip, which many systems lack: the wheels are plain archives of site-packages, with no
    scripts or data outside it, as packing has checked.
    """
    packages.mkdir()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    # The runtime writes no bytecode, so without this every start would compile. By hash, unchecked:
    # the same bytes at each install, and the files that they belong to are checked at each start.
    compileall.compile_dir(
        packages, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    entries = []
    for file in sorted(path for path in packages.rglob("*") if path.is_file()):
        with open(file, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        entries.append(
            FileEntry(file.relative_to(packages).as_posix(), file.stat().st_size, sha256)
        )
    return entries


def _try_packages(staged: Version, wheels: list[Path], glibc: str) -> None:
    """Import each package once: a shared library that this machine lacks shows here."""
    names = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            parts = [Path(name).parts for name in archive.namelist()]
        names |= {path[0] for path in parts if path[1:] == ("__init__.py",)}
    command = [str(staged.python), "-I", "-S", "-B", str(staged.checker / STARTER), "try"]
    done = subprocess.run([*command, *sorted(names)], capture_output=True, text=True, check=False)
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


def _free_name(name: str, installation: Installation) -> str:
    """`name`, or, beside a damaged version of that name, `name`-2 and so on."""
    taken = {version.name for version in installation.complete()}
    count = 1
    while (free := name if count == 1 else f"{name}-{count}") in taken:
        count += 1
    return free


def _put_starter(version: Version, installation: Installation) -> None:
    """DIR/run, the same for all versions: it only finds the current one."""
    data = (version.bundle / "run").read_bytes()
    run = installation.folder / "run"
    if run.is_file() and not run.is_symlink() and run.read_bytes() == data:
        return
    partial = installation.versions / f"run{PARTIAL}"
    partial.write_bytes(data)
    partial.chmod(0o755)
    partial.replace(run)


def _sha256_of(bundle: Path) -> str:
    return hashlib.sha256(manifest_bytes(bundle)).hexdigest()
