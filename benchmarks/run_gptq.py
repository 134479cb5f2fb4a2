"""GPTQ decode and prefill on a CPU: `python -m benchmarks.run_gptq --peer PYTHON`.

Two layers of StarCoder2-3B's geometry with a small vocabulary, random weights, w4g128 by our own
quantiser. Ours, and transformers' loop over GPTQModel's modules for the same files, each in a
process of its own, in turns: a prompt of 512 ids, then 64 greedy ids. `--peer` is a Python with
GPTQModel 7.6 (its own environment: it patches other libraries); GPTQ_TORCH is its path that needs
no compiler, others compile a kernel when they are first used. bf16: the unquantised model.
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
from pathlib import Path

from benchmarks.harness import make_checkpoint
from packager.calibration.sequences import SequenceOptions
from packager.checkpoint.reader import read_checkpoint
from packager.formats.gptq import format as gptq

SHAPE = dict(
    layers=2, hidden=3072, heads=24, kv_heads=2, ffn=12_288, vocab=4096, window=4096,
    context=16_384, dtype="bfloat16", shards=1,
)  # fmt: skip
PROMPT_TOKENS, DECODE_TOKENS = 512, 64
KERNELS = ("GPTQ_TORCH", "GPTQ_TORCH_FUSED", "GPTQ_TORCH_INT8", "GPTQ_TORCH_ATEN")
TIMING = f"""
import json, statistics, sys, time
def timed(take):
    take(list(range(40, 104))); take(None)
    prompt = [40 + i * 7 % 4000 for i in range({PROMPT_TOKENS})]
    times = []
    for _ in range(3):
        take(None); started = time.perf_counter(); ids = [take(prompt)]
        times.append(time.perf_counter() - started)
    steps = []
    for _ in range({DECODE_TOKENS}):
        started = time.perf_counter(); ids.append(take(ids[-1:]))
        steps.append(time.perf_counter() - started)
    print("RESULT" + json.dumps([min(times), statistics.median(steps), ids]))
"""
OURS = (
    TIMING
    + """
from pathlib import Path
from runtimes.backends.gptq.backend import open_backend
from runtimes.contract import BackendOptions, Window
backend = open_backend(Path(sys.argv[1]), Window(4096), BackendOptions(4096, int(sys.argv[2])))
def take(ids):
    if ids is None:
        return backend.rewind(0)
    return int(backend.forward(ids)[-1].argmax())
timed(take)
"""
)
THEIRS = (
    TIMING
    + """
import torch, transformers
torch.set_num_threads(int(sys.argv[2]))
if sys.argv[3] == "bf16":
    model = transformers.Starcoder2ForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
else:
    from gptqmodel import BACKEND, GPTQModel
    kind = BACKEND[sys.argv[3]]
    model = GPTQModel.load(sys.argv[1], device="cpu", backend=kind).model
model.eval()
cache = None
def take(ids):
    global cache
    if ids is None:
        cache = transformers.DynamicCache(config=model.config)
        return
    if cache is None:
        take(None)
    with torch.inference_mode():
        out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return int(out.logits[0, -1].argmax())
timed(take)
"""
)


def run(python: Path | str, code: str, *words: object) -> tuple[float, float, list[int]] | str:
    """(seconds of the prompt, of a step, ids) of one process, or why there are none."""
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), "-c", code, *map(str, words)], env=environment, capture_output=True, text=True
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not found:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return tuple(json.loads(found[0].removeprefix("RESULT")))


def main() -> None:
    """Every runner in turns; medians, and ours over theirs, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", nargs="*", default=KERNELS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, out = Path(scratch) / "model", Path(scratch) / "gptq"
        make_checkpoint(model, **SHAPE)
        sampling = SequenceOptions(sequences=26, length_tokens=512, long_sequences=0)
        sources = Path(__file__).parents[1] / "examples/demo/calibration"
        gptq.convert(
            read_checkpoint(model), gptq.variant("w4g128"), out,
            calibration=sources, sampling=sampling,
        )  # fmt: skip
        shutil.copyfile(model / "tokenizer.json", out / "tokenizer.json")  # GPTQModel asks for it
        runners = {"ours": (sys.executable, OURS, out, arguments.threads)}
        runners["bf16"] = (sys.executable, THEIRS, model, arguments.threads, "bf16")
        for kernel in arguments.kernels:
            runners[kernel] = (arguments.peer, THEIRS, out, arguments.threads, kernel)
        found: dict[str, list] = {name: [] for name in runners}
        for _ in range(arguments.rounds):
            for name, words in runners.items():
                found[name].append(run(*words))
    times = {n: [r for r in results if not isinstance(r, str)] for n, results in found.items()}
    ours = [statistics.median(r[i] for r in times["ours"]) for i in (0, 1)]
    report = {}
    for name, results in found.items():
        if not times[name]:
            report[name] = {"failed": results[0]}
            continue
        median = [statistics.median(r[i] for r in times[name]) for i in (0, 1)]
        report[name] = {
            "prompt_s": [round(r[0], 4) for r in times[name]],
            "step_s": [round(r[1], 5) for r in times[name]],
            "ours_over_this_prefill": round(median[0] / ours[0], 3),
            "ours_over_this_decode": round(median[1] / ours[1], 3),
            "ids_equal_to_ours": sum(
                a == b for a, b in zip(times[name][0][2], times["ours"][0][2], strict=True)
            ),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
