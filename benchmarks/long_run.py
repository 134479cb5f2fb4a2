"""One model over a long text, in a process of its own: `python -m benchmarks.long_run JOB`.

Memory, single steps just past the window and far out, and logits against what they should be.
Writes one JSON object, last. What to run and what it shows is in long_context.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packager.measurement.window_proof import divergence, log_softmax
from runtimes import backends
from runtimes.backends.timing import FIRST_ID
from runtimes.contract import Backend, BackendOptions, Window
from runtimes.host.limits import peak_resident_bytes, resident_bytes

CHUNK_TOKENS = 512
STEPS = 128  # timed at each place, by each of the two backends
WARM_UP_STEPS = 8
CHECK_WINDOWS = 5  # logits are compared up to so many windows: 20,480 tokens at the real one
SETTLED_WINDOWS = 2, 3  # the most memory of between is not to grow: single looks go up and down
ROWS = 64  # logits compared at a time: 13 MB for each array


@dataclass(frozen=True, slots=True)
class Job:
    """What to open and how far to go. Without `deep_tokens`, only logits are compared.

    expected: files of logits (T, vocab) that end with the window, and with the last position that
    is compared. way: how GPTQ weights are computed with, where not as usual.
    """

    format: str
    model: str
    window_tokens: int
    layers: int
    tokens: int
    expected: tuple[str, str]
    deep_tokens: int | None = None
    way: str | None = None
    threads: int = 2


def ids_of(vocab: int, tokens: int) -> list[int]:
    """The text: random ids without control ids, a longer one beginning with a shorter one."""
    return np.random.default_rng(0).integers(FIRST_ID, vocab, tokens).tolist()


def check_tokens(window_tokens: int) -> tuple[int, int]:
    """Where the two stretches end whose logits are compared, each a chunk long."""
    return window_tokens, CHECK_WINDOWS * window_tokens


def compare(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Of logits (T, vocab): the error's root mean square and greatest size, nats, and the spread.

    nats: the mean divergence. spread: the standard deviation of the logits themselves.
    """
    squares = largest = nats = spread = 0.0
    for start in range(0, len(found), ROWS):
        ours, right = found[start : start + ROWS], expected[start : start + ROWS]
        error = ours - right
        squares += float(np.square(error, dtype=np.float64).sum())
        largest = max(largest, float(np.abs(error).max()))
        nats += float(divergence(log_softmax(right), log_softmax(ours)).sum())
        spread += float(right.std(-1).sum())
    rms = (squares / found.size) ** 0.5
    return {
        "rms": rms,
        "largest": largest,
        "nats": nats / len(found),
        "spread": spread / len(found),
    }


class Walk:
    """A backend on its way through the text, and what was seen on the way."""

    def __init__(self, job: Job, ids: Sequence[int]) -> None:
        module: Any = backends.load(job.format)  # with options of its own
        options = BackendOptions(
            context_tokens=job.tokens, threads=job.threads, chunk_tokens=CHUNK_TOKENS
        )
        way = {} if job.way is None else {"kernel_path": job.way}
        self.job, self.ids = job, ids
        self.backend: Backend = module.open_backend(
            Path(job.model), Window(job.window_tokens), options, **way
        )
        self.settled_bytes = self.most_bytes = 0
        self.chunks: list[tuple[int, float]] = []  # position after it, seconds

    def go_to(self, position: int) -> None:
        """Take the text in up to `position`, and watch memory from SETTLED_WINDOWS on."""
        backend = self.backend
        while (start := backend.position) < position:
            if start % self.job.window_tokens < CHUNK_TOKENS:
                print(f"{self.job.format} at {start}", file=sys.stderr, flush=True)
            begun = time.perf_counter()
            backend.forward(self.ids[start : min(start + CHUNK_TOKENS, position)])
            if backend.position - start == CHUNK_TOKENS:
                self.chunks.append((backend.position, time.perf_counter() - begun))
            self._look()

    def _look(self) -> None:
        start, stop = (windows * self.job.window_tokens for windows in SETTLED_WINDOWS)
        if self.backend.position >= start:
            self.most_bytes = max(self.most_bytes, resident_bytes())
        if self.backend.position <= stop:
            self.settled_bytes = self.most_bytes

    def last_logits(self, position: int, rows: int) -> np.ndarray:
        """Logits (rows, vocab) of the ids before `position`; at most a chunk."""
        self.go_to(position - rows)
        return self.backend.forward(self.ids[position - rows : position], last_only=False)

    def check(self, position: int, file: str) -> dict[str, float]:
        """The stretch that ends at `position` against the logits in `file`."""
        expected = np.load(file, mmap_mode="r")
        return compare(self.last_logits(position, len(expected)), expected)

    def step_s(self) -> float:
        """Seconds of one more id."""
        start = self.backend.position
        begun = time.perf_counter()
        self.backend.forward(self.ids[start : start + 1])
        return time.perf_counter() - begun

    def chunk_s(self, start: int, stop: int) -> float:
        """Median seconds of a whole chunk between two positions."""
        return statistics.median(s for position, s in self.chunks if start < position <= stop)


