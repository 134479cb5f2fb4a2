"""What became of one input: accepted, refused, or a finding.

A finding is an exception that is not the project's own, a second opinion that differs, something
written outside of the input's folder, a program or a connection that nobody asked for, too much
time or too much memory. What would act outside is stopped before it acts, so that a finding does
no harm to the machine that finds it.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from runtimes.errors import StarpackError
from tests.fuzz.target import Target, Wrong, programs

MAX_CPU_S = 10  # guessed: the slowest valid input takes a tenth of it, on a busy machine
MAX_BYTES = 512 << 20  # guessed: eight times the largest file that is read as a whole
MAX_MORE_BYTES = 4 << 30  # guessed: of address space, past which an allocation fails
ROOT = Path(__file__).parents[2]

Verdict = Literal["accepted", "refused", "finding"]
# Audit events (PEP 578) that act on a name: where in their arguments the name is, and where the
# descriptor of the folder that it is relative to.
ACTS = {
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.link": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),), "os.symlink": ((1, 2),), "os.truncate": ((0, None),),
    "os.utime": ((0, 3),), "os.setxattr": ((0, None),),
}  # fmt: skip
FOLLOWS = {"open", "os.chmod", "os.truncate", "os.utime"}
FORBIDDEN = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "os.system", "os.exec",
    "os.fork", "pickle.find_class",
}  # fmt: skip
STARTS = {"subprocess.Popen", "os.posix_spawn"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Stopped(BaseException):
    """Raised where a limit is passed; no reader may swallow it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an input. kind: a short name for what was raised, and where."""

    verdict: Verdict
    kind: str
    detail: str
    seconds: float


class Judge:
    """Runs a target's inputs below `base`, one at a time. For a process of its own: see install."""

    def __init__(self, target: Target, base: Path) -> None:
        self._target, self._base = target, Path(os.path.realpath(base))
        self._programs = programs(target)
        self._active = False
        self._breach: tuple[str, str] | tuple[()] = ()  # kind and detail
        self.peak = 0
        for name in ("in", "seeds", "here", "outside"):
            (self._base / name).mkdir()
        (self._base / "outside" / "file").write_bytes(b"not yours")

    def seeds(self) -> list[bytes]:
        """The target's own valid inputs."""
        return self._target.seeds(self._base / "seeds")

    def install(self) -> None:
        """Watch this process from now on, for good: there is no way to take a hook back."""
        self.peak = peak_bytes()
        os.chdir(self._base / "here")
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._too_long)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MAX_MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def judge(self, data: bytes) -> Outcome:
        """Run one input."""
        folder = self._base / "in"
        before = self._outside()
        self._breach = ()
        started = time.perf_counter()
        try:
            with self._watched():
                self._target.run(data, folder)
            outcome = ("accepted", "", "")
        except StarpackError as error:
            outcome = ("refused", _kind(error), str(error))
        except (Exception, _Stopped) as error:
            outcome = ("finding", _kind(error), traceback.format_exc())
        seconds = time.perf_counter() - started
        more_bytes, self.peak = -self.peak, peak_bytes()
        more_bytes += self.peak
        if self._breach:  # whether what it raised was swallowed or not
            outcome = ("finding", *self._breach)
        elif self._outside() != before:
            outcome = ("finding", "outside", "something outside of the folder has changed")
        elif more_bytes > MAX_BYTES and outcome[0] != "finding":
            outcome = ("finding", "memory", f"{more_bytes >> 20} MiB for one input")
        _empty(folder)
        return Outcome(*outcome, seconds)  # type: ignore[arg-type]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        self._active = True
        try:
            yield
        finally:
            self._active = False
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _too_long(self, _number: int, _frame: FrameType | None) -> None:
        if self._active:
            self._refuse(f"it took more than {MAX_CPU_S} s of CPU time", kind="time")

    def _outside(self) -> object:
        file = (self._base / "outside" / "file").stat()
        names = [sorted(os.listdir(self._base / name)) for name in ("", "here", "outside")]
        return names, file.st_mode, file.st_size, file.st_mtime_ns, file.st_ctime_ns

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._active:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self._check(event, arguments[0], None)
        elif event in ACTS:
            for name, within in ACTS[event]:
                self._check(event, arguments[name], within and arguments[within])
        elif event in STARTS and os.path.basename(str(arguments[0])) not in self._programs:
            self._refuse(f"{event} of {arguments[0]!r}")
        elif event in FORBIDDEN:
            self._refuse(f"{event}{arguments!r:.200}")

    def _check(self, event: str, name: object, within: object) -> None:
        """Stop what acts outside of `base`; a name may be relative to the folder open as `within`.

        Of what is opened the hook is not told relative to what: "here" and "outside" show it then.
        """
        path = f"/proc/self/fd/{name}" if isinstance(name, int) else os.fsdecode(name)  # type: ignore[arg-type]
        if not path.startswith("/"):
            if event == "open" and ".." not in path.split("/"):
                return
            base = f"/proc/self/fd/{within}" if isinstance(within, int) and within >= 0 else "."
            path = os.path.join(os.path.realpath(base), path)
        folder, last = os.path.split(path)
        real = os.path.realpath(path) if event in FOLLOWS else f"{os.path.realpath(folder)}/{last}"
        if not Path(real).is_relative_to(self._base) and real != os.devnull:
            self._refuse(f"{event} of {real}")

    def _refuse(self, what: str, kind: str = "outside") -> None:
        self._breach = kind, f"{what}\n{''.join(traceback.format_stack(limit=12)[:-3])}"
        raise _Stopped(what)


def _kind(error: BaseException) -> str:
    """The exception, and the function of ours that it came out of last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith((f"{ROOT}/packager", f"{ROOT}/runtimes"))]
    name = type(error).__name__.strip("_")
    if isinstance(error, Wrong):
        return f"{name}-{error.what.replace(' ', '-')}"
    if not ours:
        return f"{name}-{Path(frames[-1].filename).stem}"
    if isinstance(error, StarpackError):  # each refusal apart: it shows how far a file came
        return f"{name}-{Path(ours[-1].filename).stem}-{[f.lineno for f in ours[-3:]]}"
    return f"{name}-{Path(ours[-1].filename).stem}-{ours[-1].name}"


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def peak_bytes() -> int:
    """The most that this process has held. Not getrusage: that begins with what its parent held."""
    with open("/proc/self/status", "rb") as stream:
        found = re.search(rb"VmHWM:\s*(\d+) kB", stream.read())
    assert found is not None
    return int(found[1]) << 10
