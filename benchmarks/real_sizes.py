"""StarCoder2's own sizes through conversion and generation: `python -m benchmarks.real_sizes`.

    python -m benchmarks.real_sizes --size 3b --formats gguf:Q4_K_M,onnx:int4-g32 --work DIR

Writes a random checkpoint of the exact shape (examples/synthesise.py) unless `--model` names one,
converts it to each recipe by the command line, in a process of its own, and runs what came out:
a prompt, single tokens, a gap. Peak memory is what the operating system says of the process.
Results are kept in DIR/SIZE.json, and what is there is not done again; so it can be stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import timed
from packager import pipeline
from packager.checkpoint.reader import read_checkpoint
from packager.core.atomic import write_json
from packager.devices.cpu_benchmark import read_rate
from packager.estimate.memory import footprint
from packager.formats import Setting
from runtimes import backends
from runtimes.contract import BackendOptions
from runtimes.generation.completion import GenerateOptions
from runtimes.generation.runtime import Runtime
from runtimes.host.limits import default_threads, peak_resident_bytes
from runtimes.prompts.tokenizer import Tokenizer

# GB, of the files that others have published (bartowski, second-state and TheBloke on the hub).
# GPTQ files of 3B and 7B carry the tied embedding twice there: without that copy, .302 and .453 GB.
PUBLISHED_GB = {
    ("3b", "gguf-Q4_K_M"): 1.89, ("3b", "gguf-Q8_0"): 3.223, ("3b", "gptq-w4g128"): 1.80,
    ("7b", "gguf-Q4_K_M"): 4.40, ("7b", "gguf-Q8_0"): 7.63, ("7b", "gptq-w4g128"): 4.07,
    ("15b", "gguf-Q4_K_M"): 9.86, ("15b", "gguf-Q8_0"): 17.0, ("15b", "gptq-w4g128"): 9.2,
}  # fmt: skip
PROMPT_TOKENS, TOKENS = 512, 32
READ_BYTES, READ_S = 1 << 30, 1.0
SOURCE = Path(pipeline.__file__)
GB = 1e9


def converted(model: Path, recipe: str, work: Path, sources: Path | None) -> dict[str, object]:
    """Convert in a process of its own; wall time, peak memory, bytes."""
    command = [sys.executable, "-m", "packager", "convert", model, "--formats", recipe]
    command += ["--out", work / "out", *(["--sources", sources] if sources else [])]
    run = timed(command)
    (folder,) = (work / "out" / "variants").glob(recipe.replace(":", "-") + "-*")
    found = {file.name: file.stat().st_size for file in folder.iterdir()}
    return {"folder": str(folder), "bytes": sum(found.values()), **asdict(run)}


def ran(model: Path, folder: Path, recipe: str, depths: list[int], threads: int) -> dict:
    """Run the artifact in this process."""
    checkpoint = read_checkpoint(model)
    (variant,) = pipeline.plan([recipe])
    options = BackendOptions(max(depths) + PROMPT_TOKENS + 4 * TOKENS, threads)
    path = folder / "model.gguf" if variant.format == "gguf" else folder
    started = time.perf_counter()
    backend = backends.open_model(variant.format, path, checkpoint.window, options)
    opened_s = time.perf_counter() - started
    tokenizer = Tokenizer(model / "tokenizer.json", checkpoint.special_ids)
    with Runtime(backend, tokenizer, checkpoint.special_ids) as runtime:
        text = SOURCE.read_text(encoding="utf-8")
        answer = runtime.generate(text[:1000], GenerateOptions(max_tokens=TOKENS))
        middle = runtime.infill(text[:500], text[600:900], GenerateOptions(max_tokens=TOKENS))
        ids = (tokenizer.encode(text) * 9)[: max(depths) + PROMPT_TOKENS]
        backend.rewind(0)
        started = time.perf_counter()
        backend.forward(ids[:PROMPT_TOKENS])
        prompt_s = time.perf_counter() - started
        steps_s = {depth: _step_s(backend, ids, depth) for depth in depths}
        peak_bytes = peak_resident_bytes()  # before what follows adds to it
        rate = read_rate(threads, READ_BYTES, READ_S)
        setting = Setting(context_tokens=options.context_tokens)
        found = footprint(checkpoint.geometry, variant, checkpoint.window, setting)
    return {
        "opened_s": opened_s,
        "peak_bytes": peak_bytes,
        "generated_tokens": [len(answer.ids), len(middle.ids)],
        "prompt_tokens_per_s": PROMPT_TOKENS / prompt_s,
        "step_s": steps_s,
        "read_bytes_per_s": rate,
        "floor_s": found.streamed_bytes / rate,
        "threads": threads,
    }


def _step_s(backend, ids: list[int], depth: int) -> float:
    """Median seconds of a token after `depth` others, the prompt being in already."""
    while backend.position < depth:
        size = min(backend.chunk_tokens, depth - backend.position)
        backend.forward(ids[backend.position : backend.position + size])
    times = []
    for token_id in ids[:TOKENS]:
        started = time.perf_counter()
        backend.forward([token_id])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(size: str, results: dict[str, dict]) -> str:
    """What was found, a line for each recipe."""
    lines = ["| | wall | peak | file, GB | published | opened with | ms a token (floor) |"]
    lines.append("|---" * 7 + "|")
    for recipe, result in results.items():
        made, run = result["converted"], result.get("ran")
        published = PUBLISHED_GB.get((size, recipe.replace(":", "-")))
        cells = [recipe, f"{made['wall_s']:.0f} s", f"{made['peak_bytes'] / 1e6:.0f} MB"]
        cells += [f"{made['bytes'] / GB:.3f}", f"{published or ''}"]
        if run:
            steps = ", ".join(f"{1000 * s:.0f} at {depth}" for depth, s in run["step_s"].items())
            cells.append(f"{run['peak_bytes'] / 2**30:.2f} GiB")
            cells.append(f"{steps} ({1000 * run['floor_s']:.0f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Convert, run, keep; print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("3b", "7b", "15b"), required=True)
    parser.add_argument("--formats", required=True, help="FORMAT:RECIPE,...")
    parser.add_argument("--work", type=Path, required=True, help="folder for all of it: see README")
    parser.add_argument("--model", type=Path, help="a checkpoint that is there already")
    parser.add_argument("--sources", type=Path, help="code to calibrate GPTQ on")
    parser.add_argument("--depths", default="512", help="tokens before those that are timed")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--no-run", action="store_true", help="convert only")
    parser.add_argument("--only-run", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    words = parser.parse_args()
    model = words.model or words.work / words.size
    depths = [int(depth) for depth in words.depths.split(",")]
    if words.only_run:
        folder, recipe = words.only_run
        print(json.dumps(ran(model, Path(folder), recipe, depths, words.threads)))
        return
    if not model.exists():
        make = ["-m", "examples.synthesise", "--size", words.size, "--dtype", "bfloat16"]
        timed([sys.executable, *make, "--out", model])
    kept = words.work / f"{words.size}.json"
    results = json.loads(kept.read_bytes()) if kept.exists() else {}
    for recipe in words.formats.split(","):
        result = results.setdefault(recipe, {})
        if "converted" not in result:
            result["converted"] = converted(model, recipe, words.work, words.sources)
            write_json(kept, results)
        if "ran" not in result and not words.no_run:
            result["ran"] = _ran_apart(words, model, result["converted"]["folder"], recipe)
            write_json(kept, results)
    print(table(words.size, results))


def _ran_apart(words: argparse.Namespace, model: Path, folder: str, recipe: str) -> dict:
    """`ran` in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "benchmarks.real_sizes", "--size", words.size, "--work"]
    command += [str(words.work), "--formats", recipe, "--model", str(model), "--depths"]
    command += [words.depths, "--threads", str(words.threads), "--only-run", folder, recipe]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
