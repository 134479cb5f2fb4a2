"""Processes that are killed: at a moment, or before one of their operations on files.

The short steps at the end of a command are a small part of its time and a large part of its
operations, so both are needed. A function of ours runs in a fork, which has imported everything
already; a script of a bundle runs as it is, on a Python that counts.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WATCHED = frozenset(
    "open os.chmod os.link os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir os.symlink "
    "os.truncate shutil.copyfile".split()
)
NEVER = 10**9
MAX_S = 120  # guessed: a hundred times what any of them takes
COUNTING = """
import os, signal, sys
left = limit = int(os.environ["STARPACK_KILL_AT"])
def hook(event, arguments):
    global left
    if event in {watched!r}:
        left -= 1
        if left == 0:
            os.killpg(0, signal.SIGKILL)
words = sys.argv[1:]
at = words.index("-c")
code, sys.argv = words[at + 1], ["-c", *words[at + 2:]]
if "-B" in words[:at]:  # not the first, short look at which Python this is
    import atexit
    def note():
        with open(os.environ["STARPACK_KILL_NOTE"], "w") as stream:
            stream.write(str(limit - left))
    atexit.register(note)
    sys.addaudithook(hook)
exec(compile(code, "<string>", "exec"), {{"__name__": "__main__"}})
"""


class Failed(Exception):
    """A process that was let to finish did not end well."""


@dataclass(frozen=True, slots=True)
class Command:
    """What is killed. `function` in a fork, or `words` with `environment`; log: what it printed."""

    log: Path
    function: Callable[[], int] | None = None
    words: Sequence[str] = ()
    environment: dict[str, str] | None = None
    counts: bool = True

    @property
    def note(self) -> Path:
        """Where a process that ends leaves the number of its operations."""
        return self.log.with_suffix(".operations")

    def start(self, kill_at: int = NEVER) -> int:
        """Start it in a group of its own; returns its process id."""
        self.note.unlink(missing_ok=True)
        if self.function is None:
            own = {"STARPACK_KILL_AT": str(kill_at), "STARPACK_KILL_NOTE": str(self.note)}
            with self.log.open("wb") as log:
                return subprocess.Popen(
                    self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={**(self.environment or {}), **own}, start_new_session=True,
                ).pid  # fmt: skip
        child = os.fork()
        if not child:
            self._live(kill_at)
        return child

    def _live(self, kill_at: int) -> None:
        """In the fork: run the function and leave. Does not return."""
        code = 70
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            left = kill_at

            def hook(event: str, _arguments: object) -> None:
                nonlocal left
                if event in WATCHED:
                    left -= 1
                    if left == 0:
                        os.killpg(0, signal.SIGKILL)

            sys.addaudithook(hook)
            assert self.function is not None
            code = self.function()
            count = kill_at - left
            self.note.write_text(str(count))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def finish(self) -> tuple[float, int]:
        """Let it end; returns its seconds and its operations. Raises Failed."""
        started = time.monotonic()
        code = _wait(self.start(), MAX_S)
        if code != 0:
            raise Failed(f"exit code {code}: {self.log.read_text(errors='replace')[-2000:]}")
        count = int(self.note.read_text()) if self.counts else 0
        return time.monotonic() - started, count

    def kill(self, *, after_s: float | None = None, at: int = NEVER) -> bool:
        """Start it and kill its group after so long, or at an operation; whether that came first.

        Raises Failed where it ended otherwise, with another exit code than 0.
        """
        process = self.start(at)
        code = _wait(process, MAX_S if after_s is None else after_s, kill=True)
        if code not in (0, -signal.SIGKILL):
            raise Failed(f"exit code {code}: {self.log.read_text(errors='replace')[-2000:]}")
        return code != 0


def _wait(process: int, limit_s: float, *, kill: bool = False) -> int:
    """The exit code, negative for a signal; after the limit its whole group is killed."""
    until = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)  # whatever it has started
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            try:
                os.killpg(process, signal.SIGKILL)
            except ProcessLookupError:  # it has not come to make its group yet
                os.kill(process, signal.SIGKILL)
            if not kill:
                os.waitpid(process, 0)
                raise Failed(f"it did not end in {limit_s} s")
            until = float("inf")
        time.sleep(0.001)


def counting_python(folder: Path) -> Path:
    """An interpreter that kills itself, and its group, at the operation STARPACK_KILL_AT."""
    script, python = folder / "counting.py", folder / "python"
    script.write_text(COUNTING.format(watched=WATCHED))
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S -B "{script}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python
