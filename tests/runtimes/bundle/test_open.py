"""Opening a bundle: nothing is loaded that the manifest does not vouch for, byte by byte."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes import backends
from runtimes.bundle.open import OpenOptions, open_bundle, verify_files
from runtimes.errors import ContextError, DeviceError, IntegrityError, UsageError
from runtimes.generation.completion import GenerateOptions
from runtimes.trust.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, read_manifest
from tests.support.runtime_toys import ToyBackend, module_with, random_logits
from tests.support.tiny import TOKENS
from tests.support.toy_bundles import write_bundle, write_manifest, write_manifest_bytes


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ToyBackend]:
    """The toy format is known, and its backends are listed here as they open."""
    opened: list[ToyBackend] = []
    module = SimpleNamespace(**module_with(random_logits(), opened))
    monkeypatch.setattr(backends, "load", lambda format: module)
    return opened


def test_a_whole_bundle_opens_and_generates(bundle: Path, opened: list[ToyBackend]) -> None:
    seen: list[tuple[int, int]] = []
    with open_bundle(bundle, progress=lambda *counts: seen.append(counts)) as runtime:
        assert runtime.generate("abc", GenerateOptions(max_tokens=3)).ids
    total = sum(entry.bytes for entry in read_manifest(bundle).files)
    assert seen[-1] == (total, total) and seen == sorted(seen)
    assert opened[0].closed
    assert (opened[0].context_tokens, opened[0].chunk_tokens) == (200, 512)


def test_overrides_reach_the_backend(bundle: Path, opened: list[ToyBackend]) -> None:
    open_bundle(bundle, OpenOptions(context_tokens=50, chunk_tokens=16, threads=1)).close()
    assert (opened[0].context_tokens, opened[0].chunk_tokens) == (50, 16)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"context_tokens": 0}, ContextError),
        ({"context_tokens": 131_073}, ContextError),
        ({"threads": 0}, UsageError),
        ({"gpu_layers": -1}, UsageError),
        ({"chunk_tokens": 0}, UsageError),
    ],
)
def test_overrides_out_of_range(bundle: Path, opened: list, options: dict, error: type) -> None:
    with pytest.raises(error):
        open_bundle(bundle, OpenOptions(**options))
    assert not opened


def flip_a_byte(bundle: Path) -> None:
    file = bundle / "model" / "toy.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def link(bundle: Path) -> None:
    """The right bytes, by way of a link to elsewhere."""
    file = bundle / "model" / "toy.bin"
    file.rename(bundle.parent / "elsewhere")
    file.symlink_to(bundle.parent / "elsewhere")


def linked_folder(bundle: Path) -> None:
    (bundle / "model").rename(bundle.parent / "elsewhere")
    (bundle / "model").symlink_to(bundle.parent / "elsewhere")


def compiled(bundle: Path) -> None:
    (bundle / "model" / "__pycache__").mkdir(parents=True)
    (bundle / "model" / "__pycache__" / "text.cpython-311.pyc").write_bytes(b"?")


def hidden(bundle: Path) -> None:
    (bundle / "model" / MANIFEST_NAME).write_text("{}")  # only the one at the top is exempt


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, r"has changed(.|\n)*toy\.bin"),
        (lambda bundle: (bundle / "empty.txt").write_bytes(b"x"), r"has 1 bytes(.|\n)*empty\.txt"),
        (lambda bundle: (bundle / "empty.txt").unlink(), r"is missing(.|\n)*empty\.txt"),
        (lambda bundle: (bundle / "extra.py").touch(), r"not packed with(.|\n)*extra\.py"),
        (hidden, "not packed with"),
        (link, "holds a link"),
        (linked_folder, "holds a link"),
        (lambda bundle: os.mkfifo(bundle / "pipe"), "neither a file nor a folder"),
        (compiled, "__pycache__ folders"),
    ],
)
def test_damage_is_found_before_anything_is_loaded(
    bundle: Path, opened: list[ToyBackend], damage, message: str
) -> None:
    damage(bundle)
    with pytest.raises(IntegrityError, match=message):
        open_bundle(bundle)
    with pytest.raises(IntegrityError, match=message):
        verify_files(bundle, read_manifest(bundle))
    assert not opened


ENTRY = {"path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [ENTRY | {"path": "../outside"}]},
        {"files": [ENTRY | {"path": "/etc/passwd"}]},
        {"files": [ENTRY | {"path": "a//b"}]},
        {"files": [ENTRY | {"path": "a/" + "b" * 256}]},
        {"files": [ENTRY | {"path": "/".join(["a"] * 41)}]},
        {"files": [ENTRY | {"path": "\N{GRINNING FACE}" * 64}]},
        {"files": [ENTRY | {"path": "/".join(["\N{GRINNING FACE}" * 50] * 6)}]},
        {"files": [ENTRY | {"path": "a\\b"}]},
        {"files": [ENTRY, ENTRY]},
        {"files": []},
        {"files": [ENTRY | {"sha256": "X" * 64}]},
        {"files": [ENTRY | {"bytes": -1}]},
        {"artifact": "../model"},
        {"artifact": "not/listed"},
        {"window": {"size_tokens": 0}},
        {"context_tokens": "16384"},
        {"schema_version": 2},
        {"special_ids": {"endoftext": 50256}},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_lies_is_refused(bundle: Path, opened: list, changes: dict) -> None:
    write_manifest(bundle, **changes)
    with pytest.raises(IntegrityError):
        open_bundle(bundle)
    assert not opened


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN'])
def test_a_manifest_that_is_none_is_refused(bundle: Path, data: bytes) -> None:
    write_manifest_bytes(bundle, data)
    with pytest.raises(IntegrityError, match=r"JSON|manifest is"):
        open_bundle(bundle)


def test_a_manifest_of_any_size_is_not_read(bundle: Path) -> None:
    os.truncate(bundle / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(IntegrityError, match="has more than"):
        open_bundle(bundle)
    with pytest.raises(IntegrityError, match="not a bundle"):
        open_bundle(bundle / "model")


def test_a_model_of_another_size_is_refused_and_closed(bundle: Path, opened: list) -> None:
    write_manifest(bundle, vocab_size=TOKENS + 1)
    with pytest.raises(IntegrityError, match="vocabulary"):
        open_bundle(bundle)
    assert opened[0].closed


@pytest.mark.parametrize("format", ["toy", "gguf.x", "../gguf", "GGUF", "__init__"])
def test_only_formats_with_a_backend_here_are_imported(bundle: Path, format: str) -> None:
    write_manifest(bundle, format=format)
    with pytest.raises(IntegrityError, match="format"):
        open_bundle(bundle)


def test_an_engine_that_is_not_installed_is_explained(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp")

    write_manifest(bundle, format="gguf")
    monkeypatch.setattr(backends.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match="llama_cpp"):
        open_bundle(bundle)
