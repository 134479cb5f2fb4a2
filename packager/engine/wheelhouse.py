"""Wheels of published packages, and the cache that they and the engine's wheel live in.

Knows pip, files and locks; nothing of models, nor of how the engine is built. The cache is
$XDG_CACHE_HOME/starpack, by default ~/.cache/starpack. What lies there under its final name is
complete, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from packager.core.atomic import atomic_folder, cache_folder, sha256_file, write_json
from packager.core.errors import BuildError, IntegrityError, UsageError, data_errors_as
from packager.core.records import Progress, no_progress
from packager.core.strict_json import read_object
from packager.engine.build_log import run_logged
from packager.engine.target import Target, this_machine
from runtimes.server import REQUIRES as SERVER_REQUIRES
from runtimes.trust.files import lock, try_lock

# What every format needs. tokenizers also declares huggingface-hub, but only to download with.
COMMON_PACKAGES = ("numpy", "tokenizers", *SERVER_REQUIRES)


def content_key(inputs: object) -> str:
    """SHA-256 in hex of `inputs` as canonical JSON: equal inputs, equal key."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(file: Path, progress: Progress = no_progress) -> Iterator[None]:
    """Hold `file` as a lock; wait for another process that has it.

    The system frees the lock of a process that ends in whatever way; the file stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        if not try_lock(stream.fileno()):
            progress("waiting for another build of the same wheel", 0, 1)
            lock(stream.fileno())
        yield


def pip(*arguments: str) -> list[str]:
    """The command line of this environment's pip."""
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments]


def shipped_pins(requires: Sequence[str]) -> list[str]:
    """`name==version` of the common packages and of a backend's: the versions installed here.

    Those are the ones that the artifact was measured with.
    """
    try:
        names = dict.fromkeys((*COMMON_PACKAGES, *requires))  # some are in both
        return [f"{name}=={version(name)}" for name in names]
    except PackageNotFoundError as error:
        raise BuildError(
            f"the package {error.name} is not installed, so its version cannot be pinned",
            remedy="run `make setup`",
        ) from None


def collect_wheels(
    requires: Sequence[str],
    built: Sequence[Path] = (),
    cache: Path | None = None,
    *,
    target: Target | None = None,
    progress: Progress = no_progress,
) -> list[Path]:
    """The wheels that run a backend which `requires` these packages, and those `built`, by name.

    They fit `target`, by default this Python's minor version and this kind of machine. Downloaded
    once per set of versions: pip checks each against the hash that the index states, and from then
    on against the hash that it had. Raises BuildError; UsageError where what is `built` here does
    not run on the target; IntegrityError where the cache is not what was downloaded.
    """
    cache = cache or cache_folder()
    target = target or this_machine()
    _check_built(built, target)
    pins = shipped_pins(requires)
    key = content_key(
        [pins, sys.implementation.cache_tag, platform.machine(), _libc()]
        if target.is_here
        else [pins, target.python, target.machine, target.glibc, _libc()]
    )
    folder = cache / "packages" / key
    with locked(folder.with_suffix(".lock"), progress):
        if not folder.is_dir():
            progress("downloading wheels", 0, len(pins))
            with atomic_folder(folder) as partial:
                run_logged(
                    pip("download", *_options(target), "--dest", str(partial), *pins),
                    folder.with_suffix(".log"),
                    what="downloading wheels",
                )
            progress("downloading wheels", len(pins), len(pins))
        found = sorted(folder.glob("*.whl"))
        _check_cached(found, folder / "sha256.json")
    return sorted([*built, *found], key=lambda wheel: wheel.name)


def _options(target: Target) -> list[str]:
    """What has pip choose wheels for the target, and nothing but wheels."""
    options = ["--no-deps", "--only-binary", ":all:"]
    if not target.is_here:
        options += ["--implementation", "cp", "--python-version", target.python]
        options += [word for tag in target.platforms for word in ("--platform", tag)]
    return options


def _check_cached(wheels: Sequence[Path], record: Path) -> None:
    """Check the wheels against their hashes, which are recorded the first time."""
    found = {wheel.name: sha256_file(wheel) for wheel in wheels}
    if not record.exists():
        write_json(record, found)
    remedy = "delete that folder and run it again"
    with data_errors_as(IntegrityError, remedy):
        recorded = read_object(record)
    if recorded != found:
        raise IntegrityError(
            "the cached wheels are not those that were downloaded",
            where=record.parent,
            expected=record.name,
            remedy=remedy,
        )


def _check_built(built: Sequence[Path], target: Target) -> None:
    """What is compiled here runs on machines of this kind, with this C library or a newer one."""
    for wheel in built:
        needed = glibc_needed(wheel)
        if target.machine != platform.machine() or (
            target.glibc is not None and target.glibc < needed
        ):
            raise UsageError(
                f"{wheel.name} is compiled here, and does not run on that target",
                expected=f"a {platform.machine()} with glibc 2.{needed} or newer",
                remedy="pack it on a machine like the target, or take a format whose packages are "
                "published for it: onnx or gptq",
            )


@lru_cache(maxsize=64)
def glibc_needed(wheel: Path) -> int:
    """The minor version of glibc 2 that the libraries in a wheel ask for; 0 where they do not.

    By the names of symbol versions in them, such as GLIBC_2.34.
    """
    newest = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".so" in PurePosixPath(name).suffixes:
                found = re.findall(rb"GLIBC_2\.(\d+)", archive.read(name))
                newest = max([newest, *map(int, found)])
    return newest


def newest_glibc(wheels: Sequence[Path]) -> str:
    """The version of glibc that all these wheels run with."""
    return f"2.{max(map(glibc_needed, wheels), default=0)}"


def _libc() -> str:
    """The C library's name and version: pip chooses wheels by it."""
    return " ".join(platform.libc_ver())
