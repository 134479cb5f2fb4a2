"""The packager's own kinds of failure, on the runtime's root class. See runtimes/errors.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtimes.errors import (
    Cancelled,
    DeviceError,
    IntegrityError,
    OfflineError,
    StarpackError,
    UsageError,
    WindowError,
)

if TYPE_CHECKING:
    from packager.core.results import Rejection


class SelectionError(StarpackError):
    """Nothing can be selected. `rejected` has every candidate with its reason, if any."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        remedy: str | None = None,
        rejected: Sequence[Rejection] = (),
    ) -> None:
        super().__init__(what, where=where, expected=expected, remedy=remedy)
        self.rejected = tuple(rejected)


class NothingFits(SelectionError):
    """No candidate keeps the budget's limits on the device."""

    exit_code = 3


class QualityError(SelectionError):
    """An artifact diverges from the checkpoint, or its window is not exact."""

    exit_code = 4


class CheckpointError(StarpackError):
    """A checkpoint, adapter or tokenizer that cannot be converted exactly, and why."""

    exit_code = 8


class DataError(StarpackError):
    """A file that its reader cannot use. The caller knows whose it is and the remedy that works."""

    exit_code = 2


class BuildError(StarpackError):
    """An outside tool failed: a compiler, pip, git."""

    exit_code = 9


def why_unreadable(error: OSError | ValueError) -> str:
    """What kept a file from being read (see runtimes/trust/files.py), without its name."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def data_errors_as(kind: type[StarpackError], remedy: str) -> Iterator[None]:
    """Have a DataError of the block become an error of `kind`, with the remedy that works there."""
    try:
        yield
    except DataError as error:
        raise kind(error.what, where=error.where, expected=error.expected, remedy=remedy) from None


__all__ = [
    "BuildError",
    "Cancelled",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "IntegrityError",
    "NothingFits",
    "OfflineError",
    "QualityError",
    "SelectionError",
    "StarpackError",
    "UsageError",
    "WindowError",
    "data_errors_as",
    "why_unreadable",
]
