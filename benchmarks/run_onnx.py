"""ONNX decode and prefill against peers.

python -m benchmarks.run_onnx
python -m benchmarks.run_onnx --size 3b --layers 4 --recipes int4-g32

A random checkpoint of about 300 million parameters with a window of 1,024, and a prompt of 1,536
ids, so past the window; or StarCoder2's own geometry, cut to a few layers, with a short prompt and
one past its window of 4,096. Then 64 greedy ids. Ours and onnxruntime-genai run the same weights
with the same engine, in turns; genai takes the prompt in whole and in chunks of ours. transformers
(eager attention, float32, its own cache) runs the small checkpoint. Each turn is a process of its
own: of two that one process opens, the second is up to 6 % faster, whichever it is. Ours is timed
once its weights are on large pages, a second or two after it was opened
(runtimes/backends/onnx/huge_pages.py).
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import make_checkpoint, timed
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from packager.formats.onnx import format as onnx
from runtimes.backends.onnx import huge_pages
from runtimes.backends.onnx.backend import open_backend
from runtimes.contract import BackendOptions

SMALL_WINDOW_TOKENS, SMALL_PROMPTS = 1024, [1536]
PROMPTS = [128, 4224]  # of StarCoder2's own geometry: within the window of 4,096, and past it
DECODE_TOKENS = 64
CHUNK_TOKENS = 512
CHUNKED = "genai, chunked"

Timed = tuple[float, float, list[int]]
"""Seconds for the prompt, median of the seconds per later id, the ids."""
Runner = Callable[[np.ndarray], Timed]


def steps_s(step: Callable[[], object]) -> float:
    """Median time of a decode step: one that another process delayed does not count."""
    times = []
    for _ in range(DECODE_TOKENS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ours(folder: Path, checkpoint: Checkpoint, threads: int, tokens: int) -> Runner:
    """Our backend, opened once, for sequences of up to `tokens`."""
    options = BackendOptions(tokens, threads, chunk_tokens=CHUNK_TOKENS)
    backend = open_backend(folder, checkpoint.window, options)
    huge_pages.wait()

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


def genai(folder: Path, threads: int, tokens: int, chunk: int) -> Runner:
    """onnxruntime-genai's own loop over the same weights."""
    og = importlib.import_module("onnxruntime_genai")
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def run(prompt: np.ndarray) -> Timed:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=tokens, min_length=tokens)  # does not stop itself
        generator = og.Generator(model, parameters)
        started = time.perf_counter()
        for at in range(0, len(prompt), chunk):
            generator.append_tokens(prompt[at : at + chunk].astype(np.int32))
        generator.generate_next_token()
        prompt_s = time.perf_counter() - started
        step = steps_s(generator.generate_next_token)
        return prompt_s, step, generator.get_sequence(0)[len(prompt) :].tolist()

    return run


def reference(checkpoint: Checkpoint, threads: int) -> Runner:
    """transformers with its own cache, one forward a step."""
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
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


@dataclass(frozen=True, slots=True)
class Case:
    """What every runner does: `folder` is the artifact, of `model`."""

    folder: Path
    model: Path
    threads: int
    tokens: int
    prompt: np.ndarray

    def turn(self, name: str) -> Timed:
        """Open what is called `name`, warm it, and time it."""
        checkpoint = read_checkpoint(self.model, hash_files=False)
        if name == "ours":
            run = ours(self.folder, checkpoint, self.threads, self.tokens)
        elif name == "transformers":
            run = reference(checkpoint, self.threads)
        else:
            chunk = CHUNK_TOKENS if name == CHUNKED else len(self.prompt)
            run = genai(self.folder, self.threads, self.tokens, chunk)
        run(self.prompt[:64])
        return run(self.prompt)


def measure(case: Case, names: list[str], rounds: int) -> dict[str, dict]:
    """By runner: the ratio of ours to it, medians, and how many ids are equal to ours."""
    found: dict[str, list[Timed]] = {name: [] for name in names}
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=apart, max_tasks_per_child=1) as pool:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(pool.submit(case.turn, name).result())
    median = {
        n: [statistics.median(t[i] for t in times) for i in (0, 1)] for n, times in found.items()
    }
    return {
        name: {
            "ours_over_this_decode": round(median[name][1] / median["ours"][1], 3),
            "ours_over_this_prefill": round(median[name][0] / median["ours"][0], 3),
            "decode_tokens_per_s": round(1 / median[name][1], 2),
            "prefill_tokens_per_s": round(len(case.prompt) / median[name][0], 1),
            "decode_spread": [round(1 / t[1], 2) for t in times],
            "prefill_spread": [round(len(case.prompt) / t[0], 1) for t in times],
            "ids_equal_to_ours": sum(
                a == b for a, b in zip(times[0][2], found["ours"][0][2], strict=False)
            ),
        }
        for name, times in found.items()
    }


def print_table(results: dict[str, dict[str, dict]]) -> None:
    """A row for each peer of each case, ratios first."""
    print("| case | against | decode | prefill | tokens/s: ours | theirs | prompt: ours | theirs |")
    print("|" + "---|" * 8)
    for case, found in results.items():
        mine = found["ours"]
        for name in (name for name in found if name != "ours"):
            them = found[name]
            cells = [
                case,
                name,
                *(them[f"ours_over_this_{kind}"] for kind in ("decode", "prefill")),
            ]
            for kind in ("decode", "prefill"):
                cells += [who[f"{kind}_tokens_per_s"] for who in (mine, them)]
            print("|", " | ".join(map(str, cells)), "|")


def make_model(out: Path, size: str | None, layers: int | None) -> Checkpoint:
    """The random checkpoint to run; `size` is one of StarCoder2's, else the small one."""
    if size is None:
        make_checkpoint(out, window=SMALL_WINDOW_TOKENS)
    else:
        words = [sys.executable, "-m", "examples.synthesise", "--size", size, "--out", out]
        timed([*words, "--dtype", "bfloat16", *(["--layers", layers] if layers else [])])
    return read_checkpoint(out, hash_files=False)


def main() -> None:
    """Every recipe, thread count and prompt in turn; prints JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=["3b", "7b", "15b"], help="StarCoder2's own geometry")
    parser.add_argument("--layers", type=int, help="of --size, only so many")
    parser.add_argument("--prompts", type=int, nargs="+", help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["fp32", "int8", "int4-g32", "int4-g128"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    prompts = arguments.prompts or (PROMPTS if arguments.size else SMALL_PROMPTS)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = make_model(Path(scratch) / "model", arguments.size, arguments.layers)
        # genai refuses sequences that are shorter than the window
        tokens = max(*prompts, checkpoint.window.size_tokens) + DECODE_TOKENS + 1
        rng = np.random.default_rng(0)
        for recipe in arguments.recipes:
            folder = Path(scratch) / recipe
            onnx.convert(checkpoint, onnx.variant(recipe), folder)
            for threads in arguments.threads:
                names = ["ours", "genai", CHUNKED]
                if recipe == "fp32" and not arguments.size:
                    names.append("transformers")
                for count in prompts:
                    prompt = rng.integers(40, checkpoint.geometry.vocab, count)
                    case = Case(folder, checkpoint.path, threads, tokens, prompt)
                    found = measure(case, names, arguments.rounds)
                    results[title := f"{recipe}, {threads} threads, after {count}"] = found
                    print(json.dumps({title: found}, indent=2), flush=True)
    print(json.dumps(results))
    print_table(results)


if __name__ == "__main__":
    main()
