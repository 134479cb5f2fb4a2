"""Runs code that a model wrote, each program in a process of its own, under limits.

This contains accidents: an endless loop, memory that grows, a file that is written or removed, a
process or a connection that is started. It is NOT a sandbox against malice: code that means harm
can switch the hooks off, read whatever its user may read, and find ways that nobody thought of.
Whoever fears that runs it in a virtual machine that can be thrown away.

What holds, from the outside in: no route to any network, where `unshare` may make an empty network
namespace; a user who owns nothing, where starpack runs as root and that user can read the
interpreter; no environment, an empty working folder, the input at its end, the output thrown away;
limits by the kernel on processor time, memory, file size (0), open files, core dumps and processes
(none); a wall clock, after which the whole process group is killed; Python's audit hooks, which
refuse to write, remove, start or send.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packager.core.errors import DeviceError

CHILD = Path(__file__).with_name("sandbox_child.py")
MAX_ANSWER_BYTES = 4096  # specified: what a pipe holds at least (POSIX PIPE_BUF on Linux)
# Modules of the kind that answers import: they must still be readable as another user.
PROBE = "import collections, datetime, heapq, itertools, math, random, re, string, typing\n"
THREAD_PROBE = "import _thread\n_thread.start_new_thread(print, ())\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Guessed: OpenAI's human-eval allows 3 s on the wall. Here the processor's time decides, so that
    a busy machine does not change a verdict; the wall clock ends what sleeps.
    """

    cpu_s: int = 5
    wall_s: float = 20.0
    memory_bytes: int = 1 << 30  # of address space; an interpreter alone takes some 20 MB


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program came to its end without an exception; if not, why."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Containment:
    """How programs are run here: what was found to work.

    command: what stands before the interpreter. as_nobody: the user is changed. no_processes: a
    program cannot start a thread or process; false for root who cannot change the user.
    """

    command: tuple[str, ...] = ()
    as_nobody: bool = False
    no_processes: bool = False

    def describe(self) -> str:
        """For records and reports."""
        held = ["limits on time, memory and files", "audit hooks"]
        held += ["no network (unshare)"] if self.command else []
        held += ["as nobody"] if self.as_nobody else []
        held += ["no processes"] if self.no_processes else []
        lacking = [] if self.command else ["the network is only hooked"]
        lacking += [] if self.no_processes else ["processes are only hooked"]
        return "; ".join([", ".join(held), *lacking])

    def run(self, program: str, limits: Limits = DEFAULT_LIMITS) -> Verdict:
        """Run `program`; whatever it does, the answer is a verdict. Its output is thrown away."""
        word = secrets.token_hex(16)  # so that what a program prints is not taken for an answer
        settings = [str(limits.cpu_s), str(limits.memory_bytes), str(int(self.as_nobody))]
        with tempfile.TemporaryDirectory(prefix="starpack-") as folder:
            process = subprocess.Popen(
                [*self.command, sys.executable, "-I", "-S", "-B", str(CHILD), *settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
            )
            with process:
                answer = _answer(process, f"{word}\n{program}".encode(), limits.wall_s)
        return _verdict(word, answer, process.returncode, limits)


def find_containment() -> Containment:
    """The strictest way of running programs that works here.

    Raises DeviceError where not even a harmless program comes to its end.
    """
    root = os.geteuid() == 0
    commands: list[tuple[str, ...]] = [()]
    unshare = shutil.which("unshare")
    if unshare:
        # Root may make a network namespace; others where the kernel lets them be root in their own.
        own_user = () if root else ("--user", "--map-current-user")
        commands.insert(0, (unshare, *own_user, "--net", "--"))
    for command in commands:
        for as_nobody in (True, False) if root else (False,):
            containment = Containment(command, as_nobody)
            verdict = containment.run(PROBE)
            if verdict.passed:
                no_processes = not containment.run(THREAD_PROBE).passed
                return Containment(command, as_nobody, no_processes)
    raise DeviceError(
        f"programs cannot be run here: {verdict.reason}",
        where=sys.executable,
        expected="an interpreter that starts without an environment",
        remedy="leave out --execute",
    )


def _answer(process: subprocess.Popen[bytes], text: bytes, wall_s: float) -> bytes | None:
    """What the child answered within the time; None where it ran out. Nothing of it is left."""
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it died first, and its exit status says how
            process.stdin.write(text)
            process.stdin.close()
        # The answer fits into the pipe, so it can be read when the child has ended. A program that
        # finds the pipe and floods it stands still until its time is over.
        process.wait(wall_s)
        os.set_blocking(process.stdout.fileno(), False)
        return os.read(process.stdout.fileno(), MAX_ANSWER_BYTES)
    except subprocess.TimeoutExpired:
        return None
    except BlockingIOError:  # it said nothing, and something that it started holds the pipe open
        return b""
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)


def _verdict(word: str, answer: bytes | None, status: int, limits: Limits) -> Verdict:
    if answer is None:
        return Verdict(False, f"stopped after {limits.wall_s} s")
    _, answered, rest = answer.decode(errors="replace").rpartition(f"{word} ")
    if answered:
        return Verdict(rest == "passed", rest.removeprefix("passed").removeprefix("failed: "))
    if status == -signal.SIGKILL:
        return Verdict(False, f"stopped after {limits.cpu_s} s of processor time, or for memory")
    if status < 0:
        return Verdict(False, f"ended by signal {-status}")
    return Verdict(False, f"ended itself with status {status}")
