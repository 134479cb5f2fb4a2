"""What torch holds of a GPTQ folder that is open, on a CPU or on a GPU.

Where it has no kernel for 4-bit weights the backend keeps them in float16 if they fit, and else
expands them for each product (runtimes/backends/gptq/device.py).
"""

from __future__ import annotations

import math
from typing import Literal

from packager.checkpoint.shapes import GeometryShapes
from packager.core.records import Device, Geometry, Variant
from packager.formats import Footprint, Setting
from packager.formats.gptq.recipe import parse
from packager.formats.sizes import HALF_BYTES, MIB, activation_bytes, padded
from runtimes.backends.own_cache.kv_slots import KvSlots
from runtimes.contract import Window
from runtimes.host.gpu_memory import half_fits

KernelPath = Literal["int4", "half", "expanded"]
"""torch's int4 kernel; float16 weights; or 4-bit weights that are expanded for each product."""

KERNEL = "gptq-torch-int4"  # as profiles/device.schema.json names it
EXPANDED_BYTES = 3 << 24  # codes and float16 of a chunk (CHUNK_ELEMENTS, gptq/tiles.py)
# Counted, not measured: what ExpandedLinear.expand reads and writes for each 4-bit weight, step by
# step, each of which goes through memory (runtimes/backends/gptq/tiles.py).
EXPANDING_BYTES = 13
ROWS = 64  # torch's int4 kernel packs blocks of so many outputs (runtimes/backends/gptq/linear.py)
TILE_ROWS = 8  # and that for GPUs (runtimes/backends/gptq/tiles.py)
# Planning constants: on a card, code and workspaces; on a CPU, the whole process with its engine
# and no model, measured on one machine (Linux, x86-64).
GPU_LIBRARY_BYTES, CPU_LIBRARY_BYTES = 260 * MIB, 230 * MIB


def footprint(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> Footprint:
    """As in Format."""
    path = kernel_path(geometry, variant, setting)
    chunk = min(setting.chunk_tokens, setting.context_tokens)
    cells = KvSlots(window, setting.context_tokens, chunk).count
    weights = weights_bytes(geometry, variant, path, setting.gpu)
    return Footprint(
        weights_bytes=weights,
        key_values_bytes=cells * geometry.position_bytes(HALF_BYTES),
        compute_bytes=_compute_bytes(geometry, min(cells, setting.context_tokens), chunk, path),
        library_bytes=GPU_LIBRARY_BYTES if setting.gpu else CPU_LIBRARY_BYTES,
        streamed_bytes=_streamed_bytes(geometry, variant, path, weights),
        value_bytes=HALF_BYTES,
        attended_cells=window.size_tokens or setting.context_tokens,
        family="float" if path == "half" else "group4",
        # streamed_bytes has the expanding already
        product="expand" if path == "int4" else "float",
    )


def has_kernel(device: Device | None) -> bool:
    """Whether torch multiplies 4-bit weights there; on a CPU it does, if slowly."""
    return device is None or device.kind == "cpu" or KERNEL in device.kernels


def kernel_path(geometry: Geometry, variant: Variant, setting: Setting) -> KernelPath:
    """How the backend will multiply there (runtimes/backends/gptq/device.py)."""
    device = setting.device
    if device is None or has_kernel(device):
        return "int4"
    half = weights_bytes(geometry, variant, "half", setting.gpu)
    return "half" if half_fits(half, int(device.memory_bytes.value)) else "expanded"


def weights_bytes(geometry: Geometry, variant: Variant, path: KernelPath, gpu: bool) -> int:
    """What torch holds: packed planes with their scales, floats as they are."""
    recipe, head_bits = parse(variant.recipe), variant.head_bits or 16
    total = geometry.vocab * geometry.hidden * HALF_BYTES  # the embedding, mapped as it is stored
    for modules in _linears(geometry):
        outputs, inputs = sum(shape[0] for shape in modules), modules[0][1]
        offsets = not recipe.symmetric
        linear = _linear_bytes(outputs, inputs, recipe.group, recipe.bits, offsets, path, gpu)
        total += geometry.layers * (linear + outputs * HALF_BYTES)
    head = (geometry.vocab, geometry.hidden)
    if head_bits == 8 and not gpu:
        total += head[0] * head[1] + head[0] * HALF_BYTES
    elif head_bits < 16:
        # to nearest, as runtimes/backends/gptq/model.py packs it: zero points, a bias of zeros
        group = 32 if head_bits == 4 else math.gcd(256, geometry.hidden)
        total += _linear_bytes(*head, group, head_bits, True, path, gpu) + head[0] * HALF_BYTES
    elif not _one_with_embedding(geometry, variant, path):
        total += head[0] * head[1] * HALF_BYTES
    return total + 4 * geometry.hidden * (4 * geometry.layers + 2)  # norms, float32


def _streamed_bytes(geometry: Geometry, variant: Variant, path: KernelPath, weights: int) -> int:
    """What one decode step reads: all but the embedding, unless that is the head."""
    embedding = geometry.vocab * geometry.hidden
    total = weights
    if path == "expanded":
        total += EXPANDING_BYTES * (geometry.parameters - embedding * (2 - geometry.tied))
    return total if _one_with_embedding(geometry, variant, path) else total - embedding * HALF_BYTES


def _compute_bytes(geometry: Geometry, seen: int, chunk: int, path: KernelPath) -> int:
    """The mask of all rows in bfloat16, and the feed-forward in float32 and bfloat16."""
    hidden, ffn = activation_bytes(geometry, chunk)
    rows = geometry.heads // geometry.kv_heads * chunk
    expanding = EXPANDED_BYTES if path == "expanded" else 0
    return rows * seen * HALF_BYTES + 6 * hidden + 3 * ffn // 2 + expanding


def _one_with_embedding(geometry: Geometry, variant: Variant, path: KernelPath) -> bool:
    """Whether torch's head is the embedding: where it computes in float16, as the file has it."""
    return geometry.tied and path != "int4" and (variant.head_bits or 16) == 16


def _linear_bytes(
    outputs: int, inputs: int, group: int, bits: int, offsets: bool, path: KernelPath, gpu: bool
) -> int:
    """4-bit planes, their scales and offsets in pairs, on a CPU these in another order again.

    Without the kernel float16, or the codes with their scales and zeros.
    """
    groups = inputs // group
    if path != "int4":
        whole, scales_zeros = outputs * inputs * HALF_BYTES, outputs * groups * 2 * HALF_BYTES
        return whole * bits // 16 + scales_zeros if path == "expanded" else whole
    rows, planes = padded(outputs, TILE_ROWS if gpu else ROWS), bits // 4
    pairs = planes * groups * rows * 2 * HALF_BYTES
    # in the order of the packed halves; the plane of the high halves of 8 bits has no offsets
    again = groups * rows * HALF_BYTES * (planes + (1 if offsets or bits == 8 else 0))
    return planes * rows * inputs // 2 + pairs + (0 if gpu else again)


def _linears(geometry: Geometry) -> list[list[tuple[int, ...]]]:
    """Shapes of one layer's matrices; query, key and value are one."""
    shapes = GeometryShapes(geometry)
    names = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
             ("self_attn.o_proj",), ("mlp.c_fc",), ("mlp.c_proj",))  # fmt: skip
    return [[shapes.shape(f"model.layers.0.{n}.weight") for n in group] for group in names]
