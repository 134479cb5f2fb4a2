"""Write one safetensors file as a stream, so that a model never has to be in memory.

Format: see packager/checkpoint/safetensors_reader.py, which reads it. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# By the format's name; numpy has no bfloat16, so its bits come as whole numbers.
DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor to come: its name, the format's name for its type, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(
    file: Path,
    specs: Sequence[TensorSpec],
    parts: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors in the order of `specs`, from `parts` in that order: (name, some of its rows).

    Nothing but the part at hand is in memory.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    end = 0
    for spec in specs:
        begins[spec.name], end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end - spec.nbytes, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data at a multiple of 8
    waiting = {spec.name: spec for spec in specs}
    with file.open("wb") as stream:
        start = stream.write(struct.pack("<Q", len(text)) + text)
        for name, values in parts:
            spec = waiting[name]
            begin = start + begins[name]
            assert values.dtype == DTYPES[spec.dtype], f"{name} is {values.dtype}"
            assert begin <= stream.tell(), f"{name} comes before its place"
            stream.write(np.ascontiguousarray(values).data.cast("B"))
            assert stream.tell() <= begin + spec.nbytes, f"{name} is longer than announced"
        assert stream.tell() == start + end, f"{stream.tell() - start} bytes of {end} written"
        stream.flush()
        os.fsync(stream.fileno())
