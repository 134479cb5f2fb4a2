"""ONNX decode and prefill against peers: `python -m benchmarks.run_onnx`.

A random checkpoint of about 300 million parameters with a window of 1,024; a prompt of 1,536 ids,
so past the window, then 64 greedy ids. Ours and onnxruntime-genai run the same weights through the
same nodes, with the same engine, in one process, alternating; genai takes the prompt in whole and
in chunks of ours. transformers (eager attention, float32, its own cache) runs the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import torch
import transformers

from benchmarks.harness import make_checkpoint
from packager.checkpoint import read_checkpoint
from packager.formats import onnx
from packager.records import Checkpoint
from runtimes.backends.onnx import open_backend
from runtimes.contract import BackendOptions

WINDOW_TOKENS = 1024
PROMPT_TOKENS = 1536
DECODE_TOKENS = 64
CHUNK_TOKENS = 512

Timed = tuple[float, float, list[int]]
"""Seconds for the prompt, median of the seconds per later id, the ids."""


def steps_s(step: Callable[[], object]) -> float:
    """Median time of a decode step: one that another process delayed does not count."""
    times = []
    for _ in range(DECODE_TOKENS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ours(folder: Path, checkpoint: Checkpoint, threads: int) -> Callable[[np.ndarray], Timed]:
    """Our backend, opened once."""
    backend = open_backend(folder, checkpoint.window, BackendOptions(4096, threads))

    def run(prompt: np.ndarray) -> Timed:
        backend.rewind(0)
        started = time.perf_counter()
        for at in range(0, len(prompt), CHUNK_TOKENS):
            logits = backend.forward(prompt[at : at + CHUNK_TOKENS].tolist())
        ids = [int(logits[-1].argmax())]
        prompt_s = time.perf_counter() - started
        step = steps_s(lambda: ids.append(int(backend.forward([ids[-1]])[-1].argmax())))
        return prompt_s, step, ids

    return run


def genai(folder: Path, threads: int, chunk: int) -> Callable[[np.ndarray], Timed]:
    """onnxruntime-genai's own loop over the same files."""
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def run(prompt: np.ndarray) -> Timed:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=4096, min_length=4096)  # does not stop by itself
        generator = og.Generator(model, parameters)
        started = time.perf_counter()
        for at in range(0, len(prompt), chunk):
            generator.append_tokens(prompt[at : at + chunk].astype(np.int32))
        generator.generate_next_token()
        prompt_s = time.perf_counter() - started
        step = steps_s(generator.generate_next_token)
        return prompt_s, step, generator.get_sequence(0)[len(prompt) :].tolist()

    return run


def reference(checkpoint: Checkpoint, threads: int) -> Callable[[np.ndarray], Timed]:
    """transformers with its own cache, one forward a step."""
    torch.set_num_threads(threads)
    model = transformers.Starcoder2ForCausalLM.from_pretrained(
        checkpoint.path, attn_implementation="eager", dtype=torch.float32
    ).eval()

    def run(prompt: np.ndarray) -> Timed:
        cache = transformers.DynamicCache(config=model.config)
        ids: list[int] = []

        def take(new: list[int]) -> None:
            out = model(
                torch.tensor(new)[None], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            ids.append(int(out.logits[0, -1].argmax()))

        with torch.no_grad():
            started = time.perf_counter()
            take(prompt.tolist())
            prompt_s = time.perf_counter() - started
            return prompt_s, steps_s(lambda: take(ids[-1:])), ids

    return run


def measure(runs: dict[str, Callable[[np.ndarray], Timed]], vocab: int, rounds: int) -> dict:
    """Medians by runner, the ratio of ours to each, and how many ids are equal to ours."""
    prompt = np.random.default_rng(0).integers(40, vocab, PROMPT_TOKENS)
    found: dict[str, list[Timed]] = {name: [] for name in runs}
    for run in runs.values():
        run(prompt[:64])  # warm
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(runs[name](prompt))
    median = {
        n: [statistics.median(t[i] for t in times) for i in (0, 1)] for n, times in found.items()
    }
    return {
        name: {
            "prefill_tokens_per_s": round(PROMPT_TOKENS / median[name][0], 1),
            "decode_tokens_per_s": round(1 / median[name][1], 2),
            "decode_spread": [round(1 / t[1], 2) for t in times],
            "ours_over_this_prefill": round(median[name][0] / median["ours"][0], 3),
            "ours_over_this_decode": round(median[name][1] / median["ours"][1], 3),
            "ids_equal_to_ours": sum(
                a == b for a, b in zip(times[0][2], found["ours"][0][2], strict=False)
            ),
        }
        for name, times in found.items()
    }


def main() -> None:
    """Every recipe and thread count in turn; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["fp32", "int8", "int4-g32", "int4-g128"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        make_checkpoint(Path(scratch) / "model", window=WINDOW_TOKENS)
        checkpoint = read_checkpoint(Path(scratch) / "model", hash_files=False)
        for recipe in arguments.recipes:
            folder = Path(scratch) / recipe
            onnx.convert(checkpoint, onnx.variant(recipe), folder)
            for threads in arguments.threads:
                runs = {
                    "ours": ours(folder, checkpoint, threads),
                    "genai": genai(folder, threads, PROMPT_TOKENS),
                    "genai, chunked": genai(folder, threads, CHUNK_TOKENS),
                }
                if recipe == "fp32":
                    runs["transformers"] = reference(checkpoint, threads)
                found = measure(runs, checkpoint.geometry.vocab, arguments.rounds)
                results[f"{recipe}, {threads} threads"] = found
                print(json.dumps({f"{recipe}, {threads} threads": found}, indent=2), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
