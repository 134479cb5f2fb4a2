"""One checkpoint's tensors by Hugging Face name, its adapter merged in.

Everything downstream reads weights through this: lazily, as float32, a few rows at a time where
that is what it asks for. Knows nothing of formats.
"""

from __future__ import annotations

from packager.checkpoint.lora import merge_adapter
from packager.checkpoint.safetensors_reader import Floats, TensorSource, open_folder
from packager.checkpoint.shapes import tensor_shapes
from packager.core.records import Checkpoint, Geometry

__all__ = ["Floats", "ModelTensors", "TensorSource", "open_tensors"]


class ModelTensors:
    """A TensorSource with just the tensors of a geometry, in the model's order.

    A tied model's head is left out even where the checkpoint stores it: it is the embedding.
    """

    def __init__(self, source: TensorSource, geometry: Geometry) -> None:
        self.source = source
        self.shapes = tensor_shapes(geometry)

    def names(self) -> list[str]:
        """Every tensor's name, embedding first, head last."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape; linear weights are (outputs, inputs)."""
        return self.shapes[name]

    def dtype(self, name: str) -> str:
        """How it is stored; float32 where an adapter changes it."""
        return self.source.dtype(name)

    def read(self, name: str) -> Floats:
        """The whole tensor as float32; CheckpointError where a value is NaN or infinite."""
        return self.source.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop-1 as float32; CheckpointError where a value is NaN or infinite."""
        return self.source.read_rows(name, start, stop)


def open_tensors(checkpoint: Checkpoint) -> ModelTensors:
    """The tensors of a valid checkpoint (read_checkpoint); no weight is read yet.

    Raises CheckpointError where the files no longer are what they were.
    """
    source: TensorSource = open_folder(checkpoint.path)
    if checkpoint.adapter is not None:
        source = merge_adapter(source, checkpoint.adapter.path)
    return ModelTensors(source, checkpoint.geometry)
