"""What the tests of devices and of budgets do alike with their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.core.errors import UsageError


def written(folder: Path, data: object) -> Path:
    """A profile of one's own."""
    file = folder / "mine.json"
    file.write_text(json.dumps(data))
    return file


def refused(call: Callable[[], object], message: str) -> UsageError:
    """The error of a call, which says what was expected and the remedy."""
    with pytest.raises(UsageError, match=message) as raised:
        call()
    assert raised.value.expected
    assert raised.value.remedy
    return raised.value
