"""Wheels of published packages, and the cache that they and the engine's wheel live in.

Knows pip, files and locks; nothing of models, nor of how the engine is built. The cache is
$XDG_CACHE_HOME/starpack, by default ~/.cache/starpack. What lies there under its final name is
whole, and may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packager.errors import BuildError
from packager.files import atomic_folder, cache_folder
from packager.records import Progress, no_progress
from runtimes.serving import REQUIRES as SERVER_REQUIRES

# What every format needs. tokenizers also declares huggingface-hub, but only to download with.
COMMON_PACKAGES = ("numpy", "tokenizers", *SERVER_REQUIRES)

_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\] ")  # ninja: "[17/330] /usr/bin/g++ ..."
_LAST_LINES = 12  # guessed: enough to hold a compiler's error and its context


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
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the same wheel", 0, 1)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Run a tool with its output appended to `log`; show ninja's steps as progress.

    Raises BuildError with the last lines of the output where the tool is missing or fails.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that compilers end with us, below
        )
    except OSError as error:
        raise BuildError(f"{what}: cannot start {command[0]}: {error}") from None
    with process, log.open("a", encoding="utf-8") as stream:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                stream.write(line)
                last.append(line.rstrip())
                if step := _STEP.match(line):
                    progress(what, int(step[1]), int(step[2]))
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise BuildError(
            f"{what} failed with exit code {process.returncode}; its last lines:\n"
            + "\n".join(f"    {line}" for line in last),
            where=log,
            remedy="read the log named here; without a network, run it once where there is one",
        )


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
    progress: Progress = no_progress,
) -> list[Path]:
    """The wheels that run a backend which `requires` these packages, and those `built`, by name.

    They fit this Python's minor version and this kind of machine. Downloaded once per set of
    versions. Raises BuildError.
    """
    cache = cache or cache_folder()
    pins = shipped_pins(requires)
    key = content_key([pins, sys.implementation.cache_tag, platform.machine(), _libc()])
    folder = cache / "packages" / key
    with locked(folder.with_suffix(".lock"), progress):
        if not folder.is_dir():
            progress("downloading wheels", 0, len(pins))
            with atomic_folder(folder) as partial:
                options = ["--no-deps", "--only-binary", ":all:", "--dest", str(partial)]
                run_logged(
                    pip("download", *options, *pins),
                    folder.with_suffix(".log"),
                    what="downloading wheels",
                )
            progress("downloading wheels", len(pins), len(pins))
    return sorted([*built, *folder.glob("*.whl")], key=lambda wheel: wheel.name)


def _libc() -> str:
    """The C library's name and version: pip chooses wheels by it."""
    return " ".join(platform.libc_ver())
