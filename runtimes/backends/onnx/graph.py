"""What a graph says of itself, and what its attention means by a window on the installed engine.

Knows the inputs of packager/formats/onnx/attention.py's two kinds of attention. Knows nothing of
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.backends.onnx.session import TESTED_VERSION, engine, open_session
from runtimes.backends.own_cache.rope import rope_tables
from runtimes.errors import IntegrityError, WindowError
from runtimes.trust.strict_json import parse_json

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
MAX_COUNT = 1 << 20  # guessed: far beyond any layer, head or vocabulary; bounds what is allocated
# Products leave the scores of all rows in memory, and weights made of them. Measured at 24 heads
# (benchmarks/LOG.md): other products gain 3 % from 64 to 128 rows, and nothing by more. This is 64
# rows at the window of 4,096; with 128 attention loses what they gain, and takes twice the memory.
SCORES_BYTES = 27 << 20
MAX_ROWS = 128
MIN_ROWS = 16  # guessed: fewer make the weights be read too often


@dataclass(frozen=True, slots=True)
class Graph:
    """What the converter wrote down of the graph. products: how it attends, else in one node."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window_tokens: int | None
    rope_theta: float
    float_type: np.dtype[Any]
    products: bool

    @classmethod
    def of(cls, session: Any, path: Path) -> Graph:
        """Read it from the graph's metadata; IntegrityError where that makes no sense."""
        try:
            data = parse_json(session.get_modelmeta().custom_metadata_map["starpack"])
            if not isinstance(data, dict):
                raise ValueError(f"{data!r} is no object")
            kinds = {i.name: i.type for i in session.get_inputs()}
            counts = {k: data[k] for k in ("layers", "heads", "kv_heads", "head_dim", "vocab")}
            window, theta = data["window_tokens"], data["rope_theta"]
            for count in (*counts.values(), 1 if window is None else window):
                if type(count) is not int or not 0 < count <= MAX_COUNT:
                    raise ValueError(f"{count!r} is not a count")
            kind, products = TYPES[kinds["past_key_values.0.key"]], "first_position" in kinds
            return cls(**counts, window_tokens=window, rope_theta=float(theta), float_type=kind,
                       products=products)  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"the graph does not say what it is: {type(error).__name__} {error}",
                where=path,
                expected="a graph that starpack wrote",
                remedy="convert the checkpoint again",
            ) from None


def rows_at_once(heads: int, slots: int) -> int:
    """How many new positions products take in one run, where `slots` are seen."""
    return max(MIN_ROWS, min(MAX_ROWS, SCORES_BYTES // (4 * heads * slots)))


def check_attention(graph: Graph, probe: Path, provider: str, threads: int) -> None:
    """Ask the engine how many keys a query sees; WindowError where that is not the window.

    The probe is one layer's attention, of the model's shape and window W. Position W must not see
    position 0, and must see position 1: a large value put there shows. So the next, in the same
    call, must not see 1. This needs no reference and no tolerance.
    """
    wanted = graph.window_tokens
    assert wanted is not None, "without a window there is nothing to ask"
    session = open_session(probe, provider, threads)
    slots = wanted if provider != "cpu" else None
    for new in (1, 2):  # kernels for one query and for several may differ
        plain, out, inside = (
            _probe(session, graph, wanted, new, slots or wanted + new, at) for at in (None, 0, 1)
        )
        if (plain != out).any() or not (plain[0] != inside[0]).any():
            raise _not_the_window(
                probe, f"does not see the last {wanted} tokens, but another number"
            )
        if new == 2 and (plain[1] != inside[1]).any():
            raise _not_the_window(probe, "shows the second query of a call a token too many")


def _not_the_window(probe: Path, what: str) -> WindowError:
    return WindowError(
        f"the attention of ONNX Runtime {engine().__version__} {what}",
        where=probe,
        expected=f"{TESTED_VERSION}, which starpack is tested with",
        remedy="install the bundle with its own ./install, or run `make setup`",
    )


def _probe(
    session: Any, graph: Graph, past: int, new: int, slots: int, marked: int | None
) -> np.ndarray:
    """What `new` queries after `past` positions compute, (new, hidden), one value marked."""
    kind = graph.float_type
    rng = np.random.default_rng(0)
    width = (graph.heads + 2 * graph.kv_heads) * graph.head_dim
    key = np.zeros((slots, graph.kv_heads, graph.head_dim), kind)
    key[:past] = rng.standard_normal(key[:past].shape).astype(kind)
    value = key.copy()
    if marked is not None:
        value[marked] = 1000.0
    counts = {"first_position": np.zeros(1, np.int64)}
    if not graph.products:
        key, value = (np.ascontiguousarray(a.swapaxes(0, 1)[None]) for a in (key, value))
        counts = {"attention_mask": np.ones((1, past + new), np.int64)}
    cos, sin = rope_tables(past + new, graph.head_dim, graph.rope_theta)
    feeds = {
        "qkv": rng.standard_normal((1, new, width)).astype(kind),
        "position_ids": np.arange(past, past + new)[None],
        "past_key_values.0.key": key,
        "past_key_values.0.value": value,
        "cos_cache": cos.astype(kind),
        "sin_cache": sin.astype(kind),
    }
    mixed: np.ndarray = session.run(["layers.0.mixed"], feeds | counts)[0][0]
    return mixed
