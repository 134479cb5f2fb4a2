"""StarCoder2 as an ONNX graph: which operators, in which order, over tensors in a file beside it.

The operators are ONNX Runtime's own (domain com.microsoft), so that one node does what the engine
has one kernel for. Keys and values are inputs and outputs, in buffers that the caller owns. Knows
nothing of how weights are stored in a checkpoint, nor of how they are quantised.

    input_ids (B, S)  position_ids (B, S)
    attention_mask or first_position, and past_key_values.I.key and .value: see onnx_attention.py
    logits_from (1): the first of the S positions whose logits are wanted; -1: the last alone
    cos_cache, sin_cache (positions, head_dim / 2)
    -> logits (B, wanted, vocab), present.I.key and .value as the past

Activations in float32 run on CPUs alone, so that graph's attention is `Products`. A second graph
over the same weights is for onnxruntime-genai, which knows neither of the last three inputs: there
they are constants, the tables as long as the trained context.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.core.records import Checkpoint
from packager.formats.onnx.attention import Grouped, Products
from packager.formats.onnx.layout import FloatMatrix, Stored, Weights
from packager.formats.onnx.nodes import Nodes
from runtimes.backends.own_cache.rope import rope_tables

# int8 arithmetic for the activations; the other levels are many times slower on CPUs
# (benchmarks/LOG.md)
ACCURACY_LEVEL = 4
END = np.iinfo(np.int64).max


def write_model(
    file: Path,
    checkpoint: Checkpoint,
    weights: Weights,
    activations: str,
    metadata: dict[str, str],
    *,
    genai: bool = False,
) -> None:
    """Write the graph of the whole model; its weights lie in DATA_NAME beside `file`.

    genai: write the one for onnxruntime-genai.
    """
    builder = _Builder(checkpoint, weights, activations, genai)
    builder.model()
    builder.write(file, metadata)


def write_probe(
    file: Path, checkpoint: Checkpoint, activations: str, metadata: dict[str, str]
) -> None:
    """Write one attention node alone, made as those of the model: for the engine's self-test."""
    builder = _Builder(checkpoint, Weights({}, {}), activations)
    builder.probe()
    builder.write(file, metadata)


