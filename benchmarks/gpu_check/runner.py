"""Runs parts one after another, each in a process of its own, and puts their outcomes together.

A part that was measured is not measured again: its file is kept under the hash of what it depends
on (device, driver, versions, our code). A limit of time, a crash or Ctrl-C ends one part; what it
and the parts before it found stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.gpu_check.child import UNFINISHED
from benchmarks.gpu_check.facts import ROOT, Facts
from benchmarks.gpu_check.parts import PARTS, TOTAL_S
from benchmarks.gpu_check.records import (
    FAILED,
    INTERRUPTED,
    MEASURED,
    NOT_RUN,
    OUT_OF_TIME,
    Job,
    Outcome,
)
from packager.core.atomic import write_json
from packager.core.record_store import Store, from_plain, to_plain

LEAST_SHARE = 0.5  # guessed: a part that has less of its limit left is not begun
NOT_ASKED = "it was not asked for"
AGAIN = "run it again: what was measured is kept, and it goes on"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. again: parts that are measured anew. pythons: other interpreters, by part.

    limits_s: other limits, by part. peer: the Python that has GPTQModel.
    """

    facts: Facts
    state: Path
    provider: str
    threads: int
    parts: tuple[str, ...] = tuple(PARTS)
    again: frozenset[str] = frozenset()
    pythons: Mapping[str, str] = field(default_factory=dict)
    limits_s: Mapping[str, float] = field(default_factory=dict)
    total_s: float = TOTAL_S
    peer: str | None = None

    def file(self, part: str) -> Path:
        """Where the outcome of a part is kept."""
        inputs = {
            "facts": self.facts.identity, "provider": self.provider,
            "code": self.facts.code_sha256, "python": self.pythons.get(part, sys.executable),
        }  # fmt: skip
        return self.state / f"{part}-{Store(self.state).key(inputs)}.json"


class Interrupted(Exception):
    """Ctrl-C came while a part ran; its outcome is written."""


def run_all(plan: Plan, say: Say) -> Iterator[Outcome]:
    """The outcome of every part, as each is known. Raises Interrupted after that of the part."""
    started = time.monotonic()
    for part in PARTS:
        file, asked = plan.file(part), part in plan.parts
        known = read_outcome(file)
        if known is not None and known.status == MEASURED and not (asked and part in plan.again):
            say(f"{part}: measured before ({file.name})")
            yield known
            continue
        if not asked:
            yield known or Outcome(part, NOT_RUN, what=NOT_ASKED)
            continue
        left = plan.total_s - (time.monotonic() - started)
        wanted = plan.limits_s.get(part, PARTS[part].limit_s)
        limit = min(wanted, left)
        if limit < LEAST_SHARE * wanted:
            yield Outcome(part, OUT_OF_TIME, what="the time for all parts was over", remedy=AGAIN)
            continue
        say(f"{part}: {PARTS[part].about} (at most {limit:.0f} s)")
        yield run_part(plan, part, limit, file)


def run_part(plan: Plan, part: str, limit_s: float, file: Path) -> Outcome:
    """Run one part in its process; its outcome is in `file` when this returns, and if it raises."""
    work = plan.state / f"{part}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    file.unlink(missing_ok=True)
    job = Job(
        part,
        plan.provider,
        work,
        plan.threads,
        limit_s,
        plan.facts.device,
        plan.peer,
        toy=plan.provider == "cpu",
    )
    command = [
        plan.pythons.get(part, sys.executable), "-m", "benchmarks.gpu_check.child",
        json.dumps(to_plain(job)), str(file),
    ]  # fmt: skip
    started, stopped = time.monotonic(), ""
    log = plan.state / f"{part}.log"
    try:
        code = _wait(command, log, plan.facts.environment, limit_s)
    except subprocess.TimeoutExpired:
        code, stopped = None, OUT_OF_TIME
    except KeyboardInterrupt:
        code, stopped = None, INTERRUPTED
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = read_outcome(file) or Outcome(part, UNFINISHED)
    if found.status == UNFINISHED:
        found = _ended(found, code, stopped, limit_s, log)
    found = replace(found, seconds=round(time.monotonic() - started, 1))
    write_json(file, to_plain(found))
    if stopped == INTERRUPTED:
        raise Interrupted
    return found


def read_outcome(file: Path) -> Outcome | None:
    """What is kept of a part; None where nothing is, or nothing sound."""
    try:
        found = from_plain(Outcome, json.loads(file.read_bytes()))
        return found if isinstance(found, Outcome) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _wait(command: list[str], log: Path, environment: Mapping[str, str], limit_s: float) -> int:
    """Run to the end; the process and all that it started are gone when this returns or raises."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        try:
            return process.wait(limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ended(found: Outcome, code: int | None, stopped: str, limit_s: float, log: Path) -> Outcome:
    """The outcome of a process that did not come to its own end."""
    if stopped == OUT_OF_TIME:
        what = f"it took more than {limit_s:.0f} s"
        remedy = f"give it more time: --parts {found.part} --limit {found.part}={4 * limit_s:.0f}"
        if limit_s < PARTS[found.part].limit_s:
            remedy = AGAIN  # the parts before it left it less than it is to have
        return replace(found, status=OUT_OF_TIME, what=what, remedy=remedy)
    if stopped == INTERRUPTED:
        return replace(found, status=INTERRUPTED, what="Ctrl-C", remedy=AGAIN)
    lines = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    how = f"signal {-code}" if code < 0 else f"code {code}"
    what = f"its process ended with {how}: {lines[-1][:300]}"
    return replace(found, status=FAILED, what=what, remedy=f"see {log.name} in the state folder")
