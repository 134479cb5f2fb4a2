"""ONNX through ONNX Runtime: ids to logits over a window-bounded cache of keys and values.

Knows the graph's inputs (packager/onnx_graph.py) and where in the cache each position lies. Knows
nothing of text or sampling. WINDOW: exact. What the attention kernel of the installed engine means
by a window is tried out when a model opens, on the model's own shape, and an engine that would be
off by one is refused.

On a CPU the cache is ours (cells.py), and the engine is shown only the cells that the window needs,
and a few more. On a GPU the cells are the engine's own ring: past the window, nothing can be
rewound.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.cells import Cells, EngineRing
from runtimes.contract import BackendOptions, MemoryUse, Saved, Window
from runtimes.errors import DeviceError, IntegrityError, UsageError, WindowError
from runtimes.host import resident_bytes
from runtimes.ort import engine, engine_files, open_session
from runtimes.positions import check_rewind, check_whole, check_window, checked_ids
from runtimes.rope import rope_tables

__all__ = ["REQUIRES", "OnnxBackend", "engine_files", "open_backend"]

# What importing onnxruntime loads, found by listing sys.modules: itself and numpy.
REQUIRES = ("onnxruntime",)
TESTED_VERSION = "1.32"
MODEL_NAME, PROBE_NAME = "model.onnx", "probe.onnx"
TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
# The engine looks at every cell it is shown, and showing others costs a binding per layer (.28 ms
# for 24, measured). So it is shown up to this many too many. Guessed.
SHOWN_STEP = 32
MAX_COUNT = 1 << 20  # guessed: far beyond any layer, head or vocabulary; bounds what is allocated


def open_backend(path: Path, window: Window, options: BackendOptions) -> OnnxBackend:
    """Open the model in the folder `path`.

    Raises DeviceError where the engine or the provider is missing, WindowError where the engine
    would lose the window, IntegrityError for files that are not what starpack wrote.
    """
    return OnnxBackend(path, window, options)


@dataclass(frozen=True, slots=True)
class Graph:
    """What the converter wrote down of the graph."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window_tokens: int | None
    rope_theta: float
    float_type: np.dtype

    @classmethod
    def of(cls, session: Any, path: Path) -> Graph:
        """Read it from the graph's metadata; IntegrityError where that makes no sense."""
        try:
            data = json.loads(session.get_modelmeta().custom_metadata_map["starpack"])
            kinds = {i.name: i.type for i in session.get_inputs()}
            counts = {k: data[k] for k in ("layers", "heads", "kv_heads", "head_dim", "vocab")}
            window, theta = data["window_tokens"], data["rope_theta"]
            for count in (*counts.values(), 1 if window is None else window):
                if type(count) is not int or not 0 < count <= MAX_COUNT:
                    raise ValueError(f"{count!r} is not a count")
            kind = TYPES[kinds["past_key_values.0.key"]]
            return cls(**counts, window_tokens=window, rope_theta=float(theta), float_type=kind)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the graph does not say what it is: {type(error).__name__} {error}",
                where=path,
                expected="a graph that starpack wrote",
                remedy="convert the checkpoint again",
            ) from None


class OnnxBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(self, path: Path, window: Window, options: BackendOptions) -> None:
        self._session: Any = None
        check_whole(options)
        engine()  # the library itself is not counted as the model's
        started, held = time.perf_counter(), resident_bytes()
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
        self._window_applied = self._check_window(path / PROBE_NAME)
        self._weights_bytes = max(resident_bytes() - held, 0)
        self._bind()
        self._load_s = time.perf_counter() - started
        self._held = resident_bytes()

    def _check_type(self, path: Path) -> None:
        if self._provider == "cuda" and self._graph.float_type != np.float16:
            raise UsageError(
                "this variant's attention runs in float32, for which CUDA has no kernel",
                where=path,
                expected="a variant with activations in half precision",
                remedy="convert to onnx:fp16 or onnx:int4-g32-fp16, or use --provider cpu",
            )

    def _check_window(self, probe: Path) -> str:
        """Ask the engine how many keys a query sees; WindowError where that is not the window.

        The probe is one attention node of the model's shape and window W. Position W must not see
        position 0, and must see position 1: a large value put there shows. So the next, in the
        same call, must not see 1. This needs no reference and no tolerance.
        """
        wanted = self.window.size_tokens
        if wanted is None:
            return "none"
        session = open_session(probe, self._provider, self._threads)
        for new in (1, 2):  # kernels for one query and for several may differ
            plain, out, inside = (self._probe(session, wanted, new, at) for at in (None, 0, 1))
            if (plain != out).any() or not (plain[0] != inside[0]).any():
                raise WindowError(
                    f"the attention of ONNX Runtime {engine().__version__} does not see the last "
                    f"{wanted} tokens, but another number",
                    where=probe,
                    expected=f"{TESTED_VERSION}, which starpack is tested with",
                    remedy="install the bundle with its own ./install, or run `make setup`",
                )
            if new == 2 and (plain[1] != inside[1]).any():
                raise WindowError("the second query of a call sees a token too many", where=probe)
        return str(wanted)

    def _probe(self, session: Any, past: int, new: int, marked: int | None) -> np.ndarray:
        """What `new` queries after `past` positions compute, (new, hidden), one value marked."""
        graph, kind = self._graph, self._graph.float_type
        rng = np.random.default_rng(0)
        cells = past + new if self._moves else past
        width = (graph.heads + 2 * graph.kv_heads) * graph.head_dim
        key = np.zeros((1, graph.kv_heads, cells, graph.head_dim), kind)
        key[:, :, :past] = rng.standard_normal(key[:, :, :past].shape).astype(kind)
        value = key.copy()
        if marked is not None:
            value[:, :, marked] = 1000.0
        cos, sin = rope_tables(past + new, graph.head_dim, graph.rope_theta)
        feeds = {
            "qkv": rng.standard_normal((1, new, width)).astype(kind),
            "attention_mask": np.ones((1, past + new), np.int64),
            "position_ids": np.arange(past, past + new)[None],
            "past_key_values.0.key": key,
            "past_key_values.0.value": value,
            "cos_cache": cos.astype(kind),
            "sin_cache": sin.astype(kind),
        }
        return session.run(["layers.0.mixed"], feeds)[0][0]

    def _bind(self) -> None:
        """Allocate every buffer and bind what stays bound."""
        graph, kind = self._graph, self._graph.float_type
        # the engine asks for no fewer cells than the window has
        count = max(self._cells.count, self.window.size_tokens or 0)
        shape = (1, graph.kv_heads, count, graph.head_dim)
        self._binding = self._session.io_binding()
        self._cache_bytes = 2 * graph.layers * int(np.prod(shape)) * kind.itemsize
        names = [f"{layer}.{part}" for layer in range(graph.layers) for part in ("key", "value")]
        # Keys and values of each layer, on a CPU. What is shown starts at any cell and has the same
        # shape, so its end lies as far beyond: in the next one, or in a head that is never touched.
        # They are one allocation, which numpy asks the system to put on large pages.
        self._cache: dict[str, np.ndarray] = {}
        heads = graph.kv_heads
        if self._moves:
            whole = np.zeros((len(names) * heads + 1, count, graph.head_dim), kind)
            self._cache = {name: whole[i * heads :][:heads] for i, name in enumerate(names)}
        else:
            for name in names:
                cells = np.zeros(shape, kind)
                value = engine().OrtValue.ortvalue_from_numpy(cells, self._provider, 0)
                self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
                self._binding.bind_ortvalue_output(f"present.{name}", value)
        self._show(0)
        self._ids = np.zeros((1, self.chunk_tokens), np.int64)
        self._positions = np.zeros((1, self.chunk_tokens), np.int64)
        self._mask = np.ones((1, count if self._moves else self.context_tokens), np.int64)
        self._last_logits = np.empty((1, 1, self.vocab_size), np.float32)
        self._logits_from = np.zeros(1, np.int64)
        tables = rope_tables(self.context_tokens, graph.head_dim, graph.rope_theta)
        self._tables = [table.astype(kind) for table in tables]
        for name, table in zip(("cos_cache", "sin_cache"), self._tables, strict=True):
            self._bind_input(name, table, table.shape)
        self._bind_input("logits_from", self._logits_from, (1,))
        self._bound = 0  # how many ids the inputs are bound for
        self._bound_logits: np.ndarray | None = None

    def _show(self, first: int) -> None:
        """Have the engine see the cells from `first` on as its whole cache."""
        self._shown = self._cells.count + 1  # none, should this be interrupted
        for name, cells in self._cache.items():
            self._bind_input(f"past_key_values.{name}", cells[0, first:], (1, *cells.shape))
            self._bind_output(f"present.{name}", cells[0, first:], (1, *cells.shape))
        self._shown = first

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
        count = len(new)
        cells = self._cells
        cells.make_room(count, self._move)
        if self._moves and not 0 <= cells.needed - self._shown < SHOWN_STEP:
            self._show(cells.needed)
        self._ids[0, :count] = new
        self._positions[0, :count] = np.arange(cells.position, cells.position + count)
        if count != self._bound:
            self._bound = 0  # should this be interrupted
            self._bind_input("input_ids", self._ids, (1, count))
            self._bind_input("position_ids", self._positions, (1, count))
            self._bound = count
        total = cells.filled + count - self._shown
        self._bind_input("attention_mask", self._mask, (1, total))
        self._logits_from[0] = -1 if last_only else 0
        rows = 1 if last_only else count
        logits = self._last_logits
        if rows > 1:
            logits = np.empty((1, rows, self.vocab_size), np.float32)
        if logits is not self._bound_logits:
            self._bound_logits = None
            self._bind_output("logits", logits, logits.shape)
            self._bound_logits = logits
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the engine has a class for each of its codes
            raise DeviceError(
                f"ONNX Runtime failed at position {cells.position}: {error}",
                remedy="if memory ran out, use a smaller --context or recipe",
            ) from None
        cells.position += count
        return logits[0].copy() if rows == 1 else logits[0]

    def _move(self, start: int, count: int) -> None:
        for cells in self._cache.values():
            cells[:, :count] = cells[:, start : start + count]

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        self._cells.rewind(position)

    def save(self) -> Saved | None:
        """The cells that are filled, and what lies in them; None for a ring of the engine's own."""
        if not self._moves:
            return None
        filled = self._cells.filled
        return self._cells.state, [cells[:, :filled].copy() for cells in self._cache.values()]

    def load(self, saved: Saved) -> None:
        """Put saved cells back."""
        state, caches = saved
        self._cells.rewind(0)
        for cells, kept in zip(self._cache.values(), caches, strict=True):
            cells[:, : kept.shape[1]] = kept
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
