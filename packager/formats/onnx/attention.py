"""Windowed attention of StarCoder2 as nodes of an ONNX graph, in two ways.

`Grouped` is ONNX Runtime's own node, GroupQueryAttention: it rotates, writes the cells and applies
the window. GPUs have kernels for it, and onnxruntime-genai knows it. On a CPU it goes through the
keys and the values once for each query head.

`Products` is for CPUs in float32: the query heads that share a head of keys are rows of one
product, so that keys and values are read once (benchmarks/LOG.md). Cells are ordered by position,
so those that the window needs lie together and are all that the engine is shown.
"""

from __future__ import annotations

import numpy as np

from packager.core.records import Geometry
from packager.formats.onnx.nodes import Nodes, Shape
from runtimes.contract import Window


class Grouped:
    """One node of the engine's own for a layer. Keys and values are (B, kv_heads, cells, head_dim).

    attention_mask (B, T): ones, as many as there are tokens by now, those that are new included.
    """

    def __init__(self, nodes: Nodes, geometry: Geometry, window: Window, kind: str) -> None:
        self._nodes, self._geometry, self._window, self._kind = nodes, geometry, window, kind
        self.cells: Shape = ["batch", geometry.kv_heads, "cells", geometry.head_dim]

    def prepare(self) -> None:
        """What all layers share: how many tokens there are, as the node has it."""
        nodes = self._nodes
        nodes.input("attention_mask", "int64", ["batch", "total"])
        # tokens in all (batch,), and one less
        filled = nodes.node(
            "ReduceSum", ["attention_mask", nodes.constant("axis_1", [1])], "filled", keepdims=0
        )
        before = nodes.node("Sub", [filled, nodes.constant("one", [1])], "before")
        nodes.cast(before, "int32", "seqlens_k")
        shape = nodes.node("Shape", ["attention_mask"], "mask_shape", start=1)
        total = nodes.node("Squeeze", [shape], "total")
        nodes.cast(total, "int32", "total_sequence_length")

    def layer(self, at: str, qkv: str, past: list[str], present: list[str]) -> str:
        """Packed (B, S, q + k + v) to (B, S, heads head_dim); `present`: `past` and the new."""
        geometry, window = self._geometry, self._window.size_tokens
        ring = {} if window is None else dict(local_window_size=window, sliding_window_cache=1)
        return self._nodes.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
             "position_ids"],
            [f"{at}.mixed", *present],
            num_heads=geometry.heads, kv_num_heads=geometry.kv_heads, do_rotary=1, **ring,
        )  # fmt: skip


