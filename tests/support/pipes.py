"""Pipes that nobody writes to, where a file is expected; and a limit for whoever waits for one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUNG_S = 60  # guessed: far more than a refusal takes on a busy machine


def put_pipe(file: Path) -> Path:
    """Put a pipe at `file`, in place of what is there."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    return file


@contextmanager
def not_hanging() -> Iterator[None]:
    """Fail where the block waits for a pipe."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HUNG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
