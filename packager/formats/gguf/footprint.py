"""What llama.cpp takes for an open GGUF file, on a CPU or with all layers on a GPU."""

from __future__ import annotations

from typing import Protocol

from packager.core.records import Geometry, Variant
from packager.formats import Footprint, Setting
from packager.formats.gguf.recipe import repacked_bytes, tensor_bytes
from packager.formats.sizes import HALF_BYTES, MIB, padded
from runtimes.backends.gguf import call_tokens
from runtimes.contract import Window

CELLS = 256  # llama.cpp pads its caches to this (src/llama-kv-cache*.cpp)
# Planning constants: on a card, code and workspaces; on a CPU, the whole process with its engine
# and no model, measured on one machine (Linux, x86-64).
GPU_LIBRARY_BYTES, CPU_LIBRARY_BYTES = 110 * MIB, 50 * MIB


class Sizes(Protocol):
    """What of a model sets the size of buffers; a Geometry has it."""

    @property
    def hidden(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def vocab(self) -> int: ...


def footprint(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> Footprint:
    """As in Format."""
    chunk = _chunk_tokens(setting)
    cells = cache_cells(window, setting)
    weights, embedding = _weights_bytes(geometry, variant, setting.gpu)
    family = weight_family(variant.recipe)
    return Footprint(
        weights_bytes=weights + (0 if setting.gpu else repacked_bytes(geometry, variant)),
        key_values_bytes=cells * geometry.position_bytes(HALF_BYTES),
        compute_bytes=compute_bytes(geometry, cells, chunk, fused=setting.gpu),
        library_bytes=GPU_LIBRARY_BYTES if setting.gpu else CPU_LIBRARY_BYTES,
        streamed_bytes=weights - embedding,
        value_bytes=HALF_BYTES,
        attended_cells=cells,  # masked, but computed
        family=family,
        product="float" if family == "float" else "int8",
    )


def weight_family(quantisation: str) -> str:
    """The kind of weights that llama.cpp's name for a quantisation means; "" for another name."""
    if quantisation.startswith(("F16", "BF16", "F32")):
        return "float"
    if quantisation.startswith("Q8"):
        return "block8"
    if quantisation in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        return "block4"
    return "kquant" if quantisation.removeprefix("UD-").startswith(("Q", "IQ")) else ""


def cache_cells(window: Window, setting: Setting) -> int:
    """Positions that the cache can hold: of one sequence, the window and one batch.

    llama_kv_cache_iswa; test_memory.py compares.
    """
    cells = padded(setting.context_tokens, CELLS)
    if window.size_tokens is None:
        return cells
    return min(cells, padded(window.size_tokens + _chunk_tokens(setting), CELLS))


def _chunk_tokens(setting: Setting) -> int:
    """Of one call: attention is plain on a CPU, unless somebody says otherwise."""
    return call_tokens(setting.chunk_tokens, setting.context_tokens, fused=setting.gpu)


def compute_bytes(shape: Sizes, cells: int, chunk: int, *, fused: bool = True) -> int:
    """llama.cpp's compute buffer: the larger of its attention, its feed-forward and its head.

    Found from what it reports for models of several shapes, to 10 KB:
    tests/packager/estimate/test_memory.py. fused: attention that keeps no scores.
    """
    hidden, ffn = (4 * chunk * size for size in (shape.hidden, shape.ffn))
    mask = cells * chunk * (HALF_BYTES if fused else 4)
    scores = 0 if fused else 4 * shape.heads * cells * chunk
    head = 4 * chunk * shape.vocab + 3 * hidden
    return max(mask + scores + 6 * hidden, mask + 2 * ffn, head)


def _weights_bytes(geometry: Geometry, variant: Variant, gpu: bool) -> tuple[int, int]:
    """(of the file that are held, of those not read for each token): the second is the embedding.

    On a GPU llama.cpp leaves an untied embedding with the CPU; a tied one it copies, for the head.
    """
    tensors = tensor_bytes(geometry, variant)
    total, embedding = sum(tensors.values()), tensors["token_embd.weight"]
    if geometry.tied:
        return total, 0
    return (total - embedding, 0) if gpu else (total, embedding)
