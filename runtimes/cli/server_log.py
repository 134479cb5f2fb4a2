"""What a server says goes to a log; it serves on when that cannot be written any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class _Tolerant:
    """A stream whose writes may fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Show `text` at once, or never."""
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Done already."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_output(*, needs_stdout: bool) -> Iterator[None]:
    """Let no failed write end the block. needs_stdout: but those to standard output."""
    _take_closed_numbers()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        output, errors = sys.stdout or nowhere, sys.stderr or nowhere
        shown = output if needs_stdout else _Tolerant(output)
        with redirect_stdout(shown), redirect_stderr(_Tolerant(errors)):
            yield
        if not needs_stdout:
            _forget_unwritten(output)
        _forget_unwritten(errors)


def _take_closed_numbers() -> None:
    """The next file or connection would be taken for a stream that was closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _forget_unwritten(stream: TextIO) -> None:
    """Python would try again at the end, and make an error of it."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
