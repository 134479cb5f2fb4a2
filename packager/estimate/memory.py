"""Bytes that a variant of a model takes in memory and in its file, exact where no run is needed.

Tensors come from the writers' own plans, so what is counted is what they write. What engines
allocate besides is told by formulas; each says what it was compared with. Knows no time and reads
no weight.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from packager.checkpoint.shapes import GeometryShapes
from packager.core.records import Device, Geometry, MemoryParts, Variant
from runtimes.backends.onnx.graph import MOST_ROWS, rows_at_once
from runtimes.backends.own_cache.kv_cells import Cells, EngineRing
from runtimes.contract import Window

CHUNK_TOKENS = 512  # BackendOptions' own: most tokens of one forward
_CELLS = 256  # llama.cpp pads its caches to this (src/llama-kv-cache*.cpp)
_EXPANDED_BYTES = 3 << 24  # codes and float16 of a stretch (STRETCH_ELEMENTS, gptq_tiles.py)
# Counted, not measured: what ExpandedLinear.expand reads and writes for each 4-bit weight, step by
# step, each of which goes through memory (runtimes/backends/gptq/tiles.py).
_EXPANDING_BYTES = 13
_ROWS = 64  # torch's int4 kernel packs blocks of so many outputs (runtimes/backends/gptq/linear.py)
_TILE_ROWS = 8  # and that for GPUs (runtimes/backends/gptq/tiles.py)
_HALF = 2  # bytes of float16 and of bfloat16
_MIB = 1 << 20
# CUDA keeps this for itself in each process: a line that others fitted to published figures of
# nvidia-smi; a planning constant here.
_CONTEXT_BYTES, _CONTEXT_BYTES_PER_MULTIPROCESSOR = 8 * _MIB, round(2.91 * _MIB)
# Planning constants for what the libraries load: on a card, code and workspaces; on a CPU, the
# whole process with its engine and no model, measured on one machine (Linux, x86-64).
_LIBRARY_BYTES = {
    "gpu": {"gguf": 110 * _MIB, "gptq": 260 * _MIB, "onnx": 330 * _MIB},
    "cpu": {"gguf": 50 * _MIB, "gptq": 230 * _MIB, "onnx": 100 * _MIB},
}


class Sizes(Protocol):
    """What of a model sets the size of buffers; a Geometry has it."""

    hidden: int
    ffn: int
    heads: int
    vocab: int


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is opened. gpu: everything on a card; kernel4: it has torch's int4 kernel.

    half: without that kernel, whether GPTQ's weights are kept in float16, or in 4 bits and expanded
    for each product.
    """

    context_tokens: int
    chunk_tokens: int = CHUNK_TOKENS
    gpu: bool = False
    kernel4: bool = True
    half: bool = True

    @property
    def expands(self) -> bool:
        """Whether GPTQ's weights are expanded for each product, rows few or many."""
        return not self.kernel4 and not self.half


def memory_parts(
    geometry: Geometry, variant: Variant, window: Window, device: Device, setting: Setting
) -> MemoryParts:
    """All that a process with one open model takes: on the card, or of a machine without one."""
    return MemoryParts(
        weights_bytes(geometry, variant, setting) + repacked_bytes(geometry, variant, setting),
        key_values_bytes(geometry, variant, window, setting),
        compute_bytes(geometry, variant, window, setting),
        context_bytes(device),
        _LIBRARY_BYTES["gpu" if setting.gpu else "cpu"][variant.format],
    )


def context_bytes(device: Device) -> int:
    """What the driver keeps for a process that uses the device."""
    if device.kind == "cpu":
        return 0
    return _CONTEXT_BYTES + device.multiprocessors * _CONTEXT_BYTES_PER_MULTIPROCESSOR


@lru_cache(maxsize=256)
def tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    """Bytes of each tensor of the variant's files by its name there, without padding."""
    module = importlib.import_module(f"packager.formats.{variant.format}.convert")
    return MappingProxyType(module.tensor_bytes(geometry, variant))


def file_bytes(geometry: Geometry, variant: Variant) -> int:
    """All tensors; headers, vocabulary and graphs, a few MB, come on top."""
    return sum(tensor_bytes(geometry, variant).values())


