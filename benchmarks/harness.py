"""What the benchmarks share: a checkpoint to work on, runs in processes of their own, ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# About 300 million parameters in StarCoder2's proportions.
SHAPE = dict(
    layers=24, hidden=1024, heads=16, kv_heads=2, ffn=4096, vocab=49_152, window=4096,
    context=16_384, dtype="bfloat16", shards=3,
)  # fmt: skip
# In a process of its own too: a child's peak begins with what its parent held when it was made.
MAKE = (
    "import sys, json; from pathlib import Path; from tests.support.tiny import write_checkpoint;"
    "write_checkpoint(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Run:
    """Wall time, time on the processor and peak memory of one process, or of a sequence of them."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def timed(
    command: list[object], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Run:
    """Run one process to its end, in `cwd` or here; raises where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
    )
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with code {process.returncode}:\n{error[-2000:]}")
    wall_s = time.perf_counter() - started
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def make_checkpoint(model: Path, **changes: object) -> None:
    """Write a random checkpoint of SHAPE, with `changes` to it."""
    timed([sys.executable, "-c", MAKE, model, json.dumps(SHAPE | changes)])


def summary(
    results: dict[str, list[Run]], sizes: dict[str, int], parameters: int
) -> dict[str, object]:
    """The ratios ours / theirs of the medians, and what every run took."""
    names = [field.name for field in fields(Run)]
    median = {
        who: {name: statistics.median(getattr(run, name) for run in runs) for name in names}
        for who, runs in results.items()
    }
    ratios = {name: median["ours"][name] / median["theirs"][name] for name in names}
    return {
        "parameters": parameters,
        "wall_ratio": ratios["wall_s"],
        "cpu_ratio": ratios["cpu_s"],
        "peak_ratio": ratios["peak_bytes"],
        "file_bytes": sizes,
        "runs": {who: [asdict(run) for run in runs] for who, runs in results.items()},
    }
