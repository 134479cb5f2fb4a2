"""ONNX through ONNX Runtime: ids to logits over a window-bounded cache of keys and values.

Knows the graph's inputs (packager/formats/onnx/graph.py) and where in the cache each position
lies. Knows nothing of text or sampling. WINDOW: exact. What the attention kernel of the installed
engine means by a window is tried out when a model opens, on the model's own shape, and an engine
that would be off by one is refused.

On a CPU the cache is ours (own_cache/kv_slots.py): the engine is shown the slots that the window
needs, and a few more. On a GPU the engine keeps the slots as a ring: past the window, nothing can
be rewound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtimes.backends.checks import check_one_device, check_rewind, check_window, checked_ids
from runtimes.backends.onnx.bindings import Bindings
from runtimes.backends.onnx.graph import Graph, check_attention, rows_at_once
from runtimes.backends.onnx.huge_pages import MIN_BYTES, collapse_in_background, large_regions
from runtimes.backends.onnx.session import engine, engine_files, open_session
from runtimes.backends.own_cache.kv_slots import KvSlots, RingCache
from runtimes.contract import BackendOptions, MemoryUse, Saved, Window
from runtimes.errors import IF_MEMORY_RAN_OUT, DeviceError, UsageError
from runtimes.host.limits import resident_bytes

__all__ = ["REQUIRES", "WINDOW", "OnnxBackend", "engine_files", "open_backend"]

# What importing onnxruntime loads, found by listing sys.modules: itself and numpy.
REQUIRES: Mapping[str, tuple[str, ...]] = {"cpu": ("onnxruntime",)}
WINDOW: Literal["exact"] = "exact"
MODEL_NAME, PROBE_NAME = "model.onnx", "probe.onnx"


def open_backend(path: Path, window: Window, options: BackendOptions) -> OnnxBackend:
    """Open the model in the folder `path`.

    Raises DeviceError where the engine or the provider is missing, WindowError where the engine
    would lose the window, IntegrityError for files that are not what starpack wrote.
    """
    check_one_device(options)
    engine()  # the library itself is not counted as the model's
    started_s, held, before = time.perf_counter(), resident_bytes(), large_regions()
    session = open_session(path / MODEL_NAME, options.provider, options.threads)
    graph = Graph.of(session, path / MODEL_NAME)
    check_window(graph.window_tokens, window, path)
    if options.provider == "cuda" and graph.float_type != np.float16:
        raise UsageError(
            "this variant's attention runs in float32, for which CUDA has no kernel",
            where=path,
            expected="a variant with activations in half precision",
            remedy="convert to onnx:fp16 or onnx:int4-g32-fp16, or use --provider cpu",
        )
    if window.size_tokens is not None:
        check_attention(graph, path / PROBE_NAME, options.provider, options.threads)
    weights_bytes = max(resident_bytes() - held, 0)
    backend = OnnxBackend(session, graph, window, options, weights_bytes, started_s)
    if options.provider == "cpu" and weights_bytes >= MIN_BYTES:
        collapse_in_background(before)
    return backend


class OnnxBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(
        self,
        session: Any,
        graph: Graph,
        window: Window,
        options: BackendOptions,
        weights_bytes: int,
        started_s: float,
    ) -> None:
        """started_s: when opening began, by time.perf_counter."""
        self.window = window
        self.vocab_size = graph.vocab
        self.context_tokens = options.context_tokens
        self.chunk_tokens = min(options.chunk_tokens, options.context_tokens)
        self._session, self._graph, self._threads = session, graph, options.threads
        self._moves = options.provider == "cpu"
        ring = KvSlots if self._moves else RingCache
        self._slots = ring(window, self.context_tokens, self.chunk_tokens)
        count = self._slots.count
        if not graph.products:  # the engine asks for no fewer slots than the window has
            count = max(count, window.size_tokens or 0)
        self._bindings = Bindings(
            session,
            graph,
            options.provider,
            slots=count,
            context_tokens=self.context_tokens,
            chunk_tokens=self.chunk_tokens,
        )
        self._cache = self._bindings.cache
        self._last_logits = np.empty((1, 1, self.vocab_size), np.float32)
        self._weights_bytes = weights_bytes
        self._load_s = time.perf_counter() - started_s
        self._held = resident_bytes()

    @property
    def position(self) -> int:
        """How many ids have been taken in."""
        return self._slots.position

    @property
    def min_rewind(self) -> int:
        """The least position above 0 that `rewind` can return to exactly."""
        return self._slots.min_rewind

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append `ids` (1 to chunk_tokens); float32 logits, (1 or T, vocab), the caller's own."""
        new = checked_ids(self, ids)
        count, slots = len(new), self._slots
        slots.free_slots(count, self._move)
        rows = 1 if last_only else count
        logits = self._last_logits
        if rows > 1:
            logits = np.empty((1, rows, self.vocab_size), np.float32)
        step = count
        if self._graph.products:
            seen = slots.filled - slots.first_visible + count
            step = min(count, rows_at_once(self._graph.heads, seen))
        for start in range(0, count, step):
            part = new[start : start + step]
            self._run(part, start, logits[:, start : start + len(part)] if rows > 1 else logits)
        slots.position += count
        found: np.ndarray = logits[0]
        return found.copy() if rows == 1 else found

    def _run(self, new: np.ndarray, after: int, logits: np.ndarray) -> None:
        """Compute `new`, which lie `after` ids beyond the position, and their last logits."""
        slots = self._slots
        position, filled = slots.position + after, slots.filled + after
        self._bindings.prepare(new, position, slots.first, slots.first_visible_after(after), filled)
        self._bindings.receive(logits)
        try:
            self._session.run_with_iobinding(self._bindings.binding)
        except Exception as error:  # the engine has a class for each of its codes
            raise DeviceError(
                f"ONNX Runtime failed at position {position}: {error}",
                remedy=IF_MEMORY_RAN_OUT,
            ) from None

    def _move(self, start: int, count: int) -> None:
        for slots in self._cache.values():
            slots[:count] = slots[start : start + count]

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        self._slots.rewind(position)

    def save(self) -> Saved | None:
        """The slots that are filled, and what lies in them; None for a ring of the engine's own."""
        if not self._moves:
            return None
        filled = self._slots.filled
        return self._slots.state, [slots[:filled].copy() for slots in self._cache.values()]

    def load(self, saved: Saved) -> None:
        """Put saved slots back."""
        state, caches = saved
        self._slots.rewind(0)
        for slots, kept in zip(self._cache.values(), caches, strict=True):
            slots[: len(kept)] = kept
        self._slots.state = state

    def memory_bytes(self) -> MemoryUse:
        """Measured: what the process grew by when the model was opened, and since then.

        Keys and values are exact. Weights are mapped from their file where the engine does not
        keep them in another order.
        """
        grown = resident_bytes() - self._held
        touched = self._bindings.cache_bytes if self._moves else 0
        return MemoryUse(self._weights_bytes, self._bindings.cache_bytes, max(grown - touched, 0))

    def describe(self) -> dict[str, str]:
        """Engine, version, provider and the window that it was seen to apply."""
        return {
            "engine": "ONNX Runtime",
            "version": engine().__version__,
            "window_applied": str(self.window.size_tokens or "none"),
            "provider": ", ".join(self._session.get_providers()),
            "activations": str(self._graph.float_type),
            "threads": str(self._threads),
            "load_s": f"{self._load_s:.2f}",
        }

    def close(self) -> None:
        """Give memory back. Safe to call twice."""
        for name in ("_session", "_bindings", "_cache"):
            vars(self).pop(name, None)
