"""One decoder layer on its way through GPTQ: its forward in torch, and the Hessians it gives.

Each matrix is calibrated on what the matrices before it give once they are quantised: query, key
and value, then the output, then up, then down. The hidden states of all sequences lie in files, and
one sequence is in memory at a time. Knows nothing of the format of the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from packager.checkpoint.tensors import TensorSource
from packager.core.records import Checkpoint
from packager.formats.quant.gptq import Hessian, factorize, quantize
from packager.formats.quant.gptq_layout import Packed, Recipe, pack
from packager.formats.quant.products import prepared, product
from runtimes.backends.gptq.model import turned
from runtimes.backends.own_cache.rope import rope_tables
from runtimes.contract import Window

QUERY_BLOCK = 128  # queries per attention step: bounds the score matrix for long sequences
TOKENS = 1024  # per step of the feed-forward part, whose activations are the widest
STEPS = 4  # matrices with a Hessian of their own: query, key and value share one

Tick = Callable[[], None]
"""Called when a sequence has passed a step, and when a step's matrices are quantised."""


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of sequences of `lengths` tokens in one file: float32 (T, hidden) each."""

    file: Path
    lengths: tuple[int, ...]
    hidden: int

    @property
    def nbytes(self) -> int:
        """What the whole file has."""
        return 4 * sum(self.lengths) * self.hidden

    @contextmanager
    def written(self) -> Iterator[States]:
        """The states to write, in any order; the file has its name when the block ends well."""
        partial = replace(self, file=self.file.with_suffix(".partial"))
        with partial.file.open("wb") as stream:
            stream.truncate(self.nbytes)
        yield partial
        with partial.file.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial.file, self.file)

    def read(self, index: int) -> torch.Tensor:
        """One sequence, float32 (T, hidden)."""
        values = np.fromfile(
            self.file, np.float32, self.lengths[index] * self.hidden, offset=self._offset(index)
        )
        return torch.from_numpy(values.reshape(self.lengths[index], self.hidden))

    def write(self, index: int, states: torch.Tensor) -> None:
        """Put one sequence (T, hidden) at its place."""
        with self.file.open("r+b") as stream:
            stream.seek(self._offset(index))
            stream.write(states.contiguous().numpy().data)

    def _offset(self, index: int) -> int:
        return 4 * sum(self.lengths[:index]) * self.hidden


class LayerQuantizer:
    """Quantises the matrices of one layer; `packed` then has them by module.

    `damping` is the largest that one of them needed.
    """

    def __init__(
        self, checkpoint: Checkpoint, tensors: TensorSource, index: int, recipe: Recipe, tick: Tick
    ) -> None:
        self.geometry, self.window = checkpoint.geometry, checkpoint.window
        self.tensors, self.recipe, self.tick = tensors, recipe, tick
        self.prefix = f"model.layers.{index}."
        self.weights: dict[str, torch.Tensor] = {}  # quantised, as products take them
        self.packed: dict[str, Packed] = {}
        self.damping = 0.0

    def run(self, before: States, after: States) -> None:
        """Quantise all; `before` has the states that come in, `after` gets those that go out."""
        hidden, ffn = self.geometry.hidden, self.geometry.ffn
        inner = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self._quantize(inner, hidden, self._inputs(before))
        self._quantize(("self_attn.o_proj",), hidden, self._mixed(before, after))
        self._quantize(("mlp.c_fc",), hidden, self._residuals(before, after))
        self._quantize(("mlp.c_proj",), ffn, self._activations(after))
        for i in range(len(after.lengths)):
            state = after.read(i)
            for part in _parts(state):  # views: the sum lands in `state`
                part += self._linear("mlp.c_proj", self._activated(part))
            after.write(i, state)

    def _quantize(
        self, modules: tuple[str, ...], columns: int, inputs: Iterator[torch.Tensor]
    ) -> None:
        """Quantise matrices that are multiplied with the same inputs (T, columns)."""
        hessian = Hessian(columns)
        for x in inputs:
            hessian.add(x)
        factor = factorize(hessian, self.prefix + modules[0])
        bits, group = self.recipe.bits, self.recipe.group
        for module in modules:
            name = f"{self.prefix}{module}.weight"
            # eight bits err little enough for nothing to be gained by searching
            blocks = quantize(
                self.tensors.read(name), factor, bits, group,
                symmetric=self.recipe.symmetric, search=bits == 4, name=name,
            )  # fmt: skip
            self.weights[module] = prepared(torch.from_numpy(blocks.weights()))
            self.packed[module] = pack(blocks, bits)
        self.damping = max(self.damping, factor.damping)
        self.tick()

    def _inputs(self, before: States) -> Iterator[torch.Tensor]:
        """What query, key and value are multiplied with."""
        for i in range(len(before.lengths)):
            yield self._norm("input_layernorm", before.read(i))
            self.tick()

    def _mixed(self, before: States, after: States) -> Iterator[torch.Tensor]:
        """What the output is multiplied with; kept in `after` for the next step."""
        shape = self.geometry.head_dim
        for i in range(len(before.lengths)):
            x = self._norm("input_layernorm", before.read(i))
            q, k, v = (
                self._linear(f"self_attn.{name}_proj", x).reshape(len(x), -1, shape)
                for name in "qkv"
            )
            theta = self.geometry.rope_theta
            mixed = windowed_attention(rotate(q, theta), rotate(k, theta), v, self.window)
            mixed = mixed.reshape(len(x), -1)
            after.write(i, mixed)
            yield mixed
            self.tick()

    def _residuals(self, before: States, after: States) -> Iterator[torch.Tensor]:
        """What `c_fc` is multiplied with; the states after attention are put into `after`."""
        for i in range(len(before.lengths)):
            state = before.read(i) + self._linear("self_attn.o_proj", after.read(i))
            after.write(i, state)
            yield self._norm("post_attention_layernorm", state)
            self.tick()

    def _activations(self, after: States) -> Iterator[torch.Tensor]:
        """What `c_proj` is multiplied with."""
        for i in range(len(after.lengths)):
            for part in _parts(after.read(i)):
                yield self._activated(part)
            self.tick()

    def _activated(self, state: torch.Tensor) -> torch.Tensor:
        """From the states after attention (T, hidden) to (T, ffn)."""
        x = self._linear("mlp.c_fc", self._norm("post_attention_layernorm", state))
        return functional.gelu(x, approximate="tanh")

    def _linear(self, module: str, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weights[module]).add_(self._vector(f"{module}.bias"))

    def _norm(self, module: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self._vector(f"{module}.{kind}") for kind in ("weight", "bias"))
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.geometry.norm_eps)

    def _vector(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.tensors.read(self.prefix + name))


def _parts(state: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of TOKENS rows at a time."""
    return (state[start : start + TOKENS] for start in range(0, len(state), TOKENS))


def windowed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: Window
) -> torch.Tensor:
    """Causal attention in which query i sees key j if and only if 0 <= i - j < window.

    q is (T, heads, D), k and v are (T, kv_heads, D); the result is (T, heads, D). The same as in
    packager/checkpoint/reference.py, with which a test compares it.
    """
    length, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    # (kv_heads, group, T, D) against (kv_heads, 1, T, D): no key is copied per query head
    grouped = q.reshape(length, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    keys, values = k.transpose(0, 1)[:, None], v.transpose(0, 1)[:, None]
    out = torch.empty_like(grouped)
    size = window.size_tokens or length
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, start - size + 1)
        distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)
        out[:, :, start:stop] = functional.scaled_dot_product_attention(
            grouped[:, :, start:stop],
            keys[:, :, first:stop],
            values[:, :, first:stop],
            attn_mask=(distance >= 0) & (distance < size),
        )
    return out.permute(2, 0, 1, 3).reshape(length, heads, head_dim)


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """RoPE in the NeoX layout on (T, heads, D): each half of a head is paired with the other."""
    length, _, head_dim = x.shape
    cos, sin = (torch.from_numpy(t)[:, None] for t in rope_tables(length, head_dim, theta))
    return turned(x, cos, sin)