def weights_bytes(geometry: Geometry, variant: Variant, setting: Setting) -> int:
    """What holds the weights once the model is open: on the device, or in the process on a CPU."""
    if variant.format == "gptq":
        return _gptq_bytes(geometry, variant, setting)
    tensors = tensor_bytes(geometry, variant)
    total = sum(tensors.values())
    if variant.format == "gguf" and setting.gpu and not geometry.tied:
        # llama.cpp leaves the embedding with the CPU; a tied one it copies, for the head
        return total - tensors["token_embd.weight"]
    return total


def repacked_bytes(geometry: Geometry, variant: Variant, setting: Setting) -> int:
    """What llama.cpp keeps of the weights a second time on a CPU; a step reads that one alone."""
    if variant.format != "gguf" or setting.gpu:
        return 0
    module = importlib.import_module("packager.formats.gguf.convert")
    return module.repacked_bytes(geometry, variant)


def streamed_bytes(geometry: Geometry, variant: Variant, setting: Setting) -> int:
    """What of the weights one decode step reads: all but the embedding, unless it is the head."""
    total = weights_bytes(geometry, variant, setting)
    if variant.format == "gptq":
        if setting.expands:
            linears = geometry.parameters - geometry.vocab * geometry.hidden * (2 - geometry.tied)
            total += _EXPANDING_BYTES * linears
        if _one_with_embedding(geometry, variant, setting):
            return total
        return total - geometry.vocab * geometry.hidden * _HALF  # the head has weights of its own
    if geometry.tied or (variant.format == "gguf" and setting.gpu):
        return total
    tensors = tensor_bytes(geometry, variant)
    name = "token_embd" if variant.format == "gguf" else "embedding"
    return total - sum(size for tensor, size in tensors.items() if tensor.startswith(name))


def key_value_width(variant: Variant, gpu: bool) -> int:
    """Bytes of a key or a value: f16 in llama.cpp, bf16 in torch, the activations' type in ONNX."""
    if variant.format == "onnx":
        return _HALF if gpu or "fp16" in variant.recipe else 4
    return _HALF


