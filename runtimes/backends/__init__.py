"""The engines behind one protocol: each format has a folder here with a backend.py.

Knows how a format's backend is found, imported and opened. Standard library only; names no format.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, cast

from runtimes.contract import Backend, BackendOptions, Window
from runtimes.errors import DeviceError, IntegrityError, WindowError

MODULE = "backend"


class BackendModule(Protocol):
    """What a format's module `backend` has.

    REQUIRES: the packages that importing the engine loads, for each accelerator that it has a
    build for. WINDOW: "none" for an engine that cannot mask keys by their distance.
    """

    @property
    def REQUIRES(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def WINDOW(self) -> Literal["exact", "none"]: ...

    def open_backend(self, path: Path, window: Window, options: BackendOptions) -> Backend:
        """Load the model at `path`; what fails leaves nothing open."""

    def engine_files(self) -> dict[str, str]:
        """SHA-256 of each library that computes, by file name."""


MEMBERS = ("REQUIRES", "WINDOW", "open_backend", "engine_files")


def names() -> list[str]:
    """The formats that have a backend: the names of the folders on this package's path."""
    return sorted(
        file.parent.name for part in __path__ for file in Path(part).glob(f"*/{MODULE}.py")
    )


def folders(format: str) -> tuple[Path, ...]:
    """Where the backend of a format lies, and the folders that it shares with others.

    Those are named in SHARES of its __init__.py. Raises IntegrityError for an unknown format.
    """
    _check_known(format)
    shares = getattr(importlib.import_module(f"{__name__}.{format}"), "SHARES", ())
    found = (Path(part) / name for name in (format, *shares) for part in __path__)
    return tuple(folder for folder in found if folder.is_dir())


def load(format: str) -> BackendModule:
    """Import the backend of a format.

    Raises IntegrityError for an unknown format, DeviceError where its engine is not installed.
    """
    _check_known(format)
    try:
        module = importlib.import_module(f"{__name__}.{format}.{MODULE}")
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"the {format} backend needs the Python package {error.name!r}, which is missing",
            remedy="run the bundle's `install`; in a checkout, `make setup`",
        ) from error
    missing = [name for name in MEMBERS if not hasattr(module, name)]
    assert not missing, f"{module.__name__} lacks {missing}"
    return cast(BackendModule, module)


def open_model(format: str, path: Path, window: Window, options: BackendOptions) -> Backend:
    """Open the model at `path` with the backend of its format.

    Raises WindowError for a context beyond the window where the engine has none, and what `load`
    and the backend raise.
    """
    module = load(format)
    longest = longest_context(module, window, options.context_tokens)
    if longest < options.context_tokens:
        raise WindowError(
            f"the {format} backend has no sliding window, and this model has one",
            expected=f"a context of at most {longest} tokens, where full attention is exact",
            remedy=f"use --context {longest}, or another format",
        )
    return module.open_backend(path, window, options)


def longest_context(module: BackendModule, window: Window, wanted_tokens: int) -> int:
    """As much of a wanted context as the backend is exact in."""
    if module.WINDOW == "exact" or window.size_tokens is None:
        return wanted_tokens
    return min(wanted_tokens, window.size_tokens)


def _check_known(format: str) -> None:
    if format not in names():
        raise IntegrityError(
            f"there is no backend for the format {format!r}",
            expected=f"one of {names()}",
            remedy="run the bundle with the runtime that it carries",
        )
