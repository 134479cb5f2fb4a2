"""What ONNX Runtime takes for an open folder, on a CPU or on a GPU."""

from __future__ import annotations

from packager.core.records import Geometry, Variant
from packager.formats import Footprint, Setting
from packager.formats.onnx.recipe import parse, tensor_bytes
from packager.formats.sizes import HALF_BYTES, MIB, activation_bytes
from runtimes.backends.onnx.graph import MAX_ROWS, rows_at_once
from runtimes.backends.own_cache.kv_slots import KvSlots, RingCache
from runtimes.contract import Window

# Planning constants: on a card, code and workspaces; on a CPU, the whole process with its engine
# and no model, measured on one machine (Linux, x86-64).
GPU_LIBRARY_BYTES, CPU_LIBRARY_BYTES = 330 * MIB, 100 * MIB


def footprint(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> Footprint:
    """As in Format."""
    chunk = min(setting.chunk_tokens, setting.context_tokens)
    half = setting.gpu or parse(variant.recipe).activations == "float16"
    cells = (RingCache if setting.gpu else KvSlots)(window, setting.context_tokens, chunk).count
    tensors = tensor_bytes(geometry, variant)
    weights = sum(tensors.values())
    embedding = sum(size for name, size in tensors.items() if name.startswith("embedding"))
    family = _weight_family(variant)
    return Footprint(
        weights_bytes=weights,
        key_values_bytes=_key_values_bytes(geometry, window, cells, half, setting.gpu),
        compute_bytes=_compute_bytes(geometry, min(cells, setting.context_tokens), chunk, half),
        library_bytes=GPU_LIBRARY_BYTES if setting.gpu else CPU_LIBRARY_BYTES,
        streamed_bytes=weights if geometry.tied else weights - embedding,
        value_bytes=HALF_BYTES if half else 4,
        attended_cells=window.size_tokens or setting.context_tokens,
        family=family,
        product="float" if family == "float" else "expand",
        # the engine's own ring cannot
        rewinds=not setting.gpu,
    )


def _weight_family(variant: Variant) -> str:
    if variant.bits >= 16:
        return "float"
    return "block8" if variant.bits >= 8 else "group4"


def _key_values_bytes(geometry: Geometry, window: Window, cells: int, half: bool, gpu: bool) -> int:
    if not half:
        return cells * geometry.position_bytes(4)
    # ONNX Runtime's own node asks for no fewer cells than the window has
    cells = max(cells, window.size_tokens or 0)
    # on a CPU one head more: see runtimes/backends/onnx/backend.py
    spare = 0 if gpu else cells * geometry.head_dim * HALF_BYTES
    return cells * geometry.position_bytes(HALF_BYTES) + spare


def _compute_bytes(geometry: Geometry, seen: int, chunk: int, half: bool) -> int:
    """Buffers for what is computed on the way, at the largest chunk.

    Measured with onnxruntime 1.32 on one layer's shapes, hidden 1024, windows of 1,024 and 4,096: 5
    to 11 MB at 128 tokens (15 by this), 55 to 81 at 512 (59). Its own node keeps no scores.
    """
    _, ffn = activation_bytes(geometry, chunk)
    if half:
        return 7 * ffn
    # Products run in parts. StarCoder2-3B with 4-bit weights, measured: 53 to 90 MB with the first
    # chunk (44 by the first term), 110 to 147 at the window (128 by both).
    scores = 4 * geometry.heads * seen * min(chunk, rows_at_once(geometry.heads, seen))
    return 7 * ffn * min(chunk, MAX_ROWS) // chunk + 3 * scores
