"""The packager's own kinds of failure, on the runtime's root class. See runtimes/errors.py."""

from __future__ import annotations

from runtimes.errors import (
    Cancelled,
    DeviceError,
    IntegrityError,
    OfflineError,
    StarpackError,
    UsageError,
    WindowError,
)


class NothingFits(StarpackError):
    """No measured artifact meets the budget."""

    exit_code = 3


class QualityError(StarpackError):
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
    "StarpackError",
    "UsageError",
    "WindowError",
]