def alternate(far: Walk, near: Walk) -> dict[str, object]:
    """Single steps of both in turns, so that what disturbs one disturbs the other."""
    for walk in (far, near):
        for _ in range(WARM_UP_STEPS):
            walk.step_s()
    depths = far.backend.position, near.backend.position
    pairs = [(far.step_s(), near.step_s()) for _ in range(STEPS)]
    far_s, near_s = zip(*pairs, strict=True)
    return {
        "depths": depths,
        "ratio": statistics.median(far_s) / statistics.median(near_s),
        "ratio_of_pairs": statistics.median(a / b for a, b in pairs),
        "far_s": far_s,
        "near_s": near_s,
    }


def run(job: Job) -> dict[str, object]:
    """Compare logits; with `deep_tokens`, time steps there and go on to the last token."""
    far = Walk(job, ())
    far.ids = ids_of(far.backend.vocab_size, job.tokens)
    inside, past = check_tokens(job.window_tokens)
    found: dict[str, object] = {"inside": far.check(inside, job.expected[0])}
    if job.deep_tokens is None:
        return found | {"past": far.check(past, job.expected[1])}
    near = Walk(job, far.ids)
    shallow = inside + STEPS // 2
    far.go_to(shallow)
    near.go_to(shallow)
    found["control"] = alternate(far, near)
    kept_bytes = [far.backend.memory_bytes().key_values_bytes]
    found["past"] = far.check(past, job.expected[1])
    far.go_to(job.deep_tokens)
    found["steps"] = alternate(far, near)
    last = far.last_logits(job.tokens, CHUNK_TOKENS)
    kept_bytes.append(far.backend.memory_bytes().key_values_bytes)
    tenth = job.deep_tokens // 10
    return found | {
        "tokens": far.backend.position,
        "chunk_s": [
            far.chunk_s(inside, inside + tenth),
            far.chunk_s(job.deep_tokens - tenth, job.deep_tokens),
        ],
        "key_values_bytes": kept_bytes,
        "grown_bytes": far.most_bytes - far.settled_bytes,
        "peak_bytes": peak_resident_bytes(),
        "from_start": compare(last, _again(near, job, far.ids)),
        "engine": far.backend.describe(),
    }


def _again(walk: Walk, job: Job, ids: Sequence[int]) -> np.ndarray:
    """The last chunk's logits where the text begins just before all that it can depend on.

    RoPE is relative, so they are the same but for rounding: of angles far out, among others.
    """
    reach = Window(job.window_tokens).reach_tokens(job.layers)
    chunks = -(-reach // CHUNK_TOKENS) + 1
    walk.backend.rewind(0)
    walk.ids = ids[-chunks * CHUNK_TOKENS :]
    return walk.last_logits(len(walk.ids), CHUNK_TOKENS)


def main() -> None:
    """The child's entry: a job as JSON in, JSON out."""
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
