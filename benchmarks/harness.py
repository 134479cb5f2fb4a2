"""What the benchmarks share: a checkpoint to work on, runs in processes of their own, ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# About 300 million parameters in StarCoder2's proportions.
SHAPE = dict(
    layers=24, hidden=1024, heads=16, kv_heads=2, ffn=4096, vocab=49_152, window=4096,
    context=16_384, dtype="bfloat16", shards=3,
)  # fmt: skip
# In a process of its own too: a child's peak begins with what its parent held when it was made.
MAKE = (
    "import sys, json; from pathlib import Path; from tests.tiny import write_checkpoint;"
    "write_checkpoint(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of wall time and peak resident bytes of one process, or of a sequence of them."""

    wall_s: float
    peak_bytes: int


def timed(command: list[object], environment: Mapping[str, str] | None = None) -> Run:
    """Run one process to its end; raises where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with code {process.returncode}:\n{error[-2000:]}")
    return Run(time.perf_counter() - started, usage.ru_maxrss * 1024)


def make_checkpoint(model: Path, **changes: object) -> None:
    """Write a random checkpoint of SHAPE, with `changes` to it."""
    timed([sys.executable, "-c", MAKE, model, json.dumps(SHAPE | changes)])


def summary(
    results: dict[str, list[Run]], sizes: dict[str, int], parameters: int
) -> dict[str, object]:
    """Medians, raw values and the ratio ours / theirs."""
    median = {
        who: (
            statistics.median(run.wall_s for run in runs),
            statistics.median(run.peak_bytes for run in runs),
        )
        for who, runs in results.items()
    }
    return {
        "parameters": parameters,
        "wall_ratio": median["ours"][0] / median["theirs"][0],
        "peak_ratio": median["ours"][1] / median["theirs"][1],
        "file_bytes": sizes,
        "runs": {
            who: [{"wall_s": r.wall_s, "peak_bytes": r.peak_bytes} for r in runs]
            for who, runs in results.items()
        },
    }
