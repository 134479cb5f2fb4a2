"""Speed and memory of one artifact, measured in a fresh process that is watched from here.

Knows how to run, watch and end the child; what it does is in timing_worker.py. Running out of
memory is an answer, not an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from packager.core.errors import DeviceError, UsageError
from packager.core.record_store import from_plain, to_plain
from packager.core.records import Artifact, Checkpoint, Progress, Workload, no_progress
from packager.core.results import OutOfMemory, Speed
from packager.measurement.timing_worker import STEPS, Job
from runtimes.contract import BackendOptions
from runtimes.host.limits import resident_bytes

DeviceBytes = Callable[[int], int]
"""device_bytes(pid): what a process has of the device's own memory now."""

MIN_CONTEXT_TOKENS = 2 * STEPS
TIME_LIMIT_S = 3600
VERSION = 2  # of what is measured: part of the key of every timing
POLL_S = 0.02
KILLED = -9  # by SIGKILL: what the system does to a process when memory runs out


@dataclass(frozen=True, slots=True)
class Timing:
    """What the child found: its speed, or that it did not fit."""

    speed: Speed | None
    out_of_memory: OutOfMemory | None = None


def measure_speed(
    artifact: Artifact,
    checkpoint: Checkpoint,
    options: BackendOptions,
    *,
    workload: Workload,
    memory_bytes: int,
    device_bytes: DeviceBytes | None = None,
    progress: Progress = no_progress,
) -> Timing:
    """Run the child and read its figures; end it where it takes more than `memory_bytes`.

    device_bytes: asks the device's driver, where the device has memory of its own. Raises
    DeviceError where the child fails for another reason, UsageError for a context too short to
    time.
    """
    if options.context_tokens < MIN_CONTEXT_TOKENS:
        raise UsageError(
            f"a context of {options.context_tokens} tokens is too short to time",
            expected=f"{MIN_CONTEXT_TOKENS} tokens or more",
            remedy="give a larger --context",
        )
    job = Job(
        artifact.variant.format,
        artifact.path / artifact.entry,
        checkpoint.window.size_tokens,
        options,
        workload,
    )
    command = [
        sys.executable, "-P", "-m", "packager.measurement.timing_worker", json.dumps(to_plain(job))
    ]  # fmt: skip
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        watch = _Watch(child, memory_bytes, device_bytes)
        try:
            assert child.stdout is not None
            result = _read(child.stdout, progress)
            child.wait()
        finally:  # Ctrl-C included
            child.kill()
            watch.join()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    return _timing(child.returncode, result, watch, last, artifact)


def _read(lines: IO[str], progress: Progress) -> dict[str, Any]:
    """Pass progress on; the line that is something else is the result."""
    result: dict[str, Any] = {}
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            progress(*message["progress"])
        else:
            result = message
    return result


def _timing(
    code: int, result: dict[str, Any], watch: _Watch, last: str, artifact: Artifact
) -> Timing:
    if watch.stopped or code == KILLED or "out_of_memory" in result:
        what = result.get("out_of_memory") or (
            "it was stopped when it took more" if watch.stopped else "the system killed it"
        )
        needed = max(watch.peak_bytes, watch.limit_bytes + 1 if watch.stopped else 0)
        return Timing(None, OutOfMemory(needed, watch.limit_bytes, what))
    if watch.too_long:
        raise DeviceError(
            f"{artifact.variant.name} took more than {TIME_LIMIT_S} s to time",
            where=artifact.path,
            remedy="choose a smaller recipe or a smaller --context for this machine",
        )
    if code or "speed" not in result:
        raise DeviceError(
            f"the measuring process ended with code {code}: {last}",
            where=artifact.path,
            remedy="run it again with nothing else on the machine; a negative code is a signal",
        )
    speed = result["speed"]
    if watch.of_device is not None:
        speed["device_memory_bytes"] = watch.peak_bytes
    return Timing(from_plain(Speed, speed))


class _Watch(threading.Thread):
    """Looks at a child's memory until it ends, and ends it past the limit or the time."""

    def __init__(
        self, child: subprocess.Popen[str], limit_bytes: int, of_device: DeviceBytes | None
    ) -> None:
        super().__init__(daemon=True)
        self.child, self.limit_bytes, self.of_device = child, limit_bytes, of_device
        self.peak_bytes = 0
        self.stopped = self.too_long = False
        self.start()

    def run(self) -> None:
        """The thread: one look every POLL_S."""
        looks = 0
        while not self._is_over():
            used = (self.of_device or resident_bytes)(self.child.pid)
            self.peak_bytes = max(self.peak_bytes, used)
            self.stopped = used > self.limit_bytes
            looks += 1
            self.too_long = looks * POLL_S > TIME_LIMIT_S
            if self.stopped or self.too_long:
                self.child.kill()
                return

    def _is_over(self) -> bool:
        try:
            self.child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            return False
        return True
