"""Starts what a bundle does, once the bundle has been checked. Standard library only.

    start.py install HERE ...    from `install`: HERE is the bundle or delta
    start.py run DIR NAME MANIFEST PACKAGES ...
                                 from `run`: the installation, the version that this file is of, and
                                 the SHA-256 of its bundle.json and its packages.json
    start.py try NAME ...        from installing: import these packages, in a process of their own

See runtimes/trust/bootstrap.py for what runs before the check, and why.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGE = "runtimes"


class Checker:
    """Finds the checker's modules among `sources`, path to bytes, and nowhere else.

    A finder and a loader, as importlib.abc has them; which is not imported, since that takes 10 ms.

    Python's own search would take compiled files, libraries and folders that lie beside a module
    and that nobody has checked yet.
    """

    def __init__(self, sources: dict[str, bytes]) -> None:
        self.sources = {
            path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): (path, data)
            for path, data in sources.items()
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        is_package = self.sources[name][0].endswith("/__init__.py")
        loader: Any = self
        return importlib.util.spec_from_loader(name, loader, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> None:
        """Have Python make an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        path, data = self.sources[module.__name__]
        module.__file__ = str(HERE / path)
        exec(compile(data, module.__file__, "exec", dont_inherit=True), module.__dict__)


def checker_sources() -> dict[str, bytes]:
    """As `install` or `run` has just read and checked them; to try packages, as they lie here."""
    given: dict[str, bytes] | None = globals().get("SOURCES")
    if given is not None:
        return given
    files = [*(HERE / PACKAGE).glob("*.py"), *(HERE / PACKAGE / "trust").rglob("*.py")]
    return {file.relative_to(HERE).as_posix(): file.read_bytes() for file in files}


def run(folder: str, name: str, manifest: str, packages: str, *argv: str) -> int:
    """Check this version, then let its own runtimes/ do what `argv` says."""
    from runtimes.errors import StarpackError
    from runtimes.trust.console import Console
    from runtimes.trust.installed.root import Pinned
    from runtimes.trust.installed.versions import Installation, check_machine

    console = Console("--json" in argv, "--quiet" in argv)
    progress = console.meter("checking", "MiB", 1 << 20)
    installation = Installation(Path(folder))
    version = installation.version(Pinned(name, manifest, packages, sys.executable))
    command, flags = argv[:1], argv[1:]
    try:
        if command == ("rollback",) and set(flags) <= {"--json", "--quiet"}:
            back = installation.rollback(progress)
            if console.as_json:
                console.data({"current_version": back.name})
            else:
                console.text(f"current version: {back.name}\n")
            return 0
        # here and not in the command itself, which is loaded from what is only believed until then
        full = "verify" in argv and "--full" in argv
        verified = version.verify(full=full, progress=progress)
        check_machine(verified.manifest, version.bundle)
    except (StarpackError, OSError, KeyboardInterrupt) as error:
        return console.failed(error)
    # the modules that are loaded already are copies of those in the bundle
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == PACKAGE and hasattr(module, "__path__"):
            module.__path__ = [str(version.bundle / name.replace(".", "/"))]
    sys.path.append(str(version.packages))  # after the standard library, which nothing shadows
    from runtimes.cli.main import main

    return main(list(argv), version, verified)


def try_packages(names: list[str]) -> int:
    """Import each; what goes wrong shows as Python shows it."""
    sys.path.append(str(HERE.parent / "packages"))
    for name in names:
        importlib.import_module(name)
    return 0


def do(word: str, rest: list[str]) -> int:
    """One of the three; returns the exit code."""
    if word == "install":
        from runtimes.trust import install

        return install.main(Path(rest[0]), rest[1:])
    if word == "run":
        return run(*rest)
    return try_packages(rest)


def prepare_streams() -> None:
    """Bear a stream that whoever started this has closed, and any text in any locale."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as this runs
        elif isinstance(stream, io.TextIOWrapper):
            # source code is UTF-8, whatever the locale; a file's name may be no text at all
            encoding = "utf-8" if name == "stdout" else None
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def main() -> int:
    """Do what the first argument says, without a network; returns the exit code."""
    prepare_streams()
    word, *rest = sys.argv[1:]
    sys.meta_path.insert(0, Checker(checker_sources()))
    from runtimes.trust import environment, offline

    environment.drop_loading_variables()
    offline.forbid_network(serving=word == "run" and rest[4:5] == ["serve"])
    try:
        code = do(word, rest)
    except Exception:
        if not offline.attempts():
            raise
        code = 1
    for error in offline.attempts()[:1]:  # also where a library has swallowed it
        if code != error.exit_code:  # otherwise it has been shown
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
