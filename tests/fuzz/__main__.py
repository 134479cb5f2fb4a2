"""`make fuzz`: every target for its share of the time, and what came of it.

    python -m tests.fuzz --minutes 10 [--targets config,archive] [--seed 7] [--json]
    python -m tests.fuzz --inputs 20000      so many in all, the same ones each time

Half of the time is guided by coverage where atheris is installed: pip install '.[fuzz]'. A finding
becomes a file in tests/fuzz/corpus/TARGET, whose name has the seed and the number of the input.
Exit code 1 where there is one. Ctrl-C shows the figures so far.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.figures import Figures, table
from tests.fuzz.target import CORPUS, load, names

MAX_SILENT_S = 120  # guessed: ten times what an input may take, and what loads torch
PROGRESS_S = 5
MEMORY = Path("/dev/shm")


@dataclass
class Job:
    """One process: a target, and how long or how many."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    guided: bool = False
    found: Path = CORPUS
    figures: Figures = field(init=False)
    ended: bool = False
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.figures = Figures(self.target)

    def run(self) -> None:
        """To the end, or to its death: that is a finding, too."""
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as work:
            words = [
                *(sys.executable, "-m", "tests.fuzz.worker", self.target, "--work", work),
                *("--seed", str(self.seed), "--found", str(self.found / self.target)),
                *(("--inputs", str(self.inputs)) if self.inputs else ()),
                *(("--seconds", str(self.seconds)) if self.seconds else ()),
                *(("--guided",) if self.guided else ()),
            ]
            errors = Path(work, "errors")
            with errors.open("w") as stream:
                self.process = subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=stream, text=True, start_new_session=True
                )
            assert self.process.stdout is not None
            watch = threading.Thread(target=self._watch, args=[Path(work, "current")])
            watch.start()
            for line in self.process.stdout:
                if line.startswith("{"):
                    self.figures = Figures(
                        **{k: v for k, v in json.loads(line).items() if k != "inputs_per_s"}
                    )
            code = self.process.wait()
            self.ended = True
            watch.join()
            if code and code != -15:
                self._died(code, Path(work, "current"), errors.read_text(errors="replace"))
            elif self.figures.findings:
                print(errors.read_text(errors="replace"), file=sys.stderr)

    def _died(self, code: int, current: Path, errors: str) -> None:
        print(f"{self.target} ended with {code}:\n{errors[-4000:]}", file=sys.stderr)
        name = f"died-{-code if code < 0 else code}-seed{self.seed}-{self.figures.inputs}"
        if code < 0 and current.exists():  # above 0 it is a fault of the target or of this
            (self.found / self.target).mkdir(parents=True, exist_ok=True)
            (self.found / self.target / name).write_bytes(current.read_bytes())
        self.figures.findings["died"] = name

    def _watch(self, current: Path) -> None:
        """Kill a process that has been at one input for too long, in whatever it hangs."""
        started = time.time()
        while not self.ended and self.process is not None and self.process.poll() is None:
            time.sleep(0.2)
            since = current.stat().st_mtime if current.exists() else started
            if time.time() - since > MAX_SILENT_S:
                self.process.kill()


def jobs_of(arguments: argparse.Namespace, chosen: list[str]) -> list[Job]:
    """What to run, by what was asked for."""
    seed, found = arguments.seed, arguments.found
    if arguments.inputs:
        shares = {name: load(name).SHARE for name in chosen}
        total = sum(shares.values())
        return [
            Job(name, seed, math.ceil(arguments.inputs * share / total), found=found)
            for name, share in shares.items()
        ]
    coverage = importlib.util.find_spec("atheris") is not None and not arguments.no_atheris
    ways = (False, True) if coverage else (False,)
    each_s = arguments.minutes * 60 * arguments.jobs / len(chosen) / len(ways)
    return [Job(name, seed, 0, each_s, guided, found=found) for name in chosen for guided in ways]


def run(jobs: list[Job], workers: int) -> bool:
    """Run them, with a line of progress now and then; False where Ctrl-C came."""
    started = shown = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(job.run) for job in jobs]
        try:
            while not all(future.done() for future in waiting):
                time.sleep(0.1)
                if time.monotonic() - shown > PROGRESS_S:
                    shown = time.monotonic()
                    _progress(jobs, shown - started)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for job in jobs:
                if job.process is not None:
                    job.process.terminate()
            return False
    for future in waiting:
        future.result()
    return True


def _progress(jobs: list[Job], seconds: float) -> None:
    inputs = sum(job.figures.inputs for job in jobs)
    found = sum(len(job.figures.findings) for job in jobs)
    ended = sum(job.ended for job in jobs)
    now = ", ".join(job.target for job in jobs if job.process is not None and not job.ended)
    print(
        f"fuzz: {seconds:.0f} s, {ended} of {len(jobs)} runs, {inputs:,} inputs, "
        f"{found} findings; now {now}",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, help="so many in all, in place of minutes")
    parser.add_argument("--targets", default="", help=f"some of {', '.join(names())}")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--found", type=Path, default=CORPUS, help="where findings are written")
    parser.add_argument("--no-atheris", action="store_true", help="mutate from the seed alone")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    arguments = parser.parse_args()
    chosen = arguments.targets.replace(",", " ").split() or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(names())}")
    jobs = jobs_of(arguments, chosen)
    finished = run(jobs, arguments.jobs)
    figures: dict[str, Figures] = {}
    for job in jobs:
        figures[job.target] = figures.get(job.target, Figures(job.target)) + job.figures
    found = {name: f.findings for name, f in figures.items() if f.findings}
    if arguments.json:
        rows = [f.to_json() for f in figures.values()]
        print(json.dumps({"seed": arguments.seed, "finished": finished, "targets": rows}, indent=2))
    else:
        print(f"seed {arguments.seed}\n{table(figures.values())}")
        for name, files in found.items():
            print("\n".join(f"found: {arguments.found / name / file}" for file in files.values()))
    return 1 if found else 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
