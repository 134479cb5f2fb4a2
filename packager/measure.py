"""Speed and memory of one artifact, measured in a fresh process: `python -m packager.measure`.

The child opens the artifact as a bundle would, warms up, runs a cold prompt and a decode, and
prints one JSON object. Times are kept raw until the end; the median and the 95th percentile of
the decode steps are reported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from packager.errors import DeviceError, UsageError
from packager.records import Artifact, Checkpoint, Speed
from runtimes.contract import BackendOptions, Window
from runtimes.host import peak_resident_bytes

PROMPT_TOKENS = 1024  # what editors send at the most
DECODE_STEPS = 64
WARM_UP_TOKENS = 8
LEAST_CONTEXT_TOKENS = 2 * DECODE_STEPS
TIME_LIMIT_S = 3600


def measure_speed(artifact: Artifact, checkpoint: Checkpoint, options: BackendOptions) -> Speed:
    """Run the child and read its figures. Raises DeviceError where it fails."""
    if options.context_tokens < LEAST_CONTEXT_TOKENS:
        raise UsageError(
            f"a context of {options.context_tokens} tokens is too short to time",
            expected=f"{LEAST_CONTEXT_TOKENS} tokens or more",
            remedy="give a larger --context",
        )
    prompt_tokens = min(PROMPT_TOKENS, options.context_tokens - DECODE_STEPS)
    command = [
        sys.executable, "-P", "-m", "packager.measure",
        "--format", artifact.variant.format,
        "--model", str(artifact.path / artifact.entry),
        "--window", str(checkpoint.window.size_tokens or 0),
        "--context", str(options.context_tokens),
        "--threads", str(options.threads),
        "--provider", options.provider,
        "--gpu-layers", str(options.gpu_layers),
        "--prompt-tokens", str(prompt_tokens),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{artifact.variant.name} took more than {TIME_LIMIT_S} s to time",
            where=artifact.path,
            remedy="choose a smaller recipe or a smaller --context for this machine",
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(
            f"the measuring process ended with code {done.returncode}: {last}",
            where=artifact.path,
            remedy="a negative code is a signal; -9 most often means that memory ran out",
        )
    return Speed(**json.loads(done.stdout))


def run(arguments: argparse.Namespace) -> Speed:
    """Open, warm up, prefill, decode; in this process."""
    options = BackendOptions(
        context_tokens=arguments.context,
        threads=arguments.threads,
        provider=arguments.provider,
        gpu_layers=arguments.gpu_layers,
    )
    module = importlib.import_module(f"runtimes.backends.{arguments.format}")
    started = time.perf_counter()
    backend = module.open_backend(arguments.model, Window(arguments.window or None), options)
    load_s = time.perf_counter() - started
    ids = np.random.default_rng(0).integers(40, backend.vocab_size, arguments.prompt_tokens)
    backend.forward(ids[:WARM_UP_TOKENS].tolist())
    backend.rewind(0)
    started = time.perf_counter()
    for start in range(0, len(ids), backend.chunk_tokens):
        logits = backend.forward(ids[start : start + backend.chunk_tokens].tolist())
    first_token_s = time.perf_counter() - started
    steps_s = []
    for _ in range(DECODE_STEPS):
        started = time.perf_counter()
        logits = backend.forward([int(logits[-1].argmax())])
        steps_s.append(time.perf_counter() - started)
    memory = backend.memory_bytes()
    return Speed(
        threads=options.threads,
        prompt_tokens=len(ids),
        context_tokens=options.context_tokens,
        load_s=load_s,
        first_token_s=first_token_s,
        per_token_p50_s=float(np.percentile(steps_s, 50)),
        per_token_p95_s=float(np.percentile(steps_s, 95)),
        peak_memory_bytes=peak_resident_bytes(),
        **asdict(memory),
    )


def main() -> None:
    """The child's entry: figures on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("format", "provider"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("window", "context", "threads", "gpu-layers", "prompt-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    print(json.dumps(asdict(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
