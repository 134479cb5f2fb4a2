"""Budgets of size: past them, a second idea is hiding in a file, a function or a folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ENTRIES = 350, 60, 16
MAX_RUNTIME_ENTRIES = 13
PACKAGES = ("packager", "runtimes")


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_files_and_functions_are_short() -> None:
    for file in sources():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_FILE_LINES, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{file}: {node.name} has {lines} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_is_taken_in_at_a_look(package: str) -> None:
    for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
        if "__pycache__" in folder.parts:
            continue
        entries = [entry for entry in folder.iterdir() if entry.name != "__pycache__"]
        top = folder == ROOT / "runtimes"
        assert len(entries) <= (MAX_RUNTIME_ENTRIES if top else MAX_ENTRIES), folder
