"""From a bundle's folder to an open Runtime: check every byte, then load.

Until the hashes have been checked this needs the standard library alone and loads nothing from
the bundle: the tokenizer library, numpy and the engine are imported after that.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from types import ModuleType
from typing import TYPE_CHECKING

from runtimes.contract import (
    MANIFEST_NAME,
    Backend,
    BackendOptions,
    FileEntry,
    Manifest,
    read_manifest,
)
from runtimes.errors import Cancelled, ContextError, DeviceError, IntegrityError, UsageError
from runtimes.host import default_threads

if TYPE_CHECKING:
    from runtimes.runtime import Runtime

TOKENIZER_NAME = "tokenizer.json"  # at the top of the bundle
MAX_CONTEXT_TOKENS = 131_072  # specified: the longest context that starpack offers
HASH_BLOCK_BYTES = 1 << 20  # guessed: large enough to let other threads run while hashing
HASH_THREADS = 8  # guessed: more than one disk can feed

BytesProgress = Callable[[int, int], None]
"""progress(done_bytes, total_bytes), from several threads but never two at once."""


def no_progress(done_bytes: int, total_bytes: int) -> None:
    """The progress of a caller that shows none."""


def open_bundle(
    bundle: Path,
    *,
    context_tokens: int | None = None,
    threads: int | None = None,
    provider: str = "cpu",
    gpu_layers: int = 0,
    chunk_tokens: int = 512,
    flash_attention: bool = True,
    verify: bool = True,
    progress: BytesProgress = no_progress,
) -> Runtime:
    """Check the bundle in folder `bundle` and load its model.

    What is None comes from the manifest (context_tokens) or this machine (threads); for the
    others see BackendOptions. `verify=False` skips the hashes, for a caller that has just checked
    them. Raises IntegrityError for a bundle that is not whole, ContextError, UsageError, and
    DeviceError where the engine or its memory is missing.
    """
    manifest = read_manifest(bundle)
    options = BackendOptions(
        context_tokens=manifest.context_tokens if context_tokens is None else context_tokens,
        threads=default_threads() if threads is None else threads,
        provider=provider,
        gpu_layers=gpu_layers,
        chunk_tokens=chunk_tokens,
        flash_attention=flash_attention,
    )
    _check_options(options)
    _check_parts(bundle, manifest)
    if verify:
        verify_files(bundle, manifest, progress)
    return _load(bundle, manifest, options)


def verify_files(bundle: Path, manifest: Manifest, progress: BytesProgress = no_progress) -> None:
    """Check that the bundle holds the manifest's files, every byte of them, and nothing else.

    Only the manifest itself is exempt. Raises IntegrityError naming the first file that is
    unknown, missing, changed, or not a plain file. What is read later may have changed since: a
    folder that others can write to cannot be trusted however often it is checked.
    """
    found = _plain_files(bundle)
    expected = {entry.path: entry for entry in manifest.files}
    for path in sorted(found.keys() | expected.keys()):
        if path not in expected:
            raise _unknown(bundle / path)
        if path not in found:
            raise _damaged(bundle / path, "a file of the bundle is missing")
        if found[path] != expected[path].bytes:
            raise _damaged(
                bundle / path,
                f"a file of the bundle has {found[path]} bytes",
                f"{expected[path].bytes} bytes",
            )
    _check_hashes(bundle, sorted(manifest.files, key=lambda entry: entry.path), progress)


def known_formats() -> list[str]:
    """Formats that this package has a backend for, by the names of its files."""
    folder = Path(__file__).parent / "backends"
    return sorted(file.stem for file in folder.glob("*.py") if re.fullmatch("[a-z]+", file.stem))


def backend_module(format: str) -> ModuleType:
    """Import the backend of `format`.

    Raises IntegrityError for a format this package does not know, DeviceError where its engine
    is not installed.
    """
    if format not in known_formats():
        raise IntegrityError(
            f"the bundle's format is {format!r}",
            where=MANIFEST_NAME,
            expected=f"one of {known_formats()}",
            remedy="run the bundle with the runtime that it carries",
        )
    try:
        return importlib.import_module(f"runtimes.backends.{format}")
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"the {format} backend needs the Python package {error.name!r}, which is missing",
            remedy="run the bundle's `install`; in a checkout, `make setup`",
        ) from error


def _load(bundle: Path, manifest: Manifest, options: BackendOptions) -> Runtime:
    from runtimes.runtime import Runtime
    from runtimes.text import Tokenizer

    tokenizer = Tokenizer(bundle / TOKENIZER_NAME, manifest.special_ids)
    module = backend_module(manifest.format)
    backend: Backend = module.open_backend(bundle / manifest.artifact, manifest.window, options)
    try:
        if backend.vocab_size != manifest.vocab_size:
            raise IntegrityError(
                f"the model has a vocabulary of {backend.vocab_size}",
                where=bundle / manifest.artifact,
                expected=f"{manifest.vocab_size}, as the manifest says",
                remedy="pack the bundle again",
            )
        return Runtime(backend, tokenizer, manifest.special_ids)
    except BaseException:
        backend.close()
        raise


def _check_options(options: BackendOptions) -> None:
    if not 0 < options.context_tokens <= MAX_CONTEXT_TOKENS:
        raise ContextError(
            f"a context of {options.context_tokens} tokens",
            expected=f"1 to {MAX_CONTEXT_TOKENS} tokens",
        )
    for name, least in (("threads", 1), ("gpu_layers", 0), ("chunk_tokens", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"{name} is {getattr(options, name)}", expected=f"{least} or more")


def _check_parts(bundle: Path, manifest: Manifest) -> None:
    """The parts that are loaded must be among the files that are hashed."""
    paths = {entry.path for entry in manifest.files}
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    for part in (TOKENIZER_NAME, manifest.artifact):
        if part not in paths | folders:
            raise IntegrityError(
                f"the manifest does not list {part!r}, which the bundle needs",
                where=bundle / MANIFEST_NAME,
                remedy="pack the bundle again",
            )


def _plain_files(bundle: Path) -> dict[str, int]:
    """Path to size in bytes of every file below `bundle` but the manifest."""
    return {path: size for path, size in _walk(bundle, "") if path != MANIFEST_NAME}


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = prefix + entry.name
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                yield from _walk(Path(entry.path), path + "/")
            elif stat.S_ISREG(info.st_mode):
                yield path, info.st_size
            else:
                kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                raise _damaged(Path(entry.path), f"the bundle holds {kind}", "plain files only")


def _check_hashes(bundle: Path, entries: list[FileEntry], progress: BytesProgress) -> None:
    total = sum(entry.bytes for entry in entries)
    done = 0
    lock = Lock()
    stopped = Event()

    def add(count: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise Cancelled("hashing was stopped")
        with lock:
            done += count
            progress(done, total)

    with ThreadPoolExecutor(min(HASH_THREADS, default_threads())) as pool:
        hashes = pool.map(lambda entry: _sha256(bundle / entry.path, add), entries)
        try:
            for entry, sha256 in zip(entries, hashes, strict=True):
                if sha256 != entry.sha256:
                    raise _damaged(
                        bundle / entry.path,
                        f"a file of the bundle has changed: its SHA-256 is {sha256}",
                        entry.sha256,
                    )
        except BaseException:  # the first failure is enough, and Ctrl-C must not wait for the rest
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _sha256(file: Path, add: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while block := stream.read(HASH_BLOCK_BYTES):
                digest.update(block)
                add(len(block))
    except OSError as error:
        raise _damaged(file, f"a file of the bundle cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _unknown(file: Path) -> IntegrityError:
    if "__pycache__" in file.parts:
        return IntegrityError(
            "Python has left compiled files in the bundle, which nobody has checked",
            where=file,
            remedy="delete the __pycache__ folders; start with `run`, or with `python -B`",
        )
    return _damaged(file, "the bundle holds a file that it was not packed with")


def _damaged(file: Path, what: str, expected: str | None = None) -> IntegrityError:
    return IntegrityError(
        what, where=file, expected=expected, remedy="copy or pack the bundle again"
    )
