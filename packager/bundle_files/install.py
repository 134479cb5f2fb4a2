"""Installs the bundle that this file lies in; started by ./install. Standard library only.

    DIR/bundle   a copy of the bundle, every byte checked against its manifest
    DIR/venv     Python packages from the bundle's wheels, and from nowhere else
    DIR/run      starts it

DIR appears when it is whole and its packages have been imported once. An earlier installation
there is replaced when the new one is whole; anything else there is refused.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The bundle is not put on sys.path: no file beside runtimes/ can pass for another module.
_spec = importlib.util.spec_from_file_location("runtimes", HERE / "runtimes" / "__init__.py")
sys.modules["runtimes"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["runtimes"])

from runtimes.bundle import verify_files  # noqa: E402
from runtimes.contract import MANIFEST_NAME, Manifest, read_manifest  # noqa: E402
from runtimes.errors import Cancelled, DeviceError, StarpackError, UsageError  # noqa: E402


def main() -> int:
    """Install and say where; returns the exit code."""
    parser = argparse.ArgumentParser(prog="install", description="Install this bundle.")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to")
    target = Path(os.path.abspath(parser.parse_args().to))
    try:
        install(HERE, target)
    except StarpackError as error:
        failure = error
    except OSError as error:
        failure = StarpackError(
            f"cannot install: {reason(error)}",
            where=target,
            remedy="free space on that disk, or name a folder that you may write to; nothing was "
            "installed",
        )
    except KeyboardInterrupt:
        failure = Cancelled("interrupted", where=target, remedy="run it again")
    else:
        print(f"installed to {target}\ntry it: {target / 'run'} --help")
        return 0
    say(str(failure))
    return failure.exit_code


def say(text: str) -> None:
    """One line of progress, or the reason for a failure."""
    print(f"install: {text}", file=sys.stderr, flush=True)


def reason(error: OSError) -> str:
    """What the system says; copytree gathers (from, to, reason) of every file that it could not."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return str(error.args[0][0][2])
    return str(error)


def install(bundle: Path, target: Path) -> None:
    """Copy, check, unpack, try, and only then put everything at `target`.

    Raises IntegrityError, DeviceError where this machine cannot run it, UsageError.
    """
    manifest = read_manifest(bundle)
    check_machine(manifest)
    check_target(bundle, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = folder_beside(target)
    try:
        partial.chmod(0o755)  # mkdtemp keeps it to this user
        say(f"copying and checking {sum(entry.bytes for entry in manifest.files) / 1e6:.0f} MB")
        shutil.copytree(bundle, partial / "bundle", symlinks=True)
        verify_files(partial / "bundle", manifest)  # the copy, since that is what will run
        say("unpacking the packages")
        python = make_environment(partial / "venv", partial / "bundle" / "wheels")
        say("trying them")
        check_imports(python, partial / "bundle" / "wheels")
        shutil.copy2(partial / "bundle" / "run", partial / "run")
        replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_machine(manifest: Manifest) -> None:
    """The packages fit one Python and one kind of processor."""
    here = {
        "wheels_python": "{}.{}".format(*sys.version_info),
        "wheels_machine": platform.machine(),
    }
    for name, found in here.items():
        if manifest.versions.get(name) != found:
            raise DeviceError(
                f"this machine has {found}",
                where=HERE / MANIFEST_NAME,
                expected=manifest.versions.get(name, f"a manifest with {name}"),
                remedy="use the Python named here, or a bundle packed for this machine",
            )


def check_target(bundle: Path, target: Path) -> None:
    """Replace only what an earlier ./install has made."""
    if target.is_relative_to(bundle):
        raise UsageError(
            "cannot install into the bundle itself", where=target, remedy="name another folder"
        )
    earlier = (target / "bundle" / MANIFEST_NAME).is_file() and (target / "venv").is_dir()
    empty = target.is_dir() and not any(target.iterdir())
    if os.path.lexists(target) and not earlier and not empty:
        raise UsageError(
            "there is something else at that place",
            where=target,
            expected="nothing, an empty folder or an earlier installation",
            remedy="name another folder, or remove this one",
        )


def make_environment(folder: Path, wheels: Path) -> Path:
    """A virtual environment with the wheels unpacked into it; returns its Python.

    Without pip, which many systems lack: the wheels are plain archives of site-packages, with no
    scripts or data outside it, as packing has checked.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    for script in (folder / "bin").glob("*ctivate*"):
        script.unlink()  # they hold the path of the folder before it was renamed
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("platlib", "venv", paths))
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    # the runtime writes no bytecode, so without this every start would compile
    compileall.compile_dir(packages, quiet=2)
    return folder / "bin" / "python"


def check_imports(python: Path, wheels: Path) -> None:
    """Import each package once: a shared library that this machine lacks shows here."""
    names = set()
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            parts = [Path(name).parts for name in archive.namelist()]
        names |= {path[0] for path in parts if path[1:] == ("__init__.py",)}
    command = [str(python), "-I", "-c", f"import {', '.join(sorted(names))}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeviceError(
            "a package of the bundle cannot be loaded here: "
            + (done.stderr.strip().splitlines() or ["no message"])[-1],
            remedy="install the system library that is named (libgomp.so.1 is in libgomp1, "
            "libstdc++.so.6 in libstdc++6), or, where glibc is too old, use a newer system",
        )


def folder_beside(target: Path) -> Path:
    """A new empty folder for this run alone, on the same disk as `target`."""
    return Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))


def replace(partial: Path, target: Path) -> None:
    """Put `partial` at `target`; what was there is deleted then, and put back on failure."""
    if not os.path.lexists(target):
        partial.rename(target)
        return
    aside = folder_beside(target)
    try:
        target.rename(aside / "old")
        partial.rename(target)
    finally:
        if not os.path.lexists(target):
            (aside / "old").rename(target)
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
