"""StarCoder2 as an ONNX graph: which operators, in which order, over tensors in a file beside it.

The operators are ONNX Runtime's own (domain com.microsoft), so that one node does what the engine
has one kernel for. GroupQueryAttention applies the window and rotates keys and queries; keys and
values are inputs and outputs, in buffers that the caller owns. Knows nothing of how weights are
stored in a checkpoint, nor of how they are quantised.

    input_ids (B, S)  attention_mask (B, T)  position_ids (B, S)
    past_key_values.I.key and .value (B, kv_heads, C, head_dim): C cells, T of them filled by now
    logits_from (1): the first of the S positions whose logits are wanted; -1: the last alone
    cos_cache, sin_cache (positions, head_dim / 2)
    -> logits (B, wanted, vocab), present.I.key and .value as the past

A second graph over the same weights is for onnxruntime-genai, which knows neither of the last three
inputs: there they are constants, the tables as long as the trained context.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packager.onnx_layout import DATA_NAME, Stored, Weights
from packager.records import Checkpoint
from runtimes.rope import rope_tables

DOMAIN = "com.microsoft"
OPSETS = (helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1))
IR_VERSION = 10
# int8 arithmetic for the activations; the other levels are many times slower on CPUs
# (benchmarks/LOG.md)
ACCURACY_LEVEL = 4
END = np.iinfo(np.int64).max

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


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
    _write(file, builder, metadata)


def write_probe(
    file: Path, checkpoint: Checkpoint, activations: str, metadata: dict[str, str]
) -> None:
    """Write one attention node alone, made as those of the model: for the engine's self-test."""
    builder = _Builder(checkpoint, Weights({}, {}), activations)
    builder.probe()
    _write(file, builder, metadata)


def _write(file: Path, builder: _Builder, metadata: dict[str, str]) -> None:
    graph = helper.make_graph(
        builder.nodes, "starcoder2", builder.inputs, builder.outputs, builder.initializers
    )
    model = helper.make_model(
        graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="starpack"
    )
    helper.set_model_props(model, metadata)
    file.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(file))


class _Builder:
    """Nodes as they are added. Every method returns the name of what it computes."""

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, activations: str, genai: bool = False
    ) -> None:
        self.geometry, self.window = checkpoint.geometry, checkpoint.window
        self.table_rows = checkpoint.context_tokens
        self.weights, self.float, self.genai = weights, activations, genai
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self._stored: set[str] = set()

    def model(self) -> None:
        """Embedding, layers, head. Each residual is added within the norm that comes after it."""
        self.input("input_ids", "int64", ["batch", "new"])
        self._sequence_inputs(self.geometry.layers)
        state = self.embed()
        norm = self.norm("layers.0.attention_norm", state)
        for layer in range(self.geometry.layers):
            at = f"layers.{layer}"
            mixed = self.attention(layer, self.linear(f"{at}.qkv", norm, bias=True))
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
        mixed = self.attention(0, "qkv")
        self.output(mixed, self.float, ["batch", "new", geometry.heads * geometry.head_dim])

    def _sequence_inputs(self, layers: int) -> None:
        """Positions, tables, and the cells of `layers` layers; counts for the attention."""
        self.input("attention_mask", "int64", ["batch", "total"])
        self.input("position_ids", "int64", ["batch", "new"])
        for layer in range(layers):
            for kind in ("key", "value"):
                self.input(f"past_key_values.{layer}.{kind}", self.float, self.cells)
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
        # tokens in all (batch,), and one less, as GroupQueryAttention has them
        filled = self.node(
            "ReduceSum", ["attention_mask", self.constant("axis_1", [1])], "filled", keepdims=0
        )
        before = self.node("Sub", [filled, self.constant("one", [1])], "before")
        self.node("Cast", [before], "seqlens_k", to=TensorProto.INT32)
        shape = self.node("Shape", ["attention_mask"], "mask_shape", start=1)
        total = self.node("Squeeze", [shape], "total")
        self.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)

    def embed(self) -> str:
        """Rows of the embedding (B, S, hidden)."""
        matrix = self.weights.matrices["embedding"]
        if matrix.bits is None:
            return self.node("Gather", [self.stored(matrix.weights), "input_ids"], "embedded")
        # the same bytes as the head's, in this operator's shape
        flat = (matrix.shape[0], matrix.shape[1] * matrix.bits // 8)
        codes = self.stored(Stored("embedding.codes", "uint8", flat, matrix.weights.offset_bytes))
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
        if matrix.order is not None:
            x = self.node("Gather", [x, self.stored(matrix.order)], f"{name}.ordered", axis=-1)
        if matrix.bits is None:
            y = self.node("FusedMatMul", [x, self.stored(matrix.weights)], f"{name}.y", transB=1)
        else:
            inputs = [x, self.stored(matrix.weights), self.stored(matrix.scales)]
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

    def attention(self, layer: int, qkv: str) -> str:
        """Windowed attention of one layer: packed (B, S, q + k + v) to (B, S, heads head_dim)."""
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        geometry, window = self.geometry, self.window.size_tokens
        ring = {} if window is None else dict(local_window_size=window, sliding_window_cache=1)
        mixed = f"layers.{layer}.mixed"
        self.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
             "position_ids"],
            [mixed, *present],
            num_heads=geometry.heads, kv_num_heads=geometry.kv_heads, do_rotary=1, **ring,
        )  # fmt: skip
        for name in present:
            self.output(name, self.float, self.cells)
        return mixed

    @property
    def cells(self) -> list[int | str]:
        """The shape of a layer's keys, and of its values."""
        return ["batch", self.geometry.kv_heads, "cells", self.geometry.head_dim]

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
        self.node("Cast", [logits], "logits", to=TensorProto.FLOAT)
        # genai has to see from the shape that there is one row, whatever the prompt's length
        self.output(
            "logits", "float32", ["batch", 1 if self.genai else "wanted", self.geometry.vocab]
        )

    def node(self, kind: str, inputs: Sequence[str], outputs: str | list[str], **settings: Any):
        """Add a node; returns the name of its (first) output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        domain = "" if onnx.defs.has(kind) else DOMAIN
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=names[0], domain=domain, **settings)
        )
        return names[0]

    def input(self, name: str, kind: str, shape: list[int | str]) -> None:
        """Declare an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def output(self, name: str, kind: str, shape: list[int | str]) -> None:
        """Declare an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def constant(self, name: str, value: list[int] | np.ndarray) -> str:
        """A small tensor within the graph's own file."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def vector(self, name: str) -> str:
        """A stored vector by its name in the graph."""
        return self.stored(self.weights.vectors[name])

    def stored(self, tensor: Stored) -> str:
        """Refer to a tensor of the data file."""
        if tensor.name not in self._stored:
            self._stored.add(tensor.name)
            proto = TensorProto(
                name=tensor.name, data_type=TYPES[tensor.type], dims=tensor.shape,
                data_location=TensorProto.EXTERNAL,
            )  # fmt: skip
            place = dict(location=DATA_NAME, offset=tensor.offset_bytes, length=tensor.nbytes)
            for key, value in place.items():
                proto.external_data.add(key=key, value=str(value))
            self.initializers.append(proto)
        return tensor.name
