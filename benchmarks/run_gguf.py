"""GGUF decode and prefill against llama-bench: `python -m benchmarks.run_gguf --peer LLAMA_BENCH`.

A random checkpoint of about 300 million parameters as Q4_K_M, or `--checkpoint` as `--gguf`. Ours
is the whole runtime by its own clock: greedy, unguessed, each id chosen and turned into text.
llama-bench only computes; build it from the engine's pinned source (vendor/llama.cpp of the sdist
in the cache) as its users do, for this machine's processor:

    cmake -B DIR -DCMAKE_BUILD_TYPE=Release SOURCE && cmake --build DIR --target llama-bench

In turns, a process each. Both fill a depth, then time a prompt of 512 ids (pp512) or 64 steps
(tg64). llama-bench attends to everything, ours to the window: equal work up to 4,096 ids. From a
depth of 4,096 on, a prompt of 512 has 6 % fewer keys to look at in ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import make_checkpoint
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.formats.gguf import format as gguf
from runtimes.backends.gguf.backend import open_backend
from runtimes.contract import BackendOptions
from runtimes.generation.completion import Completion, GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.prompts.tokenizer import Tokenizer

PROMPT_TOKENS, STEPS = 512, 64
REPEATS = 3  # within each process, of which the median counts
FIRST_ID = 40  # specified: StarCoder2's ids below 38 are control ids
OURS = (
    "import sys; from benchmarks.run_gguf import child;"
    "child(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(d) for d in sys.argv[4:]])"
)

Rates = dict[str, float]
"""Tokens per second by what was timed: "pp512 @ d0", "tg64 @ d0" and so on."""


def child(checkpoint: str, file: str, threads: int, depths: list[int]) -> None:
    """Time the runtime at each depth in this process; prints Rates as JSON."""
    known = read_checkpoint(Path(checkpoint), hash_files=False)
    options = BackendOptions(max(depths) + PROMPT_TOKENS + STEPS, threads)
    backend = open_backend(Path(file), known.window, options)
    tokenizer = Tokenizer(Path(checkpoint) / TOKENIZER_NAME, known.special_ids)
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return rng.integers(FIRST_ID, backend.vocab_size, count).tolist()

    rates: Rates = {}
    with Runtime(backend, tokenizer, known.special_ids) as runtime:
        for depth in depths:
            before = draw(depth)
            _complete(runtime, [*before, *draw(8)], 8)  # fills the depth, and warms up
            prompts = [_complete(runtime, before + draw(PROMPT_TOKENS), 0) for _ in range(REPEATS)]
            assert all(p.finish.timings.reused_tokens == depth for p in prompts), (
                "the depth was lost"
            )
            rates[f"pp{PROMPT_TOKENS} @ d{depth}"] = PROMPT_TOKENS / statistics.median(
                p.finish.timings.prompt_s for p in prompts
            )
            # the first id comes from the prompt, so there are as many steps as ids after it
            runs = [_complete(runtime, before or draw(1), 1 + STEPS) for _ in range(REPEATS)]
            rates[f"tg{STEPS} @ d{depth}"] = STEPS / statistics.median(
                r.finish.timings.decode_s for r in runs
            )
    print(json.dumps(rates))


def _complete(runtime: Runtime, ids: list[int], count: int) -> Completion:
    done = join(runtime.run(ids, GenerateOptions(max_tokens=count, speculate=False)))
    if done.finish.reason != "length":
        raise SystemExit(f"the model ended by itself ({done.finish.reason}): take another one")
    return done


def ours(checkpoint: Path, file: Path, threads: int, depths: list[int]) -> Rates:
    """One process of ours."""
    command = [sys.executable, "-c", OURS, checkpoint, file, threads, *depths]
    return json.loads(_output(command).splitlines()[-1])


def theirs(peer: Path, file: Path, threads: int, depths: list[int]) -> Rates:
    """One process of llama-bench, with plain attention and chunks of 256 ids, as ours has."""
    command = [peer, "-m", file, "-t", threads, "-p", PROMPT_TOKENS, "-n", STEPS, "-r", REPEATS]
    command += ["-d", ",".join(map(str, depths)), "-b", 256, "-ub", 256, "-fa", "off", "-o", "json"]
    rates: Rates = {}
    for row in json.loads(_output(command)):
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        rates[f"{name} @ d{row['n_depth']}"] = statistics.median(row["samples_ts"])
    return rates


def _output(command: list[object]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def summary(found: dict[str, list[Rates]]) -> dict[str, object]:
    """By what was timed: the ratio of the medians, and tokens per second of every process."""
    return {
        name: {
            "ours_over_theirs": round(
                statistics.median(r[name] for r in found["ours"])
                / statistics.median(r[name] for r in found["theirs"]),
                3,
            ),
            **{who: [round(r[name], 2) for r in rates] for who, rates in found.items()},
        }
        for name in found["ours"][0]
    }


def main() -> None:
    """Every thread count in turn; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="whose tokenizer and window --gguf has")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    checkpoint, file, depths = arguments.checkpoint, arguments.gguf, arguments.depths
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is None:
            checkpoint, folder = Path(scratch) / "model", Path(scratch) / "gguf"
            make_checkpoint(checkpoint)
            gguf.convert(read_checkpoint(checkpoint), gguf.variant("Q4_K_M"), folder)
            file = folder / gguf.FILE_NAME
        for threads in arguments.threads:
            found: dict[str, list[Rates]] = {"ours": [], "theirs": []}
            for _ in range(arguments.rounds):
                found["ours"].append(ours(checkpoint, file, threads, depths))
                found["theirs"].append(theirs(arguments.peer, file, threads, depths))
            print(json.dumps({f"{threads} threads": summary(found)}, indent=2), flush=True)


if __name__ == "__main__":
    main()
