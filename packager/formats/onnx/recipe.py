"""ONNX recipes by name, and what each makes of every tensor: pure arithmetic.

Needs no library of ONNX and reads no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from packager.checkpoint.shapes import GeometryShapes
from packager.core.errors import UsageError
from packager.core.records import Geometry, Variant
from packager.formats.onnx.layout import Recipe, place_tensors

NAME = "onnx"
VERSION = 2  # of what convert.py writes: part of the key of its artifacts
WORK_FILES = re.compile(r"(model|probe|genai)[._].*")
INT8_GROUP = 128  # measured: a quarter faster than 32, for a fifth more error of the weights
PRECOMPUTED_GROUP = 128  # what `starpack convert --formats gptq` writes unless told otherwise
HEAD_GROUP = 32  # the head decides between ids: the finest blocks there are kernels for

_GRAMMAR = re.compile(r"(fp32|fp16|(int8)|(int4)(?:-g(32|64|128))?)(-rtn)?(-fp16)?")
EXPECTED = (
    "fp32, fp16, int8, int4-g32, int4-g64, int4-g128, or int4 (calibrated codes, see --gptq); "
    "after an integer one -rtn (round to nearest, no search) and -fp16 (for GPUs: activations in "
    "half precision, symmetric codes)"
)


def variant(name: str, head_bits: int | None = None) -> Variant:
    """The variant of a recipe; head_bits for the head and embedding, where not the default 8."""
    recipe = parse(name)
    head_recipe(recipe, head_bits)
    return Variant("onnx", name, recipe.bits_per_weight, recipe.group, head_bits)


def parse(name: str) -> Recipe:
    """The recipe of a name such as int4-g32, int8-rtn or int4-g128-fp16; UsageError for others."""
    found = _GRAMMAR.fullmatch(name)
    if found is None or (found[1].startswith("fp") and (found[5] or found[6])):
        raise UsageError(f"unknown ONNX recipe {name!r}", expected=EXPECTED)
    if found[1].startswith("fp"):
        return Recipe(None, None, {"fp32": "float32", "fp16": "float16"}[found[1]])
    activations = "float16" if found[6] else "float32"
    if name.removesuffix("-fp16") == "int4":
        return Recipe(4, None, activations, calibrated=True)
    bits, group = (8, INT8_GROUP) if found[2] else (4, int(found[4] or 0))
    if not group:
        raise UsageError(f"the ONNX recipe {name!r} names no group", expected=EXPECTED)
    # eight bits err little enough for nothing to be gained by searching
    search = bits == 4 and not found[5]
    return Recipe(bits, group, activations, zeros=activations == "float32", search=search)


def head_recipe(recipe: Recipe, head_bits: int | None) -> Recipe:
    """How the head and the embedding are stored; floats where the rest is floats."""
    width = 8 * np.dtype(recipe.activations).itemsize
    bits = (width if recipe.bits is None else 8) if head_bits is None else head_bits
    if bits == width:
        return Recipe(None, None, recipe.activations)
    if bits not in (4, 8):
        raise UsageError(f"a head of {bits} bits", expected=f"--head-bits 4, 8 or {width}")
    zeros = recipe.activations == "float32"
    return Recipe(bits, HEAD_GROUP, recipe.activations, zeros=zeros, search=bits == 4)


def tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    """Bytes of each tensor of the data file by its name there; known without weights.

    The recipe int4 takes its group from precomputed codes: here, GPTQ's default, and symmetric
    codes in natural order.
    """
    return _tensor_bytes(geometry, variant)


@lru_cache(maxsize=256)
def _tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    recipe = parse(variant.recipe)
    head = head_recipe(recipe, variant.head_bits)
    if recipe.calibrated:
        recipe = replace(recipe, group=PRECOMPUTED_GROUP, zeros=False)
    placed = place_tensors(geometry, GeometryShapes(geometry), recipe, head, {})
    sizes = {part.name: part.nbytes for tensor in placed.values() for part in tensor.parts}
    return MappingProxyType(sizes)
