"""Parts NAME-exact: is the window the model's own on the device, also far past it?

A small model with the proportions of attention that StarCoder2 has (12 query heads share a key,
heads of 128) and a window of 37 runs on the device; every logit is compared with the float32
reference on the CPU, packager/checkpoint/reference.py, which itself is compared with transformers
in tests.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_check.engines import Engine, engine_of, path_of
from benchmarks.gpu_check.records import Exactness, Job, Keep, Missing
from benchmarks.gpu_check.trying import noting
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states, head_logits
from packager.checkpoint.tensors import TensorSource
from packager.core.records import Checkpoint
from packager.measurement.window_proof import reach
from runtimes.contract import Backend, BackendOptions, Window
from tests.support.tiny import write_checkpoint

SHAPE = dict(
    window=37, layers=3, hidden=1536, heads=12, kv_heads=1, ffn=2048, context=4096, seed=1,
    dtype="float16",
)  # fmt: skip
TOY_SHAPE = SHAPE | dict(hidden=128, heads=2, ffn=256, layers=2)
WINDOWS = 32  # how far the text goes on: 1,184 tokens
TOY_WINDOWS = 9
PAST_WINDOWS = 8  # up to here is "past", the rest "far"
CHUNK_TOKENS = 64
CALLS = (1, 5, CHUNK_TOKENS)  # ids per call: a step, a step with guesses, a prompt's chunk
# Past the window errors have to be like those inside it. Guessed; the tests on the CPU hold 1.3,
# but single positions at the window's end are few.
MOST_OVER_INSIDE = 2.0
NOISE_RMS = 2e-5  # measured: float32 errs by less on the CPU; below it a ratio says nothing
CLEARLY = 5.0  # guessed: a lost window has to be so many times further away than any error


@dataclass(frozen=True, slots=True)
class Case:
    """The small model: ids (T,), the reference's logits (T, vocab), those of full attention."""

    checkpoint: Checkpoint
    ids: np.ndarray
    expected: np.ndarray
    lost: np.ndarray


def missing(job: Job) -> Missing | None:
    """What has to be here for this part and is not."""
    return engine_of(job).missing(job)


def run(job: Job, keep: Keep) -> None:
    """Compare each way of the engine, each number of ids per call, with and without graphs."""
    engine = engine_of(job)
    shape = TOY_SHAPE if job.toy else SHAPE
    checkpoint = read_checkpoint(write_checkpoint(job.work / "model", **shape), hash_files=False)
    path, stands_for = engine.convert(checkpoint, engine.exact_recipe, job.work / engine.name)
    case = make_case(checkpoint, stands_for, TOY_WINDOWS if job.toy else WINDOWS)
    options = BackendOptions(len(case.ids), job.threads, job.provider, chunk_tokens=CHUNK_TOKENS)
    for way in engine.ways():
        with noting(keep, f"{engine.name}, {way.__name__}"):
            backend = way(path, checkpoint.window, options)
            try:
                compare_all(engine, case, backend, keep)
            finally:
                backend.close()


def make_case(checkpoint: Checkpoint, tensors: TensorSource, windows: int) -> Case:
    """The reference's answers on `windows` times the window."""
    length = windows * checkpoint.window.size_tokens
    ids = np.random.default_rng(5).integers(40, checkpoint.geometry.vocab, length)
    logits = [
        head_logits(checkpoint, tensors, final_states(checkpoint, tensors, [ids], window=w)[0])
        for w in (checkpoint.window, Window(None))
    ]
    return Case(checkpoint, ids, *logits)


def compare_all(engine: Engine, case: Case, backend: Backend, keep: Keep) -> None:
    """One finding for each number of ids per call, twice where the backend has graphs."""
    graphs = "cuda_graphs" in backend.describe()
    for count in CALLS:
        if graphs and count < CHUNK_TOKENS:
            keep(compare(engine, case, backend, count, "graphs"))
            backend.graphs = False
            keep(compare(engine, case, backend, count, "no graphs"))
            backend.graphs = True
        else:
            keep(compare(engine, case, backend, count, "plain"))


def compare(
    engine: Engine, case: Case, backend: Backend, ids_per_call: int, mode: str
) -> Exactness:
    """All of the text in calls of so many ids, against the reference."""
    backend.rewind(0)
    ids, size, layers = (
        case.ids,
        case.checkpoint.window.size_tokens,
        case.checkpoint.geometry.layers,
    )
    parts = [ids[i : i + ids_per_call].tolist() for i in range(0, len(ids), ids_per_call)]
    logits = np.concatenate([backend.forward(part, last_only=False) for part in parts])
    error = logits - case.expected
    edges = (0, size - 2, size + layers, PAST_WINDOWS * size, len(ids))
    inside, at, past, far = (rms(error[a:b]) for a, b in itertools.pairwise(edges))
    lost = rms((case.lost - case.expected)[size:])
    _, beyond = reach(case.checkpoint, backend)
    most = MOST_OVER_INSIDE * max(inside, NOISE_RMS)
    said = backend.describe()
    return Exactness(
        engine=f"{said['engine']} {said['version']}",
        recipe=engine.exact_recipe,
        path=path_of(said),
        mode=mode,
        ids_per_call=ids_per_call,
        window_tokens=size,
        positions=len(ids),
        inside_rms=inside,
        at_rms=at,
        past_rms=past,
        far_rms=far,
        largest=float(np.abs(error).max()),
        full_attention_rms=lost,
        beyond_reach=beyond,
        exact=bool(max(at, past, far) <= most and lost >= CLEARLY * most and not beyond),
    )


def rms(x: np.ndarray) -> float:
    """Root of the mean square; 0 of nothing."""
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0