class Products:
    """Products and a softmax for a layer. Keys and values are (cells, kv_heads, head_dim), B = 1.

    first_position (1): the position in the first cell. Below, n of the S new positions and the
    query heads of one head of keys (`group`) are rows together.
    """

    def __init__(self, nodes: Nodes, geometry: Geometry, window: Window, kind: str) -> None:
        self._nodes, self._geometry, self._window, self._kind = nodes, geometry, window, kind
        self._group = geometry.heads // geometry.kv_heads
        self.cells: Shape = ["cells", geometry.kv_heads, geometry.head_dim]

    def prepare(self) -> None:
        """What all layers share: the cells of the new positions, what each sees, shapes."""
        node, constant = self._nodes.node, self._nodes.constant
        geometry, group = self._geometry, self._group
        self._nodes.input("first_position", "int64", [1])
        constant("axis_1", [1])
        at = node("Sub", ["position_ids", "first_position"], "new_cells")
        at = node("Reshape", [at, constant("column", [-1, 1])], "at")  # (S, 1)
        count = node("Shape", ["past_key_values.0.key"], "count", start=0, end=1)
        scalar = node("Squeeze", [count], "cells_count")
        every = node("Range", [constant("zero", 0), scalar, constant("one", 1)], "every")
        seen = node("LessOrEqual", [every, at], "not_after")  # (S, cells)
        if self._window.size_tokens is not None:
            edge = node("Sub", [at, constant("window", self._window.size_tokens)], "edge")
            inside = node("Greater", [every, edge], "inside")
            seen = node("And", [seen, inside], "seen")
        kind = np.dtype(self._kind).type
        values = [seen, constant("nothing", kind(0)), constant("masked", kind(-np.inf))]
        added = node("Where", values, "added_2d")
        node("Unsqueeze", [added, "axis_1"], "added")  # (S, 1, cells)
        new = node("Shape", ["position_ids"], "new", start=1)
        node("Equal", [new, "axis_1"], "is_one")
        heads, kv_heads, size = geometry.heads, geometry.kv_heads, geometry.head_dim
        constant("qk_and_v", [(heads + kv_heads) * size, kv_heads * size])
        constant("q_and_k", [heads * size, kv_heads * size])
        constant("by_head", [-1, kv_heads, size])
        constant("by_group", [-1, kv_heads, group, size])
        constant("rows", [kv_heads, -1, size])
        constant("rows_by_group", [kv_heads, -1, group, size])
        constant("joined", [1, -1, heads * size])
        by_group = constant("scores_by_group", [kv_heads, -1, group])
        node("Concat", [by_group, count], "scores_4d", axis=0)
        node("Concat", [constant("scores_rows", [kv_heads, -1]), count], "scores_3d", axis=0)

    def layer(self, at: str, qkv: str, past: list[str], present: list[str]) -> str:
        """Packed (1, S, q + k + v) to (1, S, heads head_dim); `present`: `past` and the new."""
        node, geometry = self._nodes.node, self._geometry
        node("Split", [qkv, "qk_and_v"], [f"{at}.qk", f"{at}.v"], axis=-1)
        turned = node(
            "RotaryEmbedding", [f"{at}.qk", "position_ids", "cos_cache", "sin_cache"],
            f"{at}.turned", num_heads=geometry.heads + geometry.kv_heads,
        )  # fmt: skip
        node("Split", [turned, "q_and_k"], [f"{at}.q", f"{at}.k"], axis=-1)
        for name, cells, written in zip((f"{at}.k", f"{at}.v"), past, present, strict=True):
            # in place: the caller gives one buffer for both
            new = node("Reshape", [name, "by_head"], f"{name}.new")
            node("ScatterND", [cells, "at", new], written)
        q = node("Reshape", [f"{at}.q", "by_group"], f"{at}.q.by_group")
        q = node("Transpose", [q], f"{at}.q.by_kv_head", perm=[1, 0, 2, 3])
        q = node("Reshape", [q, "rows"], f"{at}.q.rows")  # (kv_heads, n group, head_dim)
        scores = node("Reshape", [self._scores(at, q, present[0]), "scores_4d"], f"{at}.scores")
        scores = node("Add", [scores, "added"], f"{at}.scores.seen")
        weights = node("Softmax", [scores], f"{at}.weights", axis=-1)
        weights = node("Reshape", [weights, "scores_3d"], f"{at}.weights.rows")
        mixed = node("FusedMatMul", [weights, present[1]], f"{at}.mixed.rows", transBatchB=1)
        mixed = node("Reshape", [mixed, "rows_by_group"], f"{at}.mixed.by_group")
        mixed = node("Transpose", [mixed], f"{at}.mixed.by_position", perm=[1, 0, 2, 3])
        return node("Reshape", [mixed, "joined"], f"{at}.mixed")

    def _scores(self, at: str, q: str, keys: str) -> str:
        """Products of queries and keys by the root of head_dim: (kv_heads, n group, cells).

        For one position the keys are the left side. The engine packs what is on the right, and so
        it packs a few queries and not all keys: half the time. With more rows it does not pay.
        """
        scale = dict(alpha=self._geometry.head_dim**-0.5, transB=1)
        one, more = Nodes(), Nodes()
        across = one.node("FusedMatMul", [keys, q], f"{at}.one.by_cell", transBatchA=1, **scale)
        one.node("Transpose", [across], f"{at}.one", perm=[0, 2, 1])
        more.node("FusedMatMul", [q, keys], f"{at}.more", transBatchB=1, **scale)
        shape = [self._geometry.kv_heads, None, None]
        sides = [side.branch(self._kind, shape) for side in (one, more)]
        return self._nodes.node(
            "If", ["is_one"], f"{at}.products", then_branch=sides[0], else_branch=sides[1]
        )
