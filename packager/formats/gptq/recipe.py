"""GPTQ's recipes, and what each makes of every tensor: its name, type, shape and bytes.

Needs no torch and reads no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from packager.checkpoint.safetensors_writer import TensorSpec
from packager.checkpoint.shapes import GeometryShapes, Shapes
from packager.core.errors import UsageError
from packager.core.records import Geometry, Variant
from packager.formats.quant.gptq_layout import WORD_BITS, Recipe

NAME = "gptq"
VERSION = 2  # of what convert.py writes: part of the key of its artifacts
WORK_FILES = re.compile(r"layer-\d+\.(npz|partial)|states-\d+\.(f32|partial)")
# Asymmetric files have less error and fewer readers: not vLLM, nor GPTQModel unless it wrote them.
RECIPES = tuple(
    f"w{bits}g{group}{kind}" for kind in ("", "-asym") for bits in (4, 8) for group in (128, 64, 32)
)
ARRAYS = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}
HEAD_BITS = (4, 8, 16)
STORED_TYPE = "F16"  # of all that is not packed; what every kernel for these files takes


def variant(recipe: str, head_bits: int | None = None) -> Variant:
    """The variant of a recipe: w4g128 is 4 bits with a scale per 128 weights.

    Files keep the head and the embedding in half precision, for others to read; head_bits is what
    our runtime packs the head to when it loads them.
    """
    if head_bits not in (None, *HEAD_BITS):
        raise UsageError(f"a head of {head_bits} bits", expected="--head-bits 4, 8 or 16")
    found = parse(recipe)
    return Variant("gptq", recipe, found.bits_per_weight, found.group, head_bits)


def parse(name: str) -> Recipe:
    """The recipe of a name such as w4g128 or w8g32-asym; UsageError for others."""
    found = re.fullmatch(r"w(\d+)g(\d+)(-asym)?", name)
    if found is None or name not in RECIPES:
        raise UsageError(f"unknown GPTQ recipe {name!r}", expected=f"one of {', '.join(RECIPES)}")
    return Recipe(int(found[1]), int(found[2]), symmetric=found[3] is None)


def tensor_specs(tensors: Shapes, recipe: Recipe) -> list[TensorSpec]:
    """Every tensor of the file in its order, which is the model's."""
    specs = []
    for name in tensors.names():
        shape = tensors.shape(name)
        if is_packed(name, shape):
            outputs, inputs = shape
            groups, words = inputs // recipe.group, recipe.bits / WORD_BITS
            shapes = {
                "qweight": (int(inputs * words), outputs),
                "qzeros": (groups, int(outputs * words)),
                "scales": (groups, outputs),
                "g_idx": (inputs,),
            }
            module = name.removesuffix("weight")
            specs += [TensorSpec(module + a, ARRAYS[a], shapes[a]) for a in ARRAYS]
        else:
            specs.append(TensorSpec(name, STORED_TYPE, shape))
    return specs


def tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    """Bytes of each tensor of the file by its name there; known without weights."""
    specs = tensor_specs(GeometryShapes(geometry), parse(variant.recipe))
    return {spec.name: spec.nbytes for spec in specs}


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored in codes: the matrices of the layers."""
    return len(shape) == 2 and name.startswith("model.layers.")