def key_values_bytes(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> int:
    """What the cache of keys and values takes, allocated when the model opens."""
    width = key_value_width(variant, setting.gpu)
    cell = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * width
    cells = cache_cells(variant.format, window, setting)
    spare = 0
    if variant.format == "onnx" and width == _HALF:
        # ONNX Runtime's own node asks for no fewer cells than the window has
        cells = max(cells, window.size_tokens or 0)
        # one head more: see backends/onnx.py
        spare = 0 if setting.gpu else cells * geometry.head_dim * width
    return cells * cell + spare


def cache_cells(format: str, window: Window, setting: Setting) -> int:
    """Positions that the cache has room for."""
    context, chunk = setting.context_tokens, min(setting.chunk_tokens, setting.context_tokens)
    if format == "gguf":
        # llama_kv_cache_iswa, one sequence: window + one batch; test_memory.py compares
        whole = _padded(context, _CELLS)
        return whole if window.size_tokens is None else min(
            whole, _padded(window.size_tokens + chunk, _CELLS)
        )  # fmt: skip
    ring = EngineRing if format == "onnx" and setting.gpu else Cells
    return ring(window, context, chunk).count


def compute_bytes(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> int:
    """Buffers for what is computed on the way, at the largest chunk."""
    chunk = min(setting.chunk_tokens, setting.context_tokens)
    hidden, ffn = (4 * chunk * size for size in (geometry.hidden, geometry.ffn))
    cells = cache_cells(variant.format, window, setting)
    if variant.format == "gguf":
        return llama_compute_bytes(geometry, cells, chunk)
    seen = min(cells, setting.context_tokens)
    rows = geometry.heads // geometry.kv_heads * chunk
    if variant.format == "gptq":
        # the mask of all rows in bfloat16, and the feed-forward in float32 and bfloat16
        expanding = _EXPANDED_BYTES if setting.expands else 0
        return rows * seen * _HALF + 6 * hidden + 3 * ffn // 2 + expanding
    # Measured with onnxruntime 1.32 on one layer's shapes, hidden 1024, windows of 1,024 and 4,096:
    # 5 to 11 MB at 128 tokens (15 by this), 55 to 81 at 512 (59). Its own node keeps no scores.
    if key_value_width(variant, setting.gpu) == _HALF:
        return 7 * ffn
    # Products run in parts. StarCoder2-3B with 4-bit weights, measured: 53 to 90 MB with the first
    # chunk (44 by the first term), 110 to 147 at the window (128 by both).
    scores = 4 * geometry.heads * seen * min(chunk, rows_at_once(geometry.heads, seen))
    return 7 * ffn * min(chunk, MOST_ROWS) // chunk + 3 * scores


def llama_compute_bytes(shape: Sizes, cells: int, chunk: int, *, fused: bool = True) -> int:
    """llama.cpp's compute buffer: the larger of its attention, its feed-forward and its head.

    Found from what it reports for models of several shapes, to 10 KB:
    tests/packager/estimate/test_memory.py. fused: attention that keeps no scores.
    """
    hidden, ffn = (4 * chunk * size for size in (shape.hidden, shape.ffn))
    mask = cells * chunk * (_HALF if fused else 4)
    scores = 0 if fused else 4 * shape.heads * cells * chunk
    head = 4 * chunk * shape.vocab + 3 * hidden
    return max(mask + scores + 6 * hidden, mask + 2 * ffn, head)


def _gptq_bytes(geometry: Geometry, variant: Variant, setting: Setting) -> int:
    """What torch holds: packed planes with their scales, floats as they are."""
    module = importlib.import_module("packager.formats.gptq.convert")
    recipe, head_bits = module.parse(variant.recipe), variant.head_bits or 16
    total = geometry.vocab * geometry.hidden * _HALF  # the embedding, mapped as it is stored
    for modules in _linears(geometry):
        outputs, inputs = sum(shape[0] for shape in modules), modules[0][1]
        total += geometry.layers * (
            _linear_bytes(outputs, inputs, recipe.group, recipe.bits, not recipe.symmetric, setting)
            + outputs * _HALF
        )
    head = (geometry.vocab, geometry.hidden)
    if head_bits == 8 and not setting.gpu:
        total += head[0] * head[1] + head[0] * _HALF
    elif head_bits < 16:
        # to nearest, as runtimes/backends/gptq/model.py packs it: zero points, a bias of zeros
        group = 32 if head_bits == 4 else math.gcd(256, geometry.hidden)
        total += _linear_bytes(*head, group, head_bits, True, setting) + head[0] * _HALF
    elif not _one_with_embedding(geometry, variant, setting):
        total += head[0] * head[1] * _HALF
    return total + 4 * geometry.hidden * (4 * geometry.layers + 2)  # norms, float32


def _one_with_embedding(geometry: Geometry, variant: Variant, setting: Setting) -> bool:
    """Whether torch's head is the embedding: where it computes in float16, as the file has it."""
    return geometry.tied and not setting.kernel4 and (variant.head_bits or 16) == 16


def _linear_bytes(
    outputs: int, inputs: int, group: int, bits: int, offsets: bool, setting: Setting
) -> int:
    """4-bit planes, their scales and offsets in pairs, on a CPU these in another order again.

    Without the kernel float16, or the codes with their scales and zeros.
    """
    groups = inputs // group
    if not setting.kernel4:
        whole, scales_zeros = outputs * inputs * _HALF, outputs * groups * 2 * _HALF
        return whole * bits // 16 + scales_zeros if setting.expands else whole
    rows, planes = _padded(outputs, _TILE_ROWS if setting.gpu else _ROWS), bits // 4
    pairs = planes * groups * rows * 2 * _HALF
    # in the order of the packed halves; the plane of the high halves of 8 bits has no offsets
    again = groups * rows * _HALF * (planes + (1 if offsets or bits == 8 else 0))
    return planes * rows * inputs // 2 + pairs + (0 if setting.gpu else again)


def _linears(geometry: Geometry) -> list[list[tuple[int, ...]]]:
    """Shapes of one layer's matrices; query, key and value are one."""
    shapes = GeometryShapes(geometry)
    names = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
             ("self_attn.o_proj",), ("mlp.c_fc",), ("mlp.c_proj",))  # fmt: skip
    return [[shapes.shape(f"model.layers.0.{n}.weight") for n in group] for group in names]


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step