class _Builder(Nodes):
    """The nodes of StarCoder2."""

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, activations: str, genai: bool = False
    ) -> None:
        super().__init__()
        self.geometry, self.table_rows = checkpoint.geometry, checkpoint.context_tokens
        self.weights, self.float, self.genai = weights, activations, genai
        way = Grouped if genai or activations == "float16" else Products
        self.attention = way(self, self.geometry, checkpoint.window, activations)

    def model(self) -> None:
        """Embedding, layers, head. Each residual is added within the norm that comes after it."""
        self.input("input_ids", "int64", ["batch", "new"])
        self._sequence_inputs(self.geometry.layers)
        state = self.embed()
        norm = self.norm("layers.0.attention_norm", state)
        for layer in range(self.geometry.layers):
            at = f"layers.{layer}"
            mixed = self.attend(layer, self.linear(f"{at}.qkv", norm, bias=True))
            norm, state = self.add_norm(
                self.linear(f"{at}.output", mixed), state, f"{at}.output.bias", f"{at}.mlp_norm"
            )
            inner = self.linear(f"{at}.up", norm)
            inner = self.node("FastGelu", [inner, self.vector(f"{at}.up.bias")], f"{at}.gelu")
            last = layer + 1 == self.geometry.layers
            following = "norm" if last else f"layers.{layer + 1}.attention_norm"
            norm, state = self.add_norm(
                self.linear(f"{at}.down", inner), state, f"{at}.down.bias", following
            )
        self.head(norm)

    def probe(self) -> None:
        """One layer's attention on a given (B, S, (heads + 2 kv_heads) head_dim)."""
        geometry = self.geometry
        width = (geometry.heads + 2 * geometry.kv_heads) * geometry.head_dim
        self.input("qkv", self.float, ["batch", "new", width])
        self._sequence_inputs(layers=1)
        mixed = self.attend(0, "qkv")
        self.output(mixed, self.float, ["batch", "new", geometry.heads * geometry.head_dim])

    def _sequence_inputs(self, layers: int) -> None:
        """Positions, tables, and the cells of `layers` layers; counts for the attention."""
        self.input("position_ids", "int64", ["batch", "new"])
        for layer in range(layers):
            for kind in ("key", "value"):
                self.input(f"past_key_values.{layer}.{kind}", self.float, self.attention.cells)
        tables = ("cos_cache", "sin_cache")
        if self.genai:
            head_dim, theta = self.geometry.head_dim, self.geometry.rope_theta
            for name, table in zip(
                tables, rope_tables(self.table_rows, head_dim, theta), strict=True
            ):
                self.constant(name, table.astype(self.float))
        else:
            for name in tables:
                self.input(name, self.float, ["positions", self.geometry.head_dim // 2])
        self.attention.prepare()

    def embed(self) -> str:
        """Rows of the embedding (B, S, hidden)."""
        matrix = self.weights.matrices["embedding"]
        if isinstance(matrix, FloatMatrix):
            return self.node("Gather", [self.stored(matrix.weights), "input_ids"], "embedded")
        # the same bytes as the head's, in this operator's shape
        flat = (matrix.shape[0], matrix.shape[1] * matrix.bits // 8)
        codes = self.stored(Stored("embedding.codes", "uint8", flat, matrix.codes.offset_bytes))
        inputs = [codes, "input_ids", self.stored(matrix.scales)]
        if matrix.zeros is not None:
            inputs.append(self.stored(matrix.zeros))
        return self.node(
            "GatherBlockQuantized", inputs, "embedded", bits=matrix.bits, block_size=matrix.group,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def linear(self, name: str, x: str, *, bias: bool = False) -> str:
        """`x` times the transposed matrix `name`, and the bias `name`.bias."""
        matrix = self.weights.matrices[name]
        if isinstance(matrix, FloatMatrix):
            y = self.node("FusedMatMul", [x, self.stored(matrix.weights)], f"{name}.y", transB=1)
        else:
            if matrix.order is not None:
                x = self.node("Gather", [x, self.stored(matrix.order)], f"{name}.ordered", axis=-1)
            inputs = [x, self.stored(matrix.codes), self.stored(matrix.scales)]
            if matrix.zeros is not None:
                inputs.append(self.stored(matrix.zeros))
            y = self.node(
                "MatMulNBits", inputs, f"{name}.y", K=matrix.shape[1], N=matrix.shape[0],
                bits=matrix.bits, block_size=matrix.group, accuracy_level=ACCURACY_LEVEL,
            )  # fmt: skip
        # a bias input of MatMulNBits would keep CUDA from its fastest kernel
        return self.node("Add", [y, self.vector(f"{name}.bias")], f"{name}.z") if bias else y

    def norm(self, name: str, x: str) -> str:
        """LayerNorm over the hidden axis."""
        inputs = [x, self.vector(f"{name}.weight"), self.vector(f"{name}.bias")]
        return self.node(
            "LayerNormalization", inputs, f"{name}.y", axis=-1, epsilon=self.geometry.norm_eps
        )

    def add_norm(self, x: str, residual: str, bias: str, norm: str) -> tuple[str, str]:
        """(LayerNorm of the sum, the sum) of x, its bias and the residual."""
        inputs = [x, residual, self.vector(f"{norm}.weight"), self.vector(f"{norm}.bias")]
        outputs = [f"{norm}.y", "", "", f"{norm}.sum"]
        self.node(
            "SkipLayerNormalization", [*inputs, self.vector(bias)], outputs,
            epsilon=self.geometry.norm_eps,
        )  # fmt: skip
        return outputs[0], outputs[3]

    def attend(self, layer: int, qkv: str) -> str:
        """Windowed attention of one layer: packed (B, S, q + k + v) to (B, S, heads head_dim)."""
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        mixed = self.attention.layer(f"layers.{layer}", qkv, past, present)
        for name in present:
            self.output(name, self.float, self.attention.cells)
        return mixed

    def head(self, norm: str) -> None:
        """Logits, float32, of the positions from `logits_from` on."""
        if self.genai:
            self.constant("logits_from", [-1])
        else:
            self.input("logits_from", "int64", [1])
        wanted = self.node(
            "Slice", [norm, "logits_from", self.constant("end", [END]), "axis_1"], "wanted"
        )
        logits = self.linear("embedding" if self.geometry.tied else "head", wanted)
        self.cast(logits, "float32", "logits")
        # genai has to see from the shape that there is one row, whatever the prompt's length
        self.output(
            "logits", "float32", ["batch", 1 if self.genai else "wanted", self.geometry.vocab]
        )

    def vector(self, name: str) -> str:
        """A stored vector by its name in the graph."""
        return self.stored(self.weights.vectors[name])
