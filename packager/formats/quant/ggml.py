"""ggml's own quantisers, row by row, and the tensor types that llama.cpp mixes for each recipe.

The C code is the engine's, so the bytes are those llama-quantize writes. The rules for the mixes
follow `llama_tensor_get_type_impl` (llama.cpp, src/llama-quant.cpp) for this one architecture; a
test compares every choice with the engine's own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from packager.core.errors import DataError
from packager.core.records import Geometry
from runtimes.backends.gguf.engine import engine

# ggml.h, enum ggml_type
TYPE_IDS = {
    "F32": 0, "F16": 1, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
# ggml-common.h: weights of a block, and its bytes
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q5_0": (32, 22), "Q5_1": (32, 24),
    "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}  # fmt: skip
_NARROWER = {"IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


RowQuantizer = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Float32 rows (R, C) and an optional importance (C,) to packed bytes (R * row_bytes,)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A llama.cpp file type: its number (llama.h, enum llama_ftype), main type and bits."""

    name: str
    file_type: int
    base: str
    bits: float


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, "F32", 32),
        Recipe("F16", 1, "F16", 16),
        Recipe("BF16", 32, "BF16", 16),
        Recipe("Q8_0", 7, "Q8_0", 8.5),
        Recipe("Q6_K", 18, "Q6_K", 6.5625),
        Recipe("Q5_K_M", 17, "Q5_K", 5.5),
        Recipe("Q4_K_M", 15, "Q4_K", 4.5),
        Recipe("IQ4_XS", 30, "IQ4_XS", 4.25),
    )
}


def matrix_type(name: str, columns: int, recipe: Recipe, geometry: Geometry, imatrix: bool) -> str:
    """The ggml type that llama.cpp gives the matrix `name` (GGUF name) of `columns` columns."""
    if BLOCKS[recipe.base][0] == 1:
        return recipe.base
    chosen = recipe.base
    is_head = name == "output.weight" or (geometry.tied and name == "token_embd.weight")
    if is_head:
        if columns % BLOCKS[chosen][0]:
            chosen = "Q8_0"
        elif chosen != "Q8_0":
            chosen = "Q6_K"
    elif name != "token_embd.weight":
        layer = int(name.split(".")[1])
        chosen = _layer_type(name, layer, recipe, geometry, imatrix)
    return _fitting_type(chosen, columns)


def _layer_type(name: str, layer: int, recipe: Recipe, geometry: Geometry, imatrix: bool) -> str:
    eighth = geometry.layers // 8
    is_value, is_down = ".attn_v." in name, ".ffn_down." in name
    if recipe.name in ("Q4_K_M", "Q5_K_M") and (is_value or is_down):
        late = layer >= 7 * geometry.layers // 8
        if layer < eighth or late or (layer - eighth) % 3 == 2:
            return "Q6_K"
    if recipe.name == "IQ4_XS":
        if is_value and geometry.heads // geometry.kv_heads >= 4:
            return "Q5_K"
        if is_down and layer < eighth and not imatrix:
            return "Q5_K"
    return recipe.base


def _fitting_type(chosen: str, columns: int) -> str:
    if columns % BLOCKS[chosen][0] == 0:
        return chosen
    narrower = _NARROWER.get(chosen, chosen)
    return "F16" if columns % BLOCKS[narrower][0] else narrower


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one quantised row; needs no engine."""
    weights, size = BLOCKS[type_name]
    assert columns % weights == 0, f"{columns} columns are no whole number of blocks"
    return columns // weights * size


def row_quantizer(type_name: str, tensor: str) -> RowQuantizer:
    """ggml's quantiser of one type; `tensor` names what it is for in an error.

    Thread-safe; the C code runs without the interpreter lock. Raises DataError where the
    result is not finite, as when a weight is beyond half precision.
    """
    floats = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
    quantize = engine().function(
        "ggml_quantize_chunk",
        [ctypes.c_int, floats, ctypes.c_void_p, *([ctypes.c_int64] * 3), ctypes.c_void_p],
        ctypes.c_size_t,
    )
    validate = engine().function(
        "ggml_validate_row_data", [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_bool
    )
    type_id = TYPE_IDS[type_name]
    # builds the tables of the i-quants; every later call finds them there
    engine().function("ggml_quantize_init", [ctypes.c_int], None)(type_id)

    def quantize_rows(rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        count, columns = rows.shape
        packed = np.empty(count * row_bytes(type_name, columns), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        quantize(type_id, rows, packed.ctypes.data, 0, count, columns, weights)
        if not validate(type_id, packed.ctypes.data, packed.nbytes):
            raise DataError(
                f"the weights of {tensor} do not fit in {type_name}",
                where=tensor,
                expected="finite values within the range of the type",
            )
        return packed

    return quantize_rows
