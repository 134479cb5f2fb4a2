"""GGUF conversion against llama.cpp's own: `python -m benchmarks.convert_gguf --tokenizer FILE`.

A random checkpoint of about 300 million parameters, to Q4_K_M, alternating ours and theirs. Theirs
is convert_hf_to_gguf.py from the engine's pinned source, then llama_model_quantize, which is all
that llama-quantize calls. Each run is a process of its own; wall time and peak memory are those of
the process (for theirs: the sum, and the larger). `--tokenizer` must be StarCoder2's own
tokenizer.json, because theirs accepts tokenizers that it knows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.checkpoint import read_checkpoint
from packager.files import cache_folder
from packager.wheels import SDIST, unpack

SHAPE = dict(
    layers=24, hidden=1024, heads=16, kv_heads=2, ffn=4096, vocab=49_152, window=4096,
    context=16_384, dtype="bfloat16", shards=3,
)  # fmt: skip
ROUNDS = 3
OURS = (
    "import sys; from pathlib import Path; from packager.checkpoint import read_checkpoint;"
    "from packager.formats import gguf; m, out = map(Path, sys.argv[1:]);"
    "gguf.convert(read_checkpoint(m), gguf.variant('Q4_K_M'), out)"
)
# In a process of its own too: a child's peak begins with what its parent held when it was made.
MAKE = (
    "import sys, json; from pathlib import Path; from tests.tiny import write_checkpoint;"
    "write_checkpoint(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
)
QUANTIZE = (
    "import sys, os; from runtimes.llama import engine; api = engine().api;"
    "p = api.llama_model_quantize_default_params(); p.ftype = 15;"
    "p.nthread = len(os.sched_getaffinity(0));"
    "sys.exit(api.llama_model_quantize(*map(str.encode, sys.argv[1:]), p))"
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


def ours(model: Path, folder: Path) -> tuple[Run, Path]:
    """One pass, with no hash remembered from an earlier one."""
    environment = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    run = timed([sys.executable, "-c", OURS, model, folder / "ours"], environment)
    return run, folder / "ours" / "model.gguf"


def theirs(model: Path, folder: Path, source: Path) -> tuple[Run, Path]:
    """Two passes with a file in half precision between them."""
    half, target = folder / "half.gguf", folder / "theirs.gguf"
    script = source / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    first = timed([sys.executable, script, model, "--outfile", half, "--outtype", "f16"])
    second = timed([sys.executable, "-c", QUANTIZE, half, target])
    peak = max(first.peak_bytes, second.peak_bytes)
    return Run(first.wall_s + second.wall_s, peak), target


def main() -> None:
    """Alternate, print medians, spreads and ratios as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results: dict[str, list[Run]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        timed([sys.executable, "-c", MAKE, model, json.dumps(SHAPE)])
        shutil.copyfile(arguments.tokenizer, model / "tokenizer.json")
        parameters = read_checkpoint(model, hash_files=False).geometry.parameters
        source = unpack(cache_folder() / "sources" / SDIST, folder / "source")
        for _ in range(arguments.rounds):
            run, file = ours(model, folder)
            results["ours"].append(run)
            run, other = theirs(model, folder, source)
            results["theirs"].append(run)
        sizes = {"ours": file.stat().st_size, "theirs": other.stat().st_size}
    print(json.dumps(summary(results, sizes, parameters), indent=2))


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


if __name__ == "__main__":
    main()
