"""The tensors of StarCoder2 by Hugging Face name, with their shapes.

Source: transformers, modeling_starcoder2.py. Knows nothing of files.
"""

from __future__ import annotations

from typing import Protocol

from packager.core.records import Geometry

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Shapes(Protocol):
    """Tensors by Hugging Face name: all that laying out a file takes."""

    def names(self) -> list[str]:
        """Every tensor's name, in the model's order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape; linear weights are (outputs, inputs)."""


class GeometryShapes:
    """Shapes of a model that need not exist."""

    def __init__(self, geometry: Geometry) -> None:
        self.shapes = tensor_shapes(geometry)

    def names(self) -> list[str]:
        """As in Shapes."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """As in Shapes."""
        return self.shapes[name]


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Name to shape, in the model's order; linear weights are (outputs, inputs).

    A tied model has no HEAD: it is EMBEDDING.
    """
    hidden, ffn = geometry.hidden, geometry.ffn
    q = geometry.heads * geometry.head_dim
    kv = geometry.kv_heads * geometry.head_dim
    linears = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.c_fc": (ffn, hidden),
        "mlp.c_proj": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (geometry.vocab, hidden)}
    for layer in range(geometry.layers):
        prefix = f"model.layers.{layer}"
        for name, shape in linears.items():
            shapes[f"{prefix}.{name}.weight"] = shape
            shapes[f"{prefix}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
            shapes[f"{prefix}.{name}.bias"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["model.norm.bias"] = (hidden,)
    if not geometry.tied:
        shapes[HEAD] = (geometry.vocab, hidden)
    return shapes
