"""How fast an open backend is: prompts taken in, single tokens after them. For doctor and bench.

Times what the backend does, without tokenizer and sampler. The ids are drawn at random, with a
seed: a model takes as long for them as for any others. A limit on the time ends a measurement
early, with what it has.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from runtimes.contract import Backend
from runtimes.errors import DeviceError

FIRST_ID = 40  # specified: StarCoder2's ids below 38 are control ids
SEED = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tokens` of a prompt, taken in with nothing in the cache, in `seconds`."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Steps:
    """Single-token steps after `depth_tokens` tokens, in seconds as they were timed."""

    depth_tokens: int
    seconds: tuple[float, ...]

    @property
    def p50_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p90_s(self) -> float:
        return float(np.percentile(self.seconds, 90))


def draw_ids(backend: Backend, count: int) -> list[int]:
    """The same ids for the same vocabulary, none of them a control id."""
    first = min(FIRST_ID, backend.vocab_size - 1)
    ids = np.random.default_rng(SEED).integers(first, backend.vocab_size, count)
    return [int(token_id) for token_id in ids]


def warm_up(backend: Backend) -> None:
    """Let the engine allocate and choose before anything is timed."""
    backend.rewind(0)
    backend.forward(draw_ids(backend, min(8, backend.chunk_tokens)))
    backend.forward(draw_ids(backend, 1))
    backend.rewind(0)


def time_prompt(backend: Backend, tokens: int, limit_s: float = float("inf")) -> Prompt:
    """Take a prompt in from the start; at least a chunk of it."""
    backend.rewind(0)
    ids = draw_ids(backend, tokens)
    started = time.perf_counter()
    for start in range(0, tokens, backend.chunk_tokens):
        backend.forward(ids[start : start + backend.chunk_tokens])
        if time.perf_counter() - started >= limit_s:
            break
    return Prompt(backend.position, time.perf_counter() - started)


def go_to(backend: Backend, depth: int) -> None:
    """Have `depth` tokens in the cache; goes on from where the backend is, if that is not past."""
    if backend.position > depth:
        backend.rewind(0)
    ids = draw_ids(backend, depth)
    while backend.position < depth:
        start = backend.position
        backend.forward(ids[start : min(start + backend.chunk_tokens, depth)])


def time_steps(backend: Backend, count: int, limit_s: float = float("inf")) -> Steps:
    """Take single tokens in from where the backend is, each the likeliest after the one before.

    At least one. Raises DeviceError where the model's logits are not numbers.
    """
    depth, (token_id,) = backend.position, draw_ids(backend, 1)
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < count:
        started = time.perf_counter()
        logits = backend.forward([token_id])
        seconds.append(time.perf_counter() - started)
        if not np.isfinite(logits).all():
            raise DeviceError(
                "the model's answer is not made of numbers",
                expected="finite logits",
                remedy="run `verify --full`; if the bundle is whole, the engine does not work here",
            )
        token_id = int(logits[-1].argmax())
        if time.perf_counter() - begun >= limit_s:
            break
    return Steps(depth, tuple(seconds))
