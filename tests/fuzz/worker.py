"""One target in a process of its own: makes inputs, judges them, and writes what it finds.

Prints its figures as a line of JSON every second and at the end. The input that it is at lies in
WORK/current, for whoever has to kill this process. Run by `python -m tests.fuzz`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.figures import Figures
from tests.fuzz.forms import Files
from tests.fuzz.target import corpus, load

REPORT_S = 1.0
MAX_POOL = 400  # guessed: inputs that reached something new, to go on from
SHRINK_TRIES = 400  # guessed: a finding of some kilobytes becomes one of some dozen bytes
MAX_GUIDED_BYTES = 1 << 16  # guessed: coverage of larger inputs takes too long to be worth it


class Worker:
    """Judges inputs of one target until told to stop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from tests.fuzz.judge import Judge

        self.seed, self.found = arguments.seed, arguments.found
        self.work = Path(os.path.realpath(arguments.work))
        base = self.work / "base"
        base.mkdir()
        _keep_to(base)
        self.target = load(arguments.target)
        self.judge = Judge(self.target, base)
        self.figures = Figures(arguments.target)
        self.seeds = self.judge.seeds()
        self._current = os.open(self.work / "current", os.O_WRONLY | os.O_CREAT)
        self.judge.install()
        self._started = self._reported = time.monotonic()
        self._kinds: set[str] = set()
        for seed in self.seeds:
            outcome = self.judge.judge(seed)
            assert outcome.verdict == "accepted", f"a seed is not accepted:\n{outcome.detail}"
        known = corpus(arguments.target)
        self._known = {
            outcome.kind
            for data in known.values()
            if (outcome := self.judge.judge(data)).verdict == "finding"
        }
        self.pool = [*self.seeds, *known.values()]

    @property
    def seconds(self) -> float:
        """Since the seeds were there."""
        return time.monotonic() - self._started

    def take(self, data: bytes) -> None:
        """Judge one input."""
        os.ftruncate(self._current, 0)
        os.pwrite(self._current, data, 0)
        outcome = self.judge.judge(data)
        figures = self.figures
        figures.inputs += 1
        figures.slowest_s = max(figures.slowest_s, outcome.seconds)
        if outcome.verdict == "finding":
            self._note(outcome.kind, data)
            if outcome.kind not in self._known:
                print(f"{figures.target}: {outcome.detail}", file=sys.stderr, flush=True)
                self._known.add(outcome.kind)
        elif outcome.verdict == "accepted":
            figures.accepted += 1
        else:
            figures.refused += 1
        if outcome.kind not in self._kinds and len(self.pool) < MAX_POOL:
            self._kinds.add(outcome.kind)
            self.pool.append(data)
        if time.monotonic() - self._reported > REPORT_S:
            self.report()

    def report(self) -> None:
        """The figures so far, in a line."""
        self._reported = time.monotonic()
        self.figures.seconds = self.seconds
        self.figures.peak_bytes = self.judge.peak
        print(json.dumps(self.figures.to_json()), flush=True)

    def _note(self, kind: str, data: bytes) -> None:
        if kind in self._known:
            self.figures.known += kind not in self.figures.findings
            return
        name = re.sub(r"[^\w.-]+", "_", f"{kind}-seed{self.seed}-{self.figures.inputs}")[:120]
        small = data
        if not kind.startswith("RecursionError"):  # what is as deep as can be is not so elsewhere
            small = shrink(data, lambda other: self.judge.judge(other).kind == kind)
        self.found.mkdir(parents=True, exist_ok=True)
        (self.found / name).write_bytes(small)
        self.figures.findings[kind] = name


def shrink(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    """A shorter input with the same finding, by leaving parts out."""
    size, tries = len(data) // 2, 0
    while size and tries < SHRINK_TRIES:
        at = 0
        while at < len(data) and tries < SHRINK_TRIES:
            tries += 1
            shorter = data[:at] + data[at + size :]
            if same(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def seeded(worker: Worker, arguments: argparse.Namespace) -> None:
    """Mutate seeds, and what has reached something new, as the seed of this run decides."""
    rng = Random(f"{arguments.target} {arguments.seed}")
    while (
        worker.figures.inputs < arguments.inputs
        if arguments.inputs
        else worker.seconds < arguments.seconds
    ):
        data = rng.choice(worker.seeds if rng.random() < 0.5 else worker.pool)
        worker.take(worker.target.FORM.mutate(data, rng, worker.pool))
    worker.report()


def replay(worker: Worker, arguments: argparse.Namespace) -> None:
    """Judge each file of the corpus; prints its name and what became of it, as JSON."""
    for name, data in corpus(arguments.target).items():
        outcome = worker.judge.judge(data)
        print(json.dumps([name, outcome.verdict, outcome.detail]), flush=True)


def guided(worker: Worker, arguments: argparse.Namespace) -> None:
    """The same with atheris, which keeps what covers new lines. Does not return."""
    import atheris

    folder = worker.work / "seeds"
    folder.mkdir()
    for i, data in enumerate(worker.pool):
        (folder / str(i)).write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.5:
            try:
                return worker.target.FORM.mutate(data, rng, worker.pool)[:max_size]
            except Exception:  # which atheris would sit on
                traceback.print_exc()
                os._exit(1)
        name, content = b"", data
        if isinstance(worker.target.FORM, Files):
            name, content = data[: data.find(b"\n") + 1], data[data.find(b"\n") + 1 :]
        mutated: bytes = atheris.Mutate(content, max_size - len(name))
        return name + mutated

    def take(data: bytes) -> None:
        worker.figures.guided += 1
        worker.take(data)
        if worker.seconds > arguments.seconds:
            worker.report()
            os._exit(0)  # atheris has no other way out

    largest = max(MAX_GUIDED_BYTES, *(len(data) for data in worker.pool))
    options = [f"-max_len={largest}", f"-seed={arguments.seed + 1}", "-rss_limit_mb=0"]
    atheris.Setup(
        ["fuzz", *options, "-verbosity=0", "-len_control=0", str(folder)],
        take,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def _keep_to(base: Path) -> None:
    """Temporary files and caches of this process go below `base`."""
    import tempfile

    for name in ("tmp", "cache"):
        (base / name).mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(base / "tmp")
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--found", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.found = arguments.found.absolute()
    if not arguments.guided:
        (replay if arguments.replay else seeded)(Worker(arguments), arguments)
        return
    import atheris

    with atheris.instrument_imports(include=["packager", "runtimes"]):
        worker = Worker(arguments)
    guided(worker, arguments)


if __name__ == "__main__":
    main()
