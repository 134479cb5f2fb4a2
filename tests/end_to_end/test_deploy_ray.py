"""deploy/ fits this tree. Ray is not installed here: `make test-ray` runs it on a cluster."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.py")), ids=lambda file: file.name)
def test_what_it_imports_of_ours_is_there(file: Path) -> None:
    found = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("runtimes")
        for alias in node.names
    ]
    assert found
    for module, name in found:
        assert hasattr(importlib.import_module(str(module)), name), (module, name)


def test_the_instructions_name_what_is_there() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    application = (DEPLOY / "ray_app.py").read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if line.startswith("serve run "))
    assert "deploy.ray_app:build" in command and "def build(" in application
    allowed = re.search(r"allowed = \{(.*)\}", application)[1]
    assert all(f'"{name}"' in allowed for name in re.findall(r"(\w+)=", command))
    for path in re.findall(r"\]\(([\w.]+)\)", text):
        assert (DEPLOY / path).exists()
    version = re.search(r"ray\[serve\]==(\S+)", (DEPLOY / "requirements.txt").read_text())[1]
    assert f"Ray {version}" in text, "tried with another version"
