"""The buffers of an open session, and which part of its cache the engine is shown.

Knows the graph's inputs and outputs (packager/formats/onnx/graph.py). Knows nothing of which
position lies in which slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtimes.backends.onnx.graph import Graph
from runtimes.backends.onnx.session import engine
from runtimes.backends.own_cache.kv_slots import STEP
from runtimes.backends.own_cache.rope import rope_tables


class Bindings:
    """Everything that one session reads and writes. Not for two runs at once.

    `cache` has the slots of each layer's keys and values, (slots, kv_heads, head_dim); on another
    device than the CPU it is empty, since the engine keeps them.
    """

    def __init__(
        self,
        session: Any,
        graph: Graph,
        provider: str,
        *,
        slots: int,
        context_tokens: int,
        chunk_tokens: int,
    ) -> None:
        """Allocate every buffer and bind what stays bound."""
        self.binding = session.io_binding()
        self._graph, self._count, self._on_cpu = graph, slots, provider == "cpu"
        names = [f"{layer}.{part}" for layer in range(graph.layers) for part in ("key", "value")]
        values = len(names) * graph.kv_heads * slots * graph.head_dim
        self.cache_bytes = values * graph.float_type.itemsize
        self.cache = _slots_of(graph, names, slots) if self._on_cpu else {}
        if not self._on_cpu:
            self._bind_ring(names, provider)
        self._shown = (0, 0)
        self._show(0, slots)
        self._ids = np.zeros((1, chunk_tokens), np.int64)
        self._positions = np.zeros((1, chunk_tokens), np.int64)
        self._mask = np.ones((1, slots if self._on_cpu else context_tokens), np.int64)
        self._first_position = np.zeros(1, np.int64)
        self._logits_from = np.zeros(1, np.int64)
        tables = rope_tables(context_tokens, graph.head_dim, graph.rope_theta)
        self._tables = [table.astype(graph.float_type) for table in tables]
        for name, table in zip(("cos_cache", "sin_cache"), self._tables, strict=True):
            self._bind_input(name, table, table.shape)
        self._bind_input("logits_from", self._logits_from, (1,))
        if graph.products:
            self._bind_input("first_position", self._first_position, (1,))
        self._bound = 0  # how many ids the inputs are bound for
        self._bound_logits: np.ndarray | None = None

    def prepare(
        self, ids: np.ndarray, position: int, first: int, first_visible: int, filled: int
    ) -> None:
        """Take `ids` (T,) for positions from `position` on; `first` is the position in slot 0.

        The slots [first_visible, filled) are seen and the T behind them written.
        """
        count = len(ids)
        self._see(first_visible, filled + count)
        self._ids[0, :count] = ids
        self._positions[0, :count] = np.arange(position, position + count)
        if count != self._bound:
            self._bound = 0  # should this be interrupted
            self._bind_input("input_ids", self._ids, (1, count))
            self._bind_input("position_ids", self._positions, (1, count))
            self._bound = count
        start, _ = self._shown
        self._first_position[0] = first + start
        if not self._graph.products:
            self._bind_input("attention_mask", self._mask, (1, filled + count - start))

    def receive(self, logits: np.ndarray) -> None:
        """Have the logits of the last ids written to `logits` (1, rows, vocab)."""
        self._logits_from[0] = -logits.shape[1]
        if logits is not self._bound_logits:
            self._bound_logits = None
            self._bind_output("logits", logits, logits.shape)
            self._bound_logits = logits

    def _see(self, first_visible: int, end: int) -> None:
        """Show the slots [first_visible, end) and less than a STEP more on either side.

        The engine looks at every slot it is shown, and showing others costs a binding per layer
        (.28 ms for 24, measured): hence steps.
        What is shown follows from the positions alone. So a sequence continues alike to the bit,
        whatever was rewound or put back before: where a sum begins decides how it is rounded.
        """
        if not self._on_cpu:
            return
        first, last = first_visible - first_visible % STEP, self._count
        if self._graph.products:
            last = min(last, end + -end % STEP)
        if (first, last) != self._shown:
            self._show(first, last)

    def _show(self, first: int, end: int) -> None:
        """Have the engine see the slots from `first` on as all of its cache; products, to `end`."""
        self._shown = (0, 0)  # none, should this be interrupted
        heads, size = self._graph.kv_heads, self._graph.head_dim
        shape: tuple[int, ...] = (1, heads, self._count, size)
        if self._graph.products:
            shape = (end - first, heads, size)
        for name, slots in self.cache.items():
            self._bind_input(f"past_key_values.{name}", slots[first], shape)
            self._bind_output(f"present.{name}", slots[first], shape)
        self._shown = (first, end)

    def _bind_ring(self, names: list[str], provider: str) -> None:
        """KvSlots on the device, which the engine keeps as a ring."""
        graph = self._graph
        for name in names:
            slots = np.zeros((1, graph.kv_heads, self._count, graph.head_dim), graph.float_type)
            value = engine().OrtValue.ortvalue_from_numpy(slots, provider, 0)
            self.binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self.binding.bind_ortvalue_output(f"present.{name}", value)

    def _bind_input(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self.binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

    def _bind_output(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self.binding.bind_output(name, "cpu", 0, array.dtype, shape, array.ctypes.data)


def _slots_of(graph: Graph, names: list[str], count: int) -> dict[str, np.ndarray]:
    """On a CPU, one array (slots, kv_heads, head_dim) for each of `names`.

    Products have slots in that order. The engine's own node has them by head in memory. Then
    what is shown starts at any slot and has the same shape, so its end lies as far beyond: in
    the next array, or in a head that is never touched. They are one allocation, which numpy
    asks the system to put on large pages.
    """
    heads, width = graph.kv_heads, graph.head_dim
    if graph.products:
        arrays = np.zeros((len(names), count, heads, width), graph.float_type)
        return dict(zip(names, arrays, strict=True))
    every = np.zeros((len(names) * heads + 1, count, width), graph.float_type)
    parts = (every[i * heads :][:heads].swapaxes(0, 1) for i in range(len(names)))
    return dict(zip(names, parts, strict=True))
