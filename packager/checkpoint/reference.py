"""The model's arithmetic in plain float32 numpy, one layer in memory at a time.

What every artifact is measured against on the build machine, at any model size. It is not itself
the authority: a test compares it with transformers' eager attention. Knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from packager.checkpoint.shapes import EMBEDDING, HEAD
from packager.checkpoint.tensors import Floats, TensorSource
from packager.core.records import Checkpoint, Geometry, Progress, no_progress
from runtimes.backends.own_cache.rope import rope_tables
from runtimes.contract import Window

Observe = Callable[[str, Floats], None]
"""observe(tensor name, float32 (T, C)): what that matrix is about to be multiplied with."""

QUERY_BLOCK = 64  # queries per attention step: their scores stay in the last cache
GELU_BLOCK = 64  # rows
_GELU_SCALE = np.float32(np.sqrt(2.0 / np.pi))


def final_states(
    checkpoint: Checkpoint,
    tensors: TensorSource,
    sequences: Sequence[np.ndarray],
    *,
    window: Window | None = None,
    observe: Observe | None = None,
    progress: Progress = no_progress,
) -> list[Floats]:
    """The states that go into the head: one float32 (T, hidden) per sequence of ids (T,).

    `window` replaces the checkpoint's, to show what losing it would do.
    """
    geometry, window = checkpoint.geometry, window or checkpoint.window
    states = [gather_rows(tensors, EMBEDDING, ids) for ids in sequences]
    for layer in range(geometry.layers):
        progress("reference", layer, geometry.layers)
        weights = _Layer(tensors, layer, observe)
        for i, state in enumerate(states):
            states[i] = weights.forward(state, geometry, window)
    progress("reference", geometry.layers, geometry.layers)
    weight, bias = tensors.read("model.norm.weight"), tensors.read("model.norm.bias")
    return [_layer_norm(state, weight, bias, geometry.norm_eps) for state in states]


class Reference:
    """Final states of a checkpoint, each sequence computed once however many artifacts ask."""

    def __init__(self, checkpoint: Checkpoint, tensors: TensorSource) -> None:
        self.checkpoint, self.tensors = checkpoint, tensors
        self._known: dict[tuple[bytes, Window, int], Floats] = {}

    def states(
        self,
        sequences: Sequence[np.ndarray],
        *,
        window: Window | None = None,
        last: int = 0,
        progress: Progress = no_progress,
    ) -> list[Floats]:
        """As final_states; of each sequence the `last` rows alone, where that is not 0."""
        window = window or self.checkpoint.window
        keys = [(np.asarray(ids, np.int64).tobytes(), window, last) for ids in sequences]
        new = {k: ids for k, ids in zip(keys, sequences, strict=True) if k not in self._known}
        found = final_states(
            self.checkpoint, self.tensors, list(new.values()), window=window, progress=progress
        )
        self._known |= {key: state[-last:].copy() for key, state in zip(new, found, strict=True)}
        return [self._known[key] for key in keys]

    def logits(self, states: Floats) -> Floats:
        """Logits (T, vocab) of final states (T, hidden)."""
        return head_logits(self.checkpoint, self.tensors, states)


def head_logits(checkpoint: Checkpoint, tensors: TensorSource, states: Floats) -> Floats:
    """Logits (T, vocab) of final states (T, hidden), the head read in blocks of rows."""
    name = EMBEDDING if checkpoint.geometry.tied else HEAD
    vocab = checkpoint.geometry.vocab
    logits = np.empty((len(states), vocab), np.float32)
    for start in range(0, vocab, 4096):
        stop = min(start + 4096, vocab)
        logits[:, start:stop] = states @ tensors.read_rows(name, start, stop).T
    return logits


class _Layer:
    """One decoder layer's float32 weights."""

    def __init__(self, tensors: TensorSource, index: int, observe: Observe | None) -> None:
        self.prefix = f"model.layers.{index}."
        self.observe = observe
        self.weights = {
            name: tensors.read(name) for name in tensors.names() if name.startswith(self.prefix)
        }

    def linear(self, module: str, x: Floats) -> Floats:
        name = f"{self.prefix}{module}.weight"
        if self.observe is not None:
            self.observe(name, x)
        return x @ self.weights[name].T + self.weights[f"{self.prefix}{module}.bias"]

    def norm(self, module: str, x: Floats, eps: float) -> Floats:
        weight = self.weights[f"{self.prefix}{module}.weight"]
        return _layer_norm(x, weight, self.weights[f"{self.prefix}{module}.bias"], eps)

    def forward(self, state: Floats, geometry: Geometry, window: Window) -> Floats:
        """Pre-norm attention and feed-forward, each with its residual: (T, hidden) to the same."""
        x = self.norm("input_layernorm", state, geometry.norm_eps)
        heads = (len(x), -1, geometry.head_dim)
        q = _rotate(self.linear("self_attn.q_proj", x).reshape(heads), geometry.rope_theta)
        k = _rotate(self.linear("self_attn.k_proj", x).reshape(heads), geometry.rope_theta)
        v = self.linear("self_attn.v_proj", x).reshape(heads)
        mixed = windowed_attention(q, k, v, window).reshape(len(x), -1)
        state = state + self.linear("self_attn.o_proj", mixed)
        x = self.norm("post_attention_layernorm", state, geometry.norm_eps)
        return state + self.linear("mlp.c_proj", _gelu(self.linear("mlp.c_fc", x)))


