"""Formats are found by their folders, and planning for them needs none of their libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from packager import formats
from packager.core.errors import UsageError

REFUSED = ("gguf", "llama_cpp", "onnx", "onnxruntime", "safetensors", "torch", "transformers")


def test_every_folder_with_a_module_format_is_one() -> None:
    assert formats.names() == ["gguf", "gptq", "onnx"]
    for name in formats.names():
        assert name == formats.load(name).NAME


def test_a_folder_elsewhere_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "format.py").write_text("NAME = 'new'\n")
    (tmp_path / "helper").mkdir()
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert formats.names() == ["gguf", "gptq", "new", "onnx"]
    with pytest.raises(AssertionError, match="lacks"):
        formats.load("new")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown format 'quant'") as caught:
        formats.load("quant")
    assert "gguf, gptq, onnx" in str(caught.value.expected)


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--device", "tesla-t4"],
        ["estimate", "run", "3b", "--formats", "onnx,gptq,gguf", "--device", "l4-24gb"],
    ],
    ids=["plan", "estimate"],
)
def test_planning_needs_no_library_of_a_format(command: list[str]) -> None:
    code = f"""
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"refused: {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
from packager.cli.main import main
sys.exit(main({command!r}))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Q4_K_M" in done.stdout
