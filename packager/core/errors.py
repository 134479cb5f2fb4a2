"""The packager's own kinds of failure, on the runtime's root class. See runtimes/errors.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtimes.errors import (
    Cancelled,
    DeviceError,
    IntegrityError,
    OfflineError,
    StarpackError,
    UsageError,
    WindowError,
)


class SelectionError(StarpackError):
    """Nothing can be selected. `rejected` has every candidate with its reason, where there are."""

    rejected: Sequence[Any] = ()


class NothingFits(SelectionError):
    """No candidate keeps the budget's limits on the device."""

    exit_code = 3


class QualityError(SelectionError):
    """An artifact diverges from the checkpoint, or its window is not exact."""

    exit_code = 4


class CheckpointError(StarpackError):
    """A checkpoint, adapter or tokenizer that cannot be converted exactly, and why."""

    exit_code = 8


class BuildError(StarpackError):
    """An outside tool failed: a compiler, pip, git."""

    exit_code = 9


__all__ = [
    "BuildError",
    "Cancelled",
    "CheckpointError",
    "DeviceError",
    "IntegrityError",
    "NothingFits",
    "OfflineError",
    "QualityError",
    "SelectionError",
    "StarpackError",
    "UsageError",
    "WindowError",
]
