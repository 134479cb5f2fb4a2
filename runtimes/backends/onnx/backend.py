"""ONNX through ONNX Runtime: ids to logits over a window-bounded cache of keys and values.

Knows the graph's inputs (packager/formats/onnx/graph.py) and where in the cache each position
lies. Knows nothing of text or sampling. WINDOW: exact. What the attention kernel of the installed
engine means by a window is tried out when a model opens, on the model's own shape, and an engine
that would be off by one is refused.

On a CPU the cache is ours (cells.py), and the engine is shown only the cells that the window needs,
and a few more. On a GPU the cells are the engine's own ring: past the window, nothing can be
rewound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtimes.backends.checks import check_rewind, check_whole, check_window, checked_ids
from runtimes.backends.onnx.graph import Graph, check_attention, rows_at_once
from runtimes.backends.onnx.huge_pages import LEAST_BYTES, collapse_in_background, large_regions
from runtimes.backends.onnx.session import engine, engine_files, open_session
from runtimes.backends.own_cache.kv_cells import STEP, Cells, EngineRing
from runtimes.backends.own_cache.rope import rope_tables
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
    return OnnxBackend(path, window, options)


class OnnxBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(self, path: Path, window: Window, options: BackendOptions) -> None:
        self._session: Any = None
        check_whole(options)
        engine()  # the library itself is not counted as the model's
        started, held, before = time.perf_counter(), resident_bytes(), large_regions()
        self.window = window
        self.context_tokens = options.context_tokens
        self.chunk_tokens = min(options.chunk_tokens, options.context_tokens)
        self._provider, self._threads = options.provider, options.threads
        self._moves = options.provider == "cpu"
        ring = Cells if self._moves else EngineRing
        self._cells = ring(window, self.context_tokens, self.chunk_tokens)
        self._session = open_session(path / MODEL_NAME, options.provider, options.threads)
        self._graph = Graph.of(self._session, path / MODEL_NAME)
        self.vocab_size = self._graph.vocab
        check_window(self._graph.window_tokens, window, path)
        self._check_type(path)
        self._window_applied = str(window.size_tokens or "none")
        if window.size_tokens is not None:
            check_attention(self._graph, path / PROBE_NAME, options.provider, options.threads)
        self._weights_bytes = max(resident_bytes() - held, 0)
        self._bind()
        self._load_s = time.perf_counter() - started
        self._held = resident_bytes()
        if self._moves and self._weights_bytes >= LEAST_BYTES:
            collapse_in_background(before)

    def _check_type(self, path: Path) -> None:
        if self._provider == "cuda" and self._graph.float_type != np.float16:
            raise UsageError(
                "this variant's attention runs in float32, for which CUDA has no kernel",
                where=path,
                expected="a variant with activations in half precision",
                remedy="convert to onnx:fp16 or onnx:int4-g32-fp16, or use --provider cpu",
            )

    def _bind(self) -> None:
        """Allocate every buffer and bind what stays bound."""
        graph, kind = self._graph, self._graph.float_type
        self._binding = self._session.io_binding()
        self._allocate()
        self._show(0, self._count)
        self._ids = np.zeros((1, self.chunk_tokens), np.int64)
        self._positions = np.zeros((1, self.chunk_tokens), np.int64)
        self._mask = np.ones((1, self._count if self._moves else self.context_tokens), np.int64)
        self._first_position = np.zeros(1, np.int64)
        self._last_logits = np.empty((1, 1, self.vocab_size), np.float32)
        self._logits_from = np.zeros(1, np.int64)
        tables = rope_tables(self.context_tokens, graph.head_dim, graph.rope_theta)
        self._tables = [table.astype(kind) for table in tables]
        for name, table in zip(("cos_cache", "sin_cache"), self._tables, strict=True):
            self._bind_input(name, table, table.shape)
        self._bind_input("logits_from", self._logits_from, (1,))
        if graph.products:
            self._bind_input("first_position", self._first_position, (1,))
        self._bound = 0  # how many ids the inputs are bound for
        self._bound_logits: np.ndarray | None = None

    def _allocate(self) -> None:
        """The cells: on a CPU one array (cells, kv_heads, head_dim) for each layer's keys, values.

        Products have cells in that order. The engine's own node has them by head in memory. Then
        what is shown starts at any cell and has the same shape, so its end lies as far beyond: in
        the next array, or in a head that is never touched. They are one allocation, which numpy
        asks the system to put on large pages.
        """
        graph, heads = self._graph, self._graph.kv_heads
        self._count = self._cells.count
        if not graph.products:  # the engine asks for no fewer cells than the window has
            self._count = max(self._count, self.window.size_tokens or 0)
        size = (self._count, graph.head_dim)
        names = [f"{layer}.{part}" for layer in range(graph.layers) for part in ("key", "value")]
        self._cache_bytes = len(names) * heads * int(np.prod(size)) * graph.float_type.itemsize
        self._cache: dict[str, np.ndarray] = {}
        if not self._moves:
            for name in names:
                cells = np.zeros((1, heads, *size), graph.float_type)
                value = engine().OrtValue.ortvalue_from_numpy(cells, self._provider, 0)
                self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
                self._binding.bind_ortvalue_output(f"present.{name}", value)
        elif graph.products:
            shape = (len(names), self._count, heads, graph.head_dim)
            self._cache = dict(zip(names, np.zeros(shape, graph.float_type), strict=True))
        else:
            whole = np.zeros((len(names) * heads + 1, *size), graph.float_type)
            parts = (whole[i * heads :][:heads].swapaxes(0, 1) for i in range(len(names)))
            self._cache = dict(zip(names, parts, strict=True))

    def _show(self, first: int, end: int) -> None:
        """Have the engine see the cells from `first` on as its whole cache; products, to `end`."""
        self._shown = (0, 0)  # none, should this be interrupted
        heads, size = self._graph.kv_heads, self._graph.head_dim
        shape = (1, heads, self._count, size)
        if self._graph.products:
            shape = (end - first, heads, size)
        for name, cells in self._cache.items():
            self._bind_input(f"past_key_values.{name}", cells[first], shape)
            self._bind_output(f"present.{name}", cells[first], shape)
        self._shown = (first, end)

    def _bind_input(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

    def _bind_output(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

    @property
    def position(self) -> int:
        """How many ids have been taken in."""
        return self._cells.position

    @property
    def kept_from(self) -> int:
        """The least position above 0 that `rewind` can return to exactly."""
        return self._cells.kept_from

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append `ids` (1 to chunk_tokens); float32 logits, (1 or T, vocab), the caller's own."""
        new = checked_ids(self, ids)
        count, cells = len(new), self._cells
        cells.make_room(count, self._move)
        rows = 1 if last_only else count
        logits = self._last_logits
        if rows > 1:
            logits = np.empty((1, rows, self.vocab_size), np.float32)
        step = count
        if self._graph.products:
            seen = cells.filled - cells.needed + count
            step = min(count, rows_at_once(self._graph.heads, seen))
        for start in range(0, count, step):
            part = new[start : start + step]
            self._run(part, start, logits[:, start : start + len(part)] if rows > 1 else logits)
        cells.position += count
        return logits[0].copy() if rows == 1 else logits[0]

    def _run(self, new: Sequence[int], after: int, logits: np.ndarray) -> None:
        """Compute `new`, which lie `after` ids beyond the position, and their last logits."""
        cells, count = self._cells, len(new)
        position, filled = cells.position + after, cells.filled + after
        self._see(cells.needed_after(after), filled + count)
        self._ids[0, :count] = new
        self._positions[0, :count] = np.arange(position, position + count)
        if count != self._bound:
            self._bound = 0  # should this be interrupted
            self._bind_input("input_ids", self._ids, (1, count))
            self._bind_input("position_ids", self._positions, (1, count))
            self._bound = count
        first, _ = self._shown
        self._first_position[0] = cells.first + first
        if not self._graph.products:
            self._bind_input("attention_mask", self._mask, (1, filled + count - first))
        self._logits_from[0] = -logits.shape[1]
        if logits is not self._bound_logits:
            self._bound_logits = None
            self._bind_output("logits", logits, logits.shape)
            self._bound_logits = logits
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the engine has a class for each of its codes
            raise DeviceError(
                f"ONNX Runtime failed at position {position}: {error}",
                remedy=IF_MEMORY_RAN_OUT,
            ) from None

    def _see(self, needed: int, end: int) -> None:
        """Show the cells [needed, end) and less than a STEP more on either side.

        The engine looks at every cell it is shown, and showing others costs a binding per layer
        (.28 ms for 24, measured): hence steps.
        What is shown follows from the positions alone, so that a sequence goes on to the bit,
        whatever was rewound or put back before: where a sum begins says how it is rounded.
        """
        if not self._moves:
            return
        first, last = needed - needed % STEP, self._count
        if self._graph.products:
            last = min(last, end + -end % STEP)
        if (first, last) != self._shown:
            self._show(first, last)

    def _move(self, start: int, count: int) -> None:
        for cells in self._cache.values():
            cells[:count] = cells[start : start + count]

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        self._cells.rewind(position)

    def save(self) -> Saved | None:
        """The cells that are filled, and what lies in them; None for a ring of the engine's own."""
        if not self._moves:
            return None
        filled = self._cells.filled
        return self._cells.state, [cells[:filled].copy() for cells in self._cache.values()]

    def load(self, saved: Saved) -> None:
        """Put saved cells back."""
        state, caches = saved
        self._cells.rewind(0)
        for cells, kept in zip(self._cache.values(), caches, strict=True):
            cells[: len(kept)] = kept
        self._cells.state = state

    def memory_bytes(self) -> MemoryUse:
        """Measured: what the process grew by when the model was opened, and since then.

        Keys and values are exact. Weights are mapped from their file where the engine does not
        keep them in another order.
        """
        grown = resident_bytes() - self._held
        touched = self._cache_bytes if self._moves else 0
        return MemoryUse(self._weights_bytes, self._cache_bytes, max(grown - touched, 0))

    def describe(self) -> dict[str, str]:
        """Engine, version, provider and the window that it was seen to apply."""
        return {
            "engine": "ONNX Runtime",
            "version": engine().__version__,
            "window_applied": self._window_applied,
            "provider": ", ".join(self._session.get_providers()),
            "activations": str(self._graph.float_type),
            "threads": str(self._threads),
            "load_s": f"{self._load_s:.2f}",
        }

    def close(self) -> None:
        """Give memory back. Safe to call twice, and on a half-opened backend."""
        self._session = self._binding = None
        self._cache = {}
