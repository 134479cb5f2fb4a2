"""`./install --to DIR`: from a bundle, or from a delta and the version before it, to a version.

A new version is copied, checked, unpacked and tried beside the others in DIR, under a name that
nothing starts. Only then does DIR/run start it. See runtimes/trust/installed/versions.py for what
DIR holds, and runtimes/trust/bootstrap.py for what runs before the hashes have been checked.

Standard library only, and nothing outside of DIR is written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from runtimes.errors import Cancelled, IntegrityError, StarpackError, UsageError
from runtimes.trust.console import Console
from runtimes.trust.delta import DELTA_NAME
from runtimes.trust.files import delete
from runtimes.trust.installed.package_list import PackageList
from runtimes.trust.installed.root import NAME_DIGITS, Pinned, Root
from runtimes.trust.installed.stage import MIB, Given, say, stage
from runtimes.trust.installed.version import Version
from runtimes.trust.installed.versions import PARTIAL, Installation, base_python, check_machine
from runtimes.trust.manifest import signature_bytes
from runtimes.trust.signature import PublicKey, verify_signature
from runtimes.trust.verify import verify_files


def main(here: Path, argv: list[str]) -> int:
    """Install the bundle or delta in the folder `here`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="install", description="Install this bundle, or take over from an older one."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", metavar="DIR", help="where to")
    what.add_argument("--check", action="store_true", help="check every byte, install nothing")
    parser.add_argument(
        "--public-key", type=Path, metavar="FILE",
        help="install only what this key has signed, now and in every later upgrade of DIR",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    console = Console()
    os.umask(0o022)  # modes are set here, not inherited
    try:
        if arguments.check:
            check(here, arguments.public_key, console)
        else:
            to = _target(arguments.to)
            install(Given.read(here), to, arguments.public_key, console)
    except StarpackError as error:
        failure = error
    except OSError as error:
        failure = StarpackError(
            f"cannot install: {error}",
            where=arguments.to,
            remedy="look at the space on that disk and at who may write there; what was installed "
            "there before still runs",
        )
    except KeyboardInterrupt:
        failure = Cancelled("interrupted", where=arguments.to, remedy="run it again")
    else:
        return 0
    say(str(failure))
    return failure.exit_code


def check(here: Path, public_key: Path | None, console: Console) -> None:
    """Check every byte of a bundle that is not installed yet; raises IntegrityError."""
    given = Given.read(here)
    if (here / DELTA_NAME).is_file():
        raise UsageError("a delta is checked when it is installed", where=here)
    verify_files(here, given.manifest, console.meter("checking", "MiB", MIB))
    signed_by = _check_signature(given, None, public_key)
    count = len(given.manifest.files)
    print(f"OK: {count} files verified; SHA-256 of bundle.json: {given.sha256}")
    if signed_by is not None:
        print(f"signed with the key of {public_key}")


def install(given: Given, target: Path, public_key: Path | None, console: Console) -> None:
    """Make the bundle or delta `given` the current version at `target`.

    Raises IntegrityError, DeviceError where this machine cannot run it, OfflineError where a
    package uses the network as it is loaded, UsageError, OSError. After any of these, and after a
    kill, what was current at `target` still is.
    """
    check_machine(given.manifest, given.folder)
    _check_python()
    installation = Installation(target)
    _check_target(given.folder, installation)
    made = [installation.versions, *([] if target.is_dir() else [target])]
    installation.versions.mkdir(parents=True, exist_ok=True)
    with installation.locked():
        try:
            pinned = _install(given, installation, public_key, console)
        except BaseException:
            for folder in made:  # where nothing is installed in them
                with suppress(OSError):
                    folder.rmdir()
            raise
    print(f"installed version {pinned.name} to {target}")
    print(f"  SHA-256 of its bundle.json: {given.sha256}")
    run_sha256 = hashlib.sha256(installation.script.read_bytes()).hexdigest()
    print(
        f"  SHA-256 of {installation.script}: {run_sha256}; all else is checked against that file"
    )
    print(f"try it: {installation.script} --help")


def _install(
    given: Given, installation: Installation, public_key: Path | None, console: Console
) -> Pinned:
    before = installation.root()
    if before is None and installation.complete():
        say(
            f"{installation.script} says nothing that can be read: what it knew of an earlier "
            "version, or of a key, is lost"
        )
    key = _check_signature(given, before, public_key)
    installation.clear()
    pinned = _existing(given, installation, console) or _add(given, installation, console)
    installation.switch(Root(pinned, _earlier(pinned, before), key), given.manifest)
    with suppress(OSError):  # it is installed; what cannot be deleted now is deleted another time
        installation.clear()
    return pinned


def _target(text: str) -> Path:
    """The folder that is meant, without links on the way; raises UsageError."""
    if not text or text.endswith("\n"):
        raise UsageError(
            f"a folder of the name {text!r}", remedy="name another one: ./install --to DIR"
        )
    return Path(os.path.realpath(text))


def _check_python() -> None:
    python = os.path.realpath(base_python())
    try:
        Pinned.parse(Pinned("0" * NAME_DIGITS, "0" * 64, "0" * 64, python).text)
        python.encode()
    except ValueError:
        raise UsageError(
            "the path of this Python is no line of text",
            where=ascii(python),
            remedy="name another one: PYTHON=/path/to/python ./install --to DIR",
        ) from None


def _check_target(here: Path, installation: Installation) -> None:
    target = installation.folder
    if target.is_relative_to(here):
        raise UsageError(
            "cannot install into the bundle itself", where=target, remedy="name another folder"
        )
    foreign = installation.foreign()
    if foreign is not None:
        raise UsageError(
            "there is something else at that place",
            where=foreign,
            expected="nothing, an empty folder or an earlier installation",
            remedy="name another folder, or move away what is there",
        )


def _check_signature(given: Given, before: Root | None, named: Path | None) -> str | None:
    """The key that what is given is signed with: the one named, or that of earlier installs."""
    if named is not None:
        key = PublicKey.read(named)
        kept, name = key.body, key.name
    elif before is not None and before.public_key is not None:
        kept, name = before.public_key, "this installation"
    else:
        return None
    try:
        verify_signature(
            given.folder,
            given.manifest,
            PublicKey.kept(kept, name),
            data=given.data,
            signature=given.signature,
        )
    except IntegrityError as error:
        remedy = f"{error.remedy}; of a new key, name its file with --public-key"
        raise IntegrityError(
            error.what, where=error.where, expected=error.expected, remedy=remedy
        ) from None
    return kept


def _earlier(pinned: Pinned, before: Root | None) -> Pinned | None:
    """The version to go back to: the last one that was made from another manifest."""
    if before is None:
        return None
    for version in (before.current, before.previous):
        if version is not None and version.manifest_sha256 != pinned.manifest_sha256:
            return version
    return None


def _existing(given: Given, installation: Installation, console: Console) -> Pinned | None:
    """A version that was made from this very manifest, if it is valid."""
    for version in installation.complete():
        if version.name.split("-")[0] != given.sha256[:NAME_DIGITS]:
            continue
        say(f"checking version {version.name}, which is installed already")
        with suppress(StarpackError, OSError):
            progress = console.meter("checking", "MiB", MIB)
            verified = version.verify(full=True, progress=progress)
            same_signature = signature_bytes(version.bundle) == given.signature
            if verified.manifest_sha256 == given.sha256 and same_signature:
                return _pinned(version.name, given, verified.packages)
        say("it is damaged, or its signature differs; installing it again")
    return None


def _add(given: Given, installation: Installation, console: Console) -> Pinned:
    """Stage a new version and give it its name; it is not current yet."""
    folder = tempfile.mkdtemp(prefix="new.", suffix=PARTIAL, dir=installation.versions)
    staged = Version(Path(folder))
    try:
        packages = stage(given, installation, staged, console)
        name = _free_name(given.sha256[:NAME_DIGITS], installation)
        staged.folder.rename(installation.versions / name)
        return _pinned(name, given, packages)
    finally:
        delete(staged.folder)


def _pinned(name: str, given: Given, packages: PackageList) -> Pinned:
    packages_sha256 = hashlib.sha256(packages.data).hexdigest()
    return Pinned(name, given.sha256, packages_sha256, os.path.realpath(base_python()))


def _free_name(name: str, installation: Installation) -> str:
    """`name`, or, beside a damaged version of that name, `name`-2 and so on."""
    taken = {version.name for version in installation.complete()}
    count = 1
    while (free := name if count == 1 else f"{name}-{count}") in taken:
        count += 1
    return free