def windowed_attention(q: Floats, k: Floats, v: Floats, window: Window) -> Floats:
    """Causal attention in which query i sees key j if and only if 0 <= i - j < window.

    q is (T, heads, D), k and v are (T, kv_heads, D); the result is (T, heads, D).
    """
    length, heads, head_dim = q.shape
    group = heads // k.shape[1]
    q, out = q / np.float32(np.sqrt(head_dim)), np.empty_like(q)
    size = window.size_tokens or length
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, start - size + 1)
        distance = np.arange(start, stop)[:, None] - np.arange(first, stop)
        hidden = np.where((distance < 0) | (distance >= size), np.float32(-np.inf), np.float32(0))
        for head in range(k.shape[1]):
            its = slice(head * group, (head + 1) * group)  # query heads, which are rows together
            scores = q[start:stop, its].reshape(-1, head_dim) @ k[first:stop, head].T
            by_query = scores.reshape(stop - start, group, -1)
            by_query += hidden[:, None]
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ v[first:stop, head] / scores.sum(-1, keepdims=True)
            out[start:stop, its] = mixed.reshape(stop - start, group, head_dim)
    return out


def _rotate(x: Floats, theta: float) -> Floats:
    """RoPE in the NeoX layout: the first half of each head is paired with the second."""
    length, _, head_dim = x.shape
    cos, sin = (table[:, None] for table in rope_tables(length, head_dim, theta))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    centred: Floats = x - x.mean(-1, keepdims=True)
    variance: Floats = np.square(centred).mean(-1, keepdims=True)
    spread: Floats = np.sqrt(variance + np.float32(eps))
    return centred / spread * weight + bias


def _gelu(x: Floats) -> Floats:
    """The tanh form, as `gelu_pytorch_tanh`, in blocks whose powers stay in the caches."""
    out = np.empty_like(x)
    for start in range(0, len(x), GELU_BLOCK):
        rows = slice(start, start + GELU_BLOCK)
        part = x[rows]
        inner = _GELU_SCALE * (part + np.float32(0.044715) * (part * part * part))
        out[rows] = np.float32(0.5) * part * (np.float32(1.0) + np.tanh(inner))
    return out


def gather_rows(tensors: TensorSource, name: str, ids: np.ndarray) -> Floats:
    """Rows `ids` (T,) of a matrix, float32 (T, C)."""
    # one read per distinct id: a prompt has few of them, the table has 49,152
    distinct, places = np.unique(ids, return_inverse=True)
    rows = [tensors.read_rows(name, int(i), int(i) + 1)[0] for i in distinct]
    return np.stack(rows)[places]
