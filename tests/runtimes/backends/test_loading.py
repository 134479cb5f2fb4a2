"""Backends are found by their folders, opened in one place, and held to what they declare."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimes import backends
from runtimes.contract import BackendOptions, Window
from runtimes.errors import DeviceError, IntegrityError, WindowError

TOY = """
REQUIRES = {{"cpu": ("toy-engine",)}}
WINDOW = {window!r}


def open_backend(path, window, options):
    return path, window.size_tokens, options.context_tokens


def engine_files():
    return {{}}
"""


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of rooms beside those of the package."""
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("runtimes.backends.toy")]:
        del sys.modules[name]


def add_room(rooms: Path, name: str, text: str) -> None:
    (rooms / name).mkdir()
    (rooms / name / "backend.py").write_text(text)


def test_every_folder_with_a_backend_is_a_format(rooms: Path) -> None:
    assert {"gguf", "gptq", "onnx"} <= set(backends.names())
    assert "toy" not in backends.names()
    (rooms / "notes").mkdir()
    add_room(rooms, "toy", TOY.format(window="exact"))
    assert "toy" in backends.names() and "notes" not in backends.names()
    assert backends.folders("toy") == (rooms / "toy",)
    shared = Path(backends.__file__).parent / "own_cache"
    assert backends.folders("gptq") == (shared.parent / "gptq", shared)
    assert backends.load("toy").REQUIRES == {"cpu": ("toy-engine",)}
    opened = backends.open_model("toy", rooms, Window(8), BackendOptions(100, 1))
    assert opened == (rooms, 8, 100)


def test_without_a_window_only_contexts_within_it_are_opened(rooms: Path) -> None:
    add_room(rooms, "toy", TOY.format(window="none"))

    def context_opened(window_tokens: int | None, context_tokens: int) -> int:
        options = BackendOptions(context_tokens, 1)
        return backends.open_model("toy", rooms, Window(window_tokens), options)[2]

    assert context_opened(8, 8) == 8
    assert context_opened(None, 9) == 9
    with pytest.raises(WindowError, match="at most 8 tokens"):
        context_opened(8, 9)


def test_what_is_missing_is_explained(rooms: Path) -> None:
    with pytest.raises(IntegrityError, match="toy"):
        backends.load("toy")
    add_room(rooms, "toy", "import no_such_engine")
    with pytest.raises(DeviceError, match="no_such_engine"):
        backends.load("toy")
    sys.modules.pop("runtimes.backends.toy", None)
    (rooms / "toy" / "backend.py").write_text("WINDOW = 'exact'")
    with pytest.raises(AssertionError, match="open_backend"):
        backends.load("toy")


@pytest.mark.parametrize("format", ["gguf", "onnx", "gptq"])
def test_the_formats_declare_a_window_and_their_packages(format: str) -> None:
    pytest.importorskip({"gguf": "llama_cpp", "onnx": "onnxruntime", "gptq": "torch"}[format])
    module = backends.load(format)
    assert module.WINDOW == "exact"
    assert module.REQUIRES["cpu"]


@pytest.mark.slow
def test_every_backend_satisfies_the_protocol(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the tools of `make check`")
    root = Path(backends.__file__).parents[2]
    lines = ["from runtimes.backends import BackendModule, checks"]
    for format in backends.names():
        lines.append(f"from runtimes.backends.{format} import backend as {format}")
        lines.append(f"{format}_module: BackendModule = {format}")
    file = tmp_path / "modules.py"
    for more, message in (("", "Success"), ("wrong: BackendModule = checks", "Incompatible types")):
        file.write_text("\n".join([*lines, more, ""]))
        command = [sys.executable, "-m", "mypy", "--config-file", root / "pyproject.toml", file]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert message in done.stdout, done.stdout + done.stderr
