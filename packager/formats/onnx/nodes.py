"""An ONNX graph as it grows: nodes, inputs, outputs, and tensors of its file or of the data file.

Knows nothing of what the nodes compute. The only file of the packager that imports onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packager.formats.onnx.layout import DATA_NAME, Stored

DOMAIN = "com.microsoft"
OPSET, IR_VERSION = 21, 10
OPSETS = (helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1))

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}

Shape = Sequence[int | str | None]
"""Sizes; a name or None where the size is known at run time only."""


class Nodes:
    """Nodes as they are added. Every method returns the name of what it computes or declares."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self._stored: set[str] = set()

    def write(self, file: Path, metadata: dict[str, str]) -> None:
        """Write the graph into `file`, and have the library check it."""
        graph = helper.make_graph(
            self.nodes, "starcoder2", self.inputs, self.outputs, self.initializers
        )
        model = helper.make_model(
            graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="starpack"
        )
        helper.set_model_props(model, metadata)
        file.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(file))

    def node(
        self, kind: str, inputs: Sequence[str], outputs: str | list[str], **settings: Any
    ) -> str:
        """Add a node; returns the name of its (first) output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        domain = "" if onnx.defs.has(kind, OPSET, "") else DOMAIN
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=names[0], domain=domain, **settings)
        )
        return names[0]

    def cast(self, x: str, kind: str, output: str) -> str:
        """`x` as another type."""
        return self.node("Cast", [x], output, to=TYPES[kind])

    def branch(self, kind: str, shape: Shape) -> onnx.GraphProto:
        """A graph of the nodes so far, for one side of an If; its output is that of the last."""
        result = self.nodes[-1].output[0]
        output = helper.make_tensor_value_info(result, TYPES[kind], shape)
        return helper.make_graph(self.nodes, result, [], [output])

    def input(self, name: str, kind: str, shape: Shape) -> None:
        """Declare an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def output(self, name: str, kind: str, shape: Shape) -> None:
        """Declare an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def constant(self, name: str, value: Sequence[int] | int | np.ndarray | np.generic) -> str:
        """A small tensor within the graph's own file."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

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
