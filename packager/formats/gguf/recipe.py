"""llama.cpp's recipes, and what each makes of every tensor: its name, shape, type and bytes.

Needs neither the gguf library nor the engine, and reads no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from packager.checkpoint.shapes import GeometryShapes, Shapes
from packager.core.errors import UsageError
from packager.core.records import Geometry, Variant
from packager.formats.quant import ggml

NAME = "gguf"
VERSION = 1  # of what convert.py writes: part of the key of its artifacts
FILE_NAME = "model.gguf"
WORK_FILES = re.compile(r"model[.].*")
RECIPES = tuple(ggml.RECIPES)
REPACKED = "Q4_K"  # see repacked_bytes

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file: its names in the checkpoint and in GGUF, shape (R, C) or (C,)."""

    source: str
    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def rows(self) -> int:
        """Rows of a matrix; a vector is one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return self.rows * ggml.row_bytes(self.type_name, self.shape[-1])


def variant(recipe: str, head_bits: int | None = None) -> Variant:
    """The variant of a recipe by llama.cpp's name for it, such as Q4_K_M."""
    if head_bits is not None:
        raise UsageError(
            "a GGUF recipe says itself how the head is stored", remedy="leave --head-bits out"
        )
    if recipe not in ggml.RECIPES:
        raise UsageError(
            f"unknown GGUF recipe {recipe!r}", expected=f"one of {', '.join(ggml.RECIPES)}"
        )
    return Variant("gguf", recipe, ggml.RECIPES[recipe].bits, None)


def list_tensors(
    geometry: Geometry, source: Shapes, recipe: ggml.Recipe, imatrix: bool
) -> list[TensorEntry]:
    """Every tensor of the file in its order, with the type llama.cpp's mix gives it."""
    entries = []
    for name in source.names():
        target, shape = gguf_name(name), source.shape(name)
        type_name = "F32"  # norms and biases stay exact: they are small
        if len(shape) == 2:
            type_name = ggml.matrix_type(target, shape[1], recipe, geometry, imatrix)
        entries.append(TensorEntry(name, target, shape, type_name))
    return sorted(entries, key=lambda entry: _file_order(entry.name))


def tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    """Bytes of each tensor of the file by its name there, padding apart; known without weights."""
    return _sizes(geometry, variant)[0]


def repacked_bytes(geometry: Geometry, variant: Variant) -> int:
    """What llama.cpp keeps a second time on an x86 CPU, in the order of its kernels.

    Measured with each recipe: the matrices of Q4_K that it multiplies by, and no others. The file
    stays mapped beside them.
    """
    return _sizes(geometry, variant)[1]


@lru_cache(maxsize=256)
def _sizes(geometry: Geometry, variant: Variant) -> tuple[Mapping[str, int], int]:
    """What both give; without an importance matrix, which moves few types."""
    recipe = ggml.RECIPES[variant.recipe]
    entries = list_tensors(geometry, GeometryShapes(geometry), recipe, imatrix=False)
    repacked = [p for p in entries if p.type_name == REPACKED and p.name != "token_embd.weight"]
    sizes = {entry.name: entry.nbytes for entry in entries}
    return MappingProxyType(sizes), sum(entry.nbytes for entry in repacked)


def gguf_name(name: str) -> str:
    """GGUF's name for a Hugging Face tensor of StarCoder2."""
    outer = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    stem, kind = name.rsplit(".", 1)
    if stem in outer:
        return f"{outer[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def _file_order(name: str) -> tuple[int, str]:
    # the embedding first, layers in order, the head last: the order in which a forward needs them
    if name.startswith("blk."):
        return int(name.split(".")[1]), name
    return (-1, name) if name.startswith("token_embd") else (1 << 30, name)
