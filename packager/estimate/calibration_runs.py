"""Short runs of small models of random weights: what a device does, for its calibration.

Two GGUF models are written to a temporary folder by our own converter and run in a process of their
own through the shipped runtime: `python -m packager.estimate.calibration_runs`. What the weights
are does not matter to time. Takes about a minute on two cores, most of it converting.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers

from packager.checkpoint.safetensors_reader import SINGLE_NAME
from packager.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from packager.checkpoint.shapes import tensor_shapes
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.atomic import write_json
from packager.core.errors import DeviceError, StarpackError
from packager.core.records import Checkpoint, Device, Geometry, Progress, no_progress
from packager.estimate.device_calibration import Sample
from packager.estimate.estimator import case_of
from packager.formats.gguf import format as gguf
from runtimes import backends
from runtimes.backends.timing import fastest, go_to, time_prompts, time_steps, warm_up
from runtimes.contract import BackendOptions, SpecialIds, Window

CONTEXT_TOKENS = 2048
DEEP_TOKENS = 1024
PROMPT_TOKENS = 512
STEPS = 48
PROMPTS = 3
TIME_LIMIT_S = 600
# One whose step is mostly starting kernels, one whose weights no cache holds (120 MB in Q4_K_M).
SHAPES = ((2, 1024), (4, 2048))  # layers, hidden
VOCAB = 8192
RECIPE = "Q4_K_M"
BLOCK = 1 << 20  # random numbers that every tensor repeats


def take_samples(device: Device, threads: int, progress: Progress = no_progress) -> list[Sample]:
    """Steps and prompts of both models on this machine, beside what the specification says.

    Raises DeviceError where a run fails.
    """
    samples = []
    with tempfile.TemporaryDirectory(prefix="starpack-calibrate-") as folder:
        for done, (layers, hidden) in enumerate(SHAPES):
            progress("calibrate", done, len(SHAPES))
            geometry = _geometry(layers, hidden)
            model = _write_model(geometry, Path(folder) / f"{layers}x{hidden}")
            case = case_of(geometry, Window(None), gguf.variant(RECIPE), device, CONTEXT_TOKENS)
            provider = "cpu" if device.kind == "cpu" else "cuda"
            for kind, tokens, seconds in _run_child(model, threads, provider):
                prompt = kind == "prefill"
                time = case.prefill_time(0, tokens) if prompt else case.decode_time(tokens)
                samples.append(Sample(seconds, time))
    progress("calibrate", len(SHAPES), len(SHAPES))
    return samples


def _geometry(layers: int, hidden: int) -> Geometry:
    return Geometry(
        layers=layers, heads=hidden // 128, kv_heads=2, head_dim=128, hidden=hidden,
        ffn=4 * hidden, vocab=VOCAB, rope_theta=1e6, norm_eps=1e-5, tied=True,
    )  # fmt: skip


def _write_model(geometry: Geometry, folder: Path) -> Path:
    """A GGUF file of random weights; the checkpoint beside it is dropped."""
    source = folder / "checkpoint"
    source.mkdir(parents=True)
    specs = [TensorSpec(name, "F16", shape) for name, shape in tensor_shapes(geometry).items()]
    write_safetensors(source / SINGLE_NAME, specs, _random(specs), {"format": "pt"})
    _write_tokenizer(source)
    checkpoint = Checkpoint(
        path=source, revision=None, sha256="", window=Window(None), context_tokens=CONTEXT_TOKENS,
        special_ids=SpecialIds(), geometry=geometry, dtype="float16",
    )  # fmt: skip
    artifact = gguf.convert(checkpoint, gguf.variant(RECIPE), folder / "gguf")
    (source / SINGLE_NAME).unlink()
    return artifact.path / artifact.entry


def _random(specs: list[TensorSpec]) -> Iterator[tuple[str, np.ndarray]]:
    block = (np.random.default_rng(0).standard_normal(BLOCK) * 0.02).astype(np.float16)
    for spec in specs:
        rows = int(np.prod(spec.shape))
        for start in range(0, rows, BLOCK):
            yield spec.name, block[: min(BLOCK, rows - start)]


def _write_tokenizer(folder: Path) -> None:
    """What the converter reads of a tokenizer: nothing is tokenised."""
    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "aa"]
    # llama.cpp loads no vocabulary without a merge
    model = {"vocab": {word: i for i, word in enumerate(words)}, "merges": ["a a"]}
    added = [{"id": 0, "content": words[0]}]
    write_json(folder / TOKENIZER_NAME, {"model": model, "added_tokens": added})


def _run_child(model: Path, threads: int, provider: str) -> list[tuple[str, int, float]]:
    command = [
        sys.executable, "-P", "-m", "packager.estimate.calibration_runs", "--model", str(model),
        "--threads", str(threads), "--provider", provider,
    ]  # fmt: skip
    # the child is to be this very code, also where another copy of it is installed
    here = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
            env=os.environ | here,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"a model for calibration took more than {TIME_LIMIT_S} s",
            remedy="calibrate on an idle machine",
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(
            f"the calibrating process ended with code {done.returncode}: {last}",
            expected="a machine that has the device, and the engine for it",
            remedy="calibrate where the device is; a negative code is a signal",
        )
    return [tuple(row) for row in json.loads(done.stdout)]


def run(model: Path, threads: int, provider: str) -> list[tuple[str, int, float]]:
    """(kind, tokens, seconds) of a prompt and of steps near and far; in this process."""
    options = BackendOptions(CONTEXT_TOKENS, threads, provider, chunk_tokens=PROMPT_TOKENS)
    backend = backends.open_model("gguf", model, Window(None), options)
    warm_up(backend)
    prompts = time_prompts(backend, PROMPT_TOKENS, repeats=PROMPTS, limit_s=TIME_LIMIT_S)
    rows = [("prefill", PROMPT_TOKENS, fastest(prompts).seconds)]
    for depth in (0, DEEP_TOKENS):
        go_to(backend, depth)
        rows.append(("decode", depth + STEPS // 2, time_steps(backend, STEPS).p50_s))
    backend.close()
    return rows


def main() -> None:
    """The child's entry: samples on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--provider", required=True)
    try:
        print(json.dumps(run(**vars(parser.parse_args()))))
    except StarpackError as error:
        sys.exit(error.what)


if __name__ == "__main__":
    main()
