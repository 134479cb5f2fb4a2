"""Where each weight of an ONNX variant lies in its file, and what it is made of.

The graph refers to tensors by place, the converter writes them there; neither needs to know more
of the other than this. Knows the names of both sides; reads no weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from packager.checkpoint.shapes import EMBEDDING, HEAD, Shapes
from packager.core.errors import CheckpointError
from packager.core.records import Geometry

DATA_NAME = "model.onnx.data"
ALIGNMENT = 64  # a cache line, and what kernels may ask for

_LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "up": ("mlp.c_fc",),
    "down": ("mlp.c_proj",),
}
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How matrices are stored: `bits` and `group` are None for floats.

    activations: "float32" or "float16", which vectors, scales, keys and values have too. zeros:
    with a zero point per block; the fast kernels of GPUs ask for none. search: for the best scales.
    calibrated: the codes of the linears are precomputed, and decide on group and zeros.
    """

    bits: int | None
    group: int | None
    activations: str
    zeros: bool = False
    search: bool = False
    calibrated: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Scales and zero points included, where they are known."""
        width = 8 * np.dtype(self.activations).itemsize
        if self.bits is None:
            return width
        extra = width + self.bits if self.zeros else width
        return self.bits + (extra / self.group if self.group else 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in the data file: element type, shape and where it begins."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * np.dtype(self.type).itemsize


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A weight (outputs, inputs) as floats."""

    shape: tuple[int, int]
    weights: Stored

    @property
    def parts(self) -> list[Stored]:
        """Its tensors in the file."""
        return [self.weights]


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A weight (outputs, inputs) as codes with scales, and perhaps zero points.

    Without `zeros` the zero point is the middle code. `order` is the order (inputs,) that the
    inputs have to be put in first, where there is one.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    codes: Stored
    scales: Stored
    zeros: Stored | None
    order: Stored | None

    @property
    def parts(self) -> list[Stored]:
        """Its tensors in the file."""
        parts = (self.codes, self.scales, self.zeros, self.order)
        return [part for part in parts if part is not None]


Matrix = FloatMatrix | BlockMatrix


@dataclass(frozen=True, slots=True)
class Weights:
    """All that the graph refers to: matrices and vectors by their names in it.

    `head` is the embedding where the two are tied.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, Stored]


@dataclass(frozen=True, slots=True)
class Placed:
    """One matrix or vector of the graph, and the checkpoint's tensors whose rows make it up.

    order: that of the inputs (inputs,), where the codes have them in another.
    """

    stored: Matrix | Stored
    sources: tuple[str, ...]
    recipe: Recipe
    order: np.ndarray | None = None

    @property
    def parts(self) -> list[Stored]:
        """Its tensors in the file."""
        return [self.stored] if isinstance(self.stored, Stored) else self.stored.parts


def linears(layers: int) -> dict[str, tuple[str, ...]]:
    """The modules that each linear of the graph is made of, by its name there."""
    return {
        f"layers.{layer}.{name}": tuple(f"model.layers.{layer}.{module}" for module in modules)
        for layer in range(layers)
        for name, modules in _LINEARS.items()
    }


def place_tensors(
    geometry: Geometry,
    source: Shapes,
    recipe: Recipe,
    head: Recipe,
    orders: Mapping[str, np.ndarray],
) -> dict[str, Placed]:
    """Every tensor by its name in the graph, laid out in the file in the order of the forward.

    orders: of the inputs, for the linears whose codes have them in another order.
    """
    modules = linears(geometry.layers)
    layout = _Layout(source)
    layout.matrix("embedding", (EMBEDDING,), head)
    for layer in range(geometry.layers):
        at, prefix = f"layers.{layer}", f"model.layers.{layer}"
        for name in _LINEARS:
            linear = f"{at}.{name}"
            weights = tuple(f"{module}.weight" for module in modules[linear])
            layout.matrix(linear, weights, recipe, orders.get(linear))
            biases = tuple(f"{module}.bias" for module in modules[linear])
            layout.vector(f"{linear}.bias", biases, recipe)
        for name, module in _NORMS.items():
            layout.norm(f"{at}.{name}", f"{prefix}.{module}", recipe)
    layout.norm("norm", "model.norm", recipe)
    if not geometry.tied:
        layout.matrix("head", (HEAD,), head)
    return layout.placed


class _Layout:
    """Gives every tensor its place in the file."""

    def __init__(self, source: Shapes) -> None:
        self.source = source
        self.placed: dict[str, Placed] = {}
        self.end_bytes = 0

    def place(self, name: str, kind: str, shape: tuple[int, ...]) -> Stored:
        start = -(-self.end_bytes // ALIGNMENT) * ALIGNMENT
        stored = Stored(name, kind, shape, start)
        self.end_bytes = start + stored.nbytes
        return stored

    def norm(self, name: str, module: str, recipe: Recipe) -> None:
        for kind in ("weight", "bias"):
            self.vector(f"{name}.{kind}", (f"{module}.{kind}",), recipe)

    def vector(self, name: str, sources: tuple[str, ...], recipe: Recipe) -> None:
        size = sum(self.source.shape(part)[0] for part in sources)
        stored = self.place(name, recipe.activations, (size,))
        self.placed[name] = Placed(stored, sources, recipe)

    def matrix(
        self, name: str, sources: tuple[str, ...], recipe: Recipe, order: np.ndarray | None = None
    ) -> None:
        rows = sum(self.source.shape(part)[0] for part in sources)
        columns = self.source.shape(sources[0])[1]
        matrix: Matrix
        if recipe.bits is None:
            weights = self.place(name, recipe.activations, (rows, columns))
            matrix = FloatMatrix((rows, columns), weights)
        else:
            matrix = self._blocks(name, sources[0], (rows, columns), recipe, order is not None)
        self.placed[name] = Placed(matrix, sources, recipe, order)

    def _blocks(
        self, name: str, source: str, shape: tuple[int, int], recipe: Recipe, ordered: bool
    ) -> BlockMatrix:
        (rows, columns), bits, group = shape, recipe.bits, recipe.group
        assert bits and group, "the group is known before anything is laid out"
        if columns % group:
            raise CheckpointError(
                f"{source} has {columns} columns",
                where=source,
                expected=f"a multiple of {group}, the recipe's group",
                remedy="choose a recipe with a smaller group, or fp32",
            )
        groups = columns // group
        codes = self.place(f"{name}.blocks", "uint8", (rows, groups, group * bits // 8))
        scales = self.place(f"{name}.scales", recipe.activations, (rows, groups))
        zeros = order = None
        if recipe.zeros:
            zeros = self.place(f"{name}.zeros", "uint8", (rows, -(-groups * bits // 8)))
        if ordered:
            order = self.place(f"{name}.order", "int64", (columns,))
        return BlockMatrix(shape, bits, group, codes, scales, zeros, order)
