"""Runs a build tool: its output goes to a log, its steps become progress.

Knows how ninja counts its steps. Knows nothing of what is built.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from packager.core.errors import BuildError
from packager.core.records import Progress, no_progress

HEARTBEAT_S = 1.0  # guessed: as often as somebody looks
BLOCK_BYTES = 1 << 16
_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\] ")  # ninja: "[17/330] /usr/bin/g++ ..."
_LAST_LINES = 12  # guessed: enough to hold a compiler's error and its context


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Run a tool with its output appended to `log`; show ninja's steps as progress.

    Without a new step the last one is shown again each HEARTBEAT_S: a long step is no standstill.
    Raises BuildError with the last lines of the output where the tool is missing or fails.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that compilers end with us, below
        )
    except OSError as error:
        raise BuildError(f"{what}: cannot start {command[0]}: {error}") from None
    with process, log.open("a", encoding="utf-8") as stream:
        assert process.stdout is not None
        done, total, shown = 0, 1, time.monotonic()  # of one, until the tool says how many
        try:
            for line in _lines(process.stdout):
                step = None
                if line is not None:
                    stream.write(line + "\n")
                    last.append(line.rstrip())
                    step = _STEP.match(line)
                if step:
                    done, total = int(step[1]), int(step[2])
                if step or time.monotonic() - shown >= HEARTBEAT_S:
                    shown = time.monotonic()
                    progress(what, done, total)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise BuildError(
            f"{what} failed with exit code {process.returncode}; its last lines:\n"
            + "\n".join(f"    {line}" for line in last),
            where=log,
            remedy="read the log named here; without a network, run it once where there is one",
        )


def _lines(stream: IO[bytes]) -> Iterator[str | None]:
    """Each line as it comes, and None whenever none has come for HEARTBEAT_S."""
    rest = b""
    while True:
        ready, _, _ = select.select([stream], [], [], HEARTBEAT_S)
        if not ready:
            yield None
            continue
        block = os.read(stream.fileno(), BLOCK_BYTES)
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")
