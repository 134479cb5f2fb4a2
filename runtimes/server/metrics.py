"""Counters, gauges and histograms, in Prometheus' text format (exposition format 0.0.4).

Written here because it is a hundred lines, where a library would be one more package in every
bundle; the tests read the text with Prometheus' own Python client. Safe to use from any thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Bounds in seconds. Guessed: around what people notice in an editor, 150 to 800 ms, and for
# tokens from a GPU's few milliseconds to a slow processor's second.
FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0, 6.0, 15.0, 60.0)
TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 1.0)
WAIT_BOUNDS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts of values up to each bound, as Prometheus wants them; not locked by itself."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str) -> Iterator[str]:
        """Its samples, cumulative."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {total}"


class Metrics:
    """What one server counts. The attributes say what; `text` says it to Prometheus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Labels, int] = defaultdict(int)
        self._first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self._token = Histogram(TOKEN_BOUNDS_S)
        self._wait = Histogram(WAIT_BOUNDS_S)
        self._prompt_tokens = 0
        self._reused_tokens = 0
        self._generated_tokens = 0
        self._engine_errors = 0

    def request(self, dialect: str, status: int) -> None:
        """A request has been answered."""
        with self._lock:
            self._requests[("dialect", dialect), ("status", str(status))] += 1

    def waited(self, seconds: float) -> None:
        """A job has left the queue for the engine."""
        with self._lock:
            self._wait.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Since the job was taken from the queue, its prompt included."""
        with self._lock:
            self._first_token.observe(seconds)

    def tokens(self, seconds: float, count: int) -> None:
        """`count` tokens, not the first, came together after `seconds`."""
        with self._lock:
            self._token.observe(seconds / count, count)

    def run(self, prompt_tokens: int, reused_tokens: int, generated_tokens: int) -> None:
        """A run has ended."""
        with self._lock:
            self._prompt_tokens += prompt_tokens
            self._reused_tokens += reused_tokens
            self._generated_tokens += generated_tokens

    def engine_error(self) -> None:
        """The engine failed at a run."""
        with self._lock:
            self._engine_errors += 1

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Everything, with `gauges` of the moment: name to (help, value)."""
        with self._lock:
            lines = [
                *_head("requests_total", "counter", "requests answered"),
                *(
                    f"starpack_requests_total{{{_labels(labels)}}} {count}"
                    for labels, count in sorted(self._requests.items())
                ),
                *_histogram("queue_wait_seconds", "from the queue's end to the engine", self._wait),
                *_histogram("first_token_seconds", "prompt and first token", self._first_token),
                *_histogram("token_seconds", "each further token", self._token),
                *_value("prompt_tokens_total", "counter", "of prompts", self._prompt_tokens),
                *_value(
                    "prompt_tokens_reused_total", "counter",
                    "of prompts, and in the engine already", self._reused_tokens,
                ),
                *_value("generated_tokens_total", "counter", "generated", self._generated_tokens),
                *_value("engine_errors_total", "counter", "failed runs", self._engine_errors),
            ]  # fmt: skip
        for name, (text, value) in gauges.items():
            lines += _value(name, "gauge", text, value)
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP starpack_{name} {text}"
    yield f"# TYPE starpack_{name} {kind}"


def _value(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"starpack_{name} {value}"


def _histogram(name: str, text: str, histogram: Histogram) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    yield from histogram.lines(f"starpack_{name}")


def _labels(labels: Labels) -> str:
    # the values are names of ours and numbers: nothing to escape
    return ",".join(f'{name}="{value}"' for name, value in labels)
