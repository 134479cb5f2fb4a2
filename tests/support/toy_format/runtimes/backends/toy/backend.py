"""The toy format through numpy: ids to logits over slots that the window bounds. WINDOW: exact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtimes.backends.checks import check_one_device, check_rewind, check_window, checked_ids
from runtimes.backends.own_cache.kv_slots import KvSlots
from runtimes.backends.own_cache.rope import rope_tables
from runtimes.contract import BackendOptions, MemoryUse, Saved, Window
from runtimes.errors import DeviceError

REQUIRES: Mapping[str, tuple[str, ...]] = {"cpu": ("numpy",)}
WINDOW: Literal["exact"] = "exact"


def open_backend(path: Path, window: Window, options: BackendOptions) -> ToyBackend:
    """Open the folder `path`."""
    check_one_device(options)
    if options.provider != "cpu":
        raise DeviceError("numpy runs on CPUs alone", remedy="use --provider cpu")
    config = json.loads((path / "config.json").read_bytes())
    check_window(config["window_tokens"], window, path)
    with np.load(path / "model.npz") as archive:
        return ToyBackend(config, {name: archive[name] for name in archive.files}, window, options)


def engine_files() -> dict[str, str]:
    """As in BackendModule: the libraries of numpy's core."""
    files = (Path(np.__file__).parent / "_core").glob("*.so")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class ToyBackend:
    """As in Backend."""

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, np.ndarray],
        window: Window,
        options: BackendOptions,
    ) -> None:
        self.config, self.weights, self.window = config, weights, window
        self.embedding = weights["model.embed_tokens.weight"]
        self.vocab_size = len(self.embedding)
        self.context_tokens, self.chunk_tokens = options.context_tokens, options.chunk_tokens
        self.slots = KvSlots(window, options.context_tokens, options.chunk_tokens)
        shape = (config["layers"], self.slots.count, config["kv_heads"], config["head_dim"])
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.tables = rope_tables(options.context_tokens, config["head_dim"], config["rope_theta"])

    @property
    def position(self) -> int:
        """As in Backend."""
        return self.slots.position

    @property
    def min_rewind(self) -> int:
        """As in Backend."""
        return self.slots.min_rewind

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """As in Backend."""
        new = checked_ids(self, ids)
        self.slots.free_slots(len(new), self._move)
        x = self.embedding[new]
        for layer in range(self.config["layers"]):
            at = f"model.layers.{layer}."
            x = x + self._attend(layer, at, self._norm(f"{at}input_layernorm", x))
            inner = self._linear(f"{at}mlp.c_fc", self._norm(f"{at}post_attention_layernorm", x))
            x = x + self._linear(f"{at}mlp.c_proj", gelu(inner))
        self.slots.position += len(new)
        x = self._norm("model.norm", x[-1:] if last_only else x)
        return x @ self.weights.get("lm_head.weight", self.embedding).T

    def _attend(self, layer: int, at: str, x: np.ndarray) -> np.ndarray:
        count, first = len(x), self.slots.filled
        end, size = first + count, self.config["head_dim"]
        q, k, v = (
            self._linear(f"{at}self_attn.{name}_proj", x).reshape(count, -1, size) for name in "qkv"
        )
        self.keys[layer, first:end], self.values[layer, first:end] = self._rotate(k), v
        keys, values = self.keys[layer, :end], self.values[layer, :end]
        # (kv_heads, group, T, D) by (kv_heads, 1, D, slots)
        grouped = self._rotate(q).reshape(count, keys.shape[1], -1, size).transpose(1, 2, 0, 3)
        scores = grouped @ keys.transpose(1, 2, 0)[:, None] / np.float32(np.sqrt(size))
        distance = np.arange(first, end)[:, None] - np.arange(end)
        hidden = distance < 0
        if self.window.size_tokens is not None:
            hidden |= distance >= self.window.size_tokens
        scores[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ values.swapaxes(0, 1)[:, None]).transpose(2, 0, 1, 3).reshape(count, -1)
        return self._linear(f"{at}self_attn.o_proj", mixed)

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        rows = slice(self.position, self.position + len(x))
        cos, sin = (table[rows, None] for table in self.tables)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self.config["norm_eps"]))
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _move(self, start: int, count: int) -> None:
        for array in (self.keys, self.values):
            array[:, :count] = array[:, start : start + count].copy()

    def rewind(self, position: int) -> None:
        """As in Backend."""
        check_rewind(self, position)
        self.slots.rewind(position)

    def save(self) -> Saved | None:
        """As in Backend."""
        filled = self.slots.filled
        return self.slots.state, self.keys[:, :filled].copy(), self.values[:, :filled].copy()

    def load(self, saved: Saved) -> None:
        """As in Backend."""
        self.slots.state, keys, values = saved
        self.keys[:, : keys.shape[1]], self.values[:, : keys.shape[1]] = keys, values

    def memory_bytes(self) -> MemoryUse:
        """As in Backend."""
        weights = sum(array.nbytes for array in self.weights.values())
        return MemoryUse(weights, self.keys.nbytes + self.values.nbytes, 0)

    def describe(self) -> dict[str, str]:
        """As in Backend."""
        window = f"{self.window.size_tokens}"
        return {"engine": "numpy", "version": np.__version__, "window_applied": window}

    def close(self) -> None:
        """As in Backend."""


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
