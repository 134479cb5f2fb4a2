"""A refusal says what is wrong, where, what was expected and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packager.core.errors import CheckpointError


def refusal(read: Callable[[], object], message: str) -> CheckpointError:
    """The CheckpointError that `read` raises, complete and matching the pattern `message`."""
    with pytest.raises(CheckpointError, match=message) as raised:
        read()
    assert raised.value.where
    assert raised.value.expected
    assert raised.value.remedy
    return raised.value
