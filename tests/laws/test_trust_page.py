"""Each promise of docs/trust.md names tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "trust.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (?!promise|place)([^|]+) \| (`[^|]+`) \|$", PAGE, re.MULTILINE)


def test_the_page_has_promises() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(PROMISES) >= 15
    assert len([row for row in rows if "::" in row]) == len(PROMISES)


@pytest.mark.parametrize(("promise", "tests"), PROMISES, ids=[p for p, _ in PROMISES])
def test_a_promise_is_held_by_tests_that_are_there(promise: str, tests: str) -> None:
    names = re.findall(r"`([\w/.]+)::(\w+)`", tests)
    assert len(names) == tests.count("`") // 2
    for path, name in names:
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
