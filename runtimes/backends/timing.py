"""How fast an open backend is: prompts taken in, single tokens after them.

For doctor, bench, the measurement before packing and a device's calibration: what two of them
found can be compared.

Times what the backend does, without tokenizer and sampler. The ids are drawn at random, with a
seed: a model takes as long for them as for any others. A limit on the time ends a measurement
early, with what it has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtimes.contract import Backend
from runtimes.errors import DeviceError

FIRST_ID = 40  # specified: StarCoder2's ids below 38 are control ids
SEED = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tokens` of a prompt, taken in at once, in `seconds`."""

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

    @property
    def p95_s(self) -> float:
        return float(np.percentile(self.seconds, 95))


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


def time_prompt(
    backend: Backend, tokens: int, limit_s: float = float("inf"), cached_tokens: int = 0
) -> Prompt:
    """Take a prompt in, all but its first `cached_tokens`; at least a chunk of it.

    Those are in the cache if the prompt was timed before. Raises RewindError where the backend
    cannot go back to them.
    """
    backend.rewind(cached_tokens)
    ids = draw_ids(backend, tokens)
    started = time.perf_counter()
    for start in range(cached_tokens, tokens, backend.chunk_tokens):
        backend.forward(ids[start : start + backend.chunk_tokens])
        if time.perf_counter() - started >= limit_s:
            break
    return Prompt(backend.position - cached_tokens, time.perf_counter() - started)


def time_prompts(
    backend: Backend,
    tokens: int,
    *,
    repeats: int,
    limit_s: float,
    cut_s: float = float("inf"),
    cached_tokens: int = 0,
) -> tuple[Prompt, ...]:
    """Take a prompt in up to `repeats` times, while the next is expected within `limit_s`.

    cut_s: when a single one ends, whatever is left of it.
    """
    timed = [time_prompt(backend, tokens, cut_s, cached_tokens)]
    while len(timed) < repeats and sum(p.seconds for p in timed) + timed[-1].seconds <= limit_s:
        timed.append(time_prompt(backend, tokens, cut_s, cached_tokens))
    return tuple(timed)


def fastest(prompts: Sequence[Prompt]) -> Prompt:
    """The one that counts: what else runs on a machine only ever adds to a time."""
    return max(prompts, key=lambda prompt: prompt.tokens_per_s)


def go_to(backend: Backend, depth: int) -> None:
    """Have `depth` tokens in the cache; continues from the backend's position if that is lower."""
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
                remedy="run `verify --full`; if the bundle is intact, the engine fails here",
            )
        token_id = int(logits[-1].argmax())
        if time.perf_counter() - begun >= limit_s:
            break
    return Steps(depth, tuple(seconds))
