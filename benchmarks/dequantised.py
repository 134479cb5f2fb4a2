"""What the GPTQ weights of a folder stand for, as the tensors of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.checkpoint.tensors import ModelTensors
from packager.core.records import Geometry
from packager.formats.gptq.reader import open_gptq


class Dequantised(ModelTensors):
    """A TensorSource, float32, of GPTQ files of a geometry."""

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        self.weights = open_gptq(folder)
        super().__init__(self.weights.shards, geometry)

    def read(self, name: str) -> np.ndarray:
        """As in TensorSource; a packed matrix from its codes."""
        module = name.removesuffix(".weight")
        if f"{module}.qweight" in self.weights.shards.entries:
            return self.weights.matrix(module, self.shape(name))
        return super().read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """As in TensorSource; a packed matrix is unpacked whole for them."""
        return self.read(name)[start:stop]
